"""How good an image is: distances between sets, similarity of images, fidelity to a text, intervals."""
