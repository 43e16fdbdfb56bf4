"""Frozen networks that describe an image: depth, segmentation, detection, removal."""
