"""Numbers about prompts and about painted pictures."""
