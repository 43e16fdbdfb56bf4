"""Evaluation of the prompt writer on paintings."""
