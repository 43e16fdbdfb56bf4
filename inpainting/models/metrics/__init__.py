"""Numbers about prompts and about painted images."""
