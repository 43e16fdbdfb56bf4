"""Training data of the locator."""
