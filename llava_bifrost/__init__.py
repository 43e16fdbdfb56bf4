"""The locator: from a background and a sentence to a box and a depth (Bifrost, arXiv 2410.19079, section 3.2)."""
