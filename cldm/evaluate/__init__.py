"""Held-out evaluation of a compositor."""
