"""Pod network of the built-in kind: one bridge, one veth pair for each sandbox, addresses from the pod CIDR.

Rules (values only): `config`, `ipam`, `naming`, `rules`. Edges: `leases` (a file), `links` (rtnetlink, the
only importer of pyroute2), `sysctls`, `iptables`. `wiring` joins the blocking edges and runs in one thread;
`bridge` is what the CRI server holds.
"""
