"""The small inpainter: trained on rendered scenes on a CPU, in the layout of the full-size model."""
