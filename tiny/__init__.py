"""The small networks: how they are trained, evaluated and put into `assets/tiny`."""

from ldm import __version__ as __version__  # first, as Ctrl-C is quiet from there on
