"""Rendered worlds as arrays: questions, relations and valid answers of the locator."""
