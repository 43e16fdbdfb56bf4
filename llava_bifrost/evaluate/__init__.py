"""Held-out evaluation of a locator."""
