"""The compositor: an SD-2.1 UNet with two control branches (detail, depth) and DINOv2 identity tokens."""

from ldm import __version__ as __version__  # first, as Ctrl-C is quiet from there on
