"""Paintings, their region masks, captions and splits: building, reading, checking."""
