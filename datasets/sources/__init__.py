"""Readers of public datasets; each gives compositing pairs."""
