"""What a training run of the compositor does besides its step: draws, loss, metrics, checkpoints, samples."""
