"""Published checkpoints to model folders, and back."""
