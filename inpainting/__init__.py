"""Multi-mask inpainting with one prompt per mask (I Dream My Painting, arXiv 2411.19050)."""
