"""Training loops on accelerate: settings, batches, checkpoints, logs. Knows no product."""
