"""Facts in, findings out. Pure."""
