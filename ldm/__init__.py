"""What any product needs: settings, images, latents, one denoise loop, experts. Knows no product."""
