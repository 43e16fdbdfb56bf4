"""How good an image is: distances between sets, likeness of images, fidelity to a text, intervals."""
