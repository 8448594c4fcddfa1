"""SPDY/3.1 without I/O: bytes in, events out. `headers` and `frames` are the wire, `connection` the rules."""
