"""The locator: from a background and a sentence to a box and a depth (arXiv 2410.19079, section 3.2)."""

from ldm import __version__ as __version__  # first, as Ctrl-C is quiet from there on
