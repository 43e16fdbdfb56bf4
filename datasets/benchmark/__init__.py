"""The manifest of the open benchmark of composites."""
