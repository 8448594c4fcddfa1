"""SPDY/3.1: `headers` and `frames` are the wire, `connection` the rules, `multiplex` streams on asyncio."""
