"""Benchmarks: `python -m bench NAME`. Each measures its floor or a peer in the same run, and has bars."""
