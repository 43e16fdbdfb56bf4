"""The two models of the inpainter: prompts from masked paintings, pictures from prompts."""
