"""The CRI validation suite against our CRI server, alone on an engine of its own."""
