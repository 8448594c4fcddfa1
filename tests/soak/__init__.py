"""The soak: a whole node under kills, faults and load for an hour. Run `python -m tests.soak`."""
