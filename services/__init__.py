"""The three services of a node and what they share."""
