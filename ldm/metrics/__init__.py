"""How good a picture is: distances between sets, likeness of pictures, fidelity to a text, intervals."""
