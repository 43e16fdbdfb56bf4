"""Painting several masks in one pass with rectified cross-attention."""
