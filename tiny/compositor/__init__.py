"""The small compositor's autoencoder; the compositor itself trains with `run_train_bifrost.py`."""
