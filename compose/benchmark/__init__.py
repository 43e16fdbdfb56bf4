"""The open benchmark of composites: manifest, jobs, scores."""
