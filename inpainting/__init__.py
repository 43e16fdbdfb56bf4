"""Multi-mask inpainting with one prompt per mask (I Dream My Painting, arXiv 2411.19050)."""

from ldm import __version__ as __version__  # first, as Ctrl-C is quiet from there on
