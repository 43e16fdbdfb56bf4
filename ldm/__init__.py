"""What any product needs: settings, images, latents, one denoise loop, experts. Knows no product."""

__version__ = "0.1.0"  # of the whole repository; CHANGELOG.md and CITATION.cff name the same
