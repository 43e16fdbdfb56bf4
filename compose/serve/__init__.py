"""The server: a page, an HTTP API and what they share. `python -m compose.serve` starts it."""
