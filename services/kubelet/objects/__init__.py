"""The store of a standalone node."""
