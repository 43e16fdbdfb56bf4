"""Models by name: where they come from, where they lie, how they are fetched."""
