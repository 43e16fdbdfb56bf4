"""The steps of the painting data set; `inpainting.data.ops` runs them."""
