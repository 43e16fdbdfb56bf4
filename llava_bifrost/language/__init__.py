"""Instructions and answers of the locator: parsing, grammar, number codec."""
