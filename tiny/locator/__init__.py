"""The small locator: a LLaVA of a few million parameters, created and trained here on rendered scenes."""
