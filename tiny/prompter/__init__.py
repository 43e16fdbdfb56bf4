"""The small prompt writer."""
