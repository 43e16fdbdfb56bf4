"""The compositor: an SD-2.1 UNet with two control branches (detail, depth) and DINOv2 identity tokens."""
