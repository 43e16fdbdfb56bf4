"""Settings: dataclasses filled from YAML, environment and the command line."""
