"""Evaluation of the multi-mask inpainter on paintings."""
