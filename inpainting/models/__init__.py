"""The two models of the inpainter: prompts from masked paintings, images from prompts."""
