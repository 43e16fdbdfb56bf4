"""Folders for the hub: pipelines that stock diffusers loads, and the benchmark."""
