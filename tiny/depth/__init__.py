"""The small depth network."""
