"""Writing one prompt per coloured mask with LLaVA-NeXT."""
