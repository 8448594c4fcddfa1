"""Pod networks by CNI plugins. Source: the CNI specification, 0.3.1 to 1.1.0.

Rules (values only): `conf`, `request`, `result`. Edges: `folder` (configurations), `records` (a file for each
attachment), `invoke` (a plugin's process). `chain` runs the plugins of a network in order; `cni` is what the
CRI server holds.
"""
