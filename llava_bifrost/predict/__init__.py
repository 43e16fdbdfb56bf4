"""Ask a locator: one image, or a file of jobs."""
