"""The kill matrix: every instant of every step, killed once, and what must hold afterwards.

`python -m tests.matrix` runs real service processes, each under SIGKILL at one named
instant (see `services/common/failpoints.py`). The instants are not written down
anywhere: a first run without kills lists those that the story passes.
"""
