"""What any product needs: settings, pictures, latents, one denoise loop, experts. Knows no product."""
