"""Plumbing of the three services.

Entry rule. A module may live here only when all of these hold:

1. At least two services use it today.
2. It knows no domain noun: no pod, no container, no rule, no stat.
3. It holds one noun, and has its own test file.
4. It imports nothing from a service (checked by import-linter).

What fails rule 2 belongs in a proto: services share contracts, not classes.
"""
