"""The geometric placer: a place from anchors and depth, without a language model."""
