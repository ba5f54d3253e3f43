"""Stack configuration, read once, as typed and validated objects."""
