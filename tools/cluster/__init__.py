"""A Kubernetes control plane on this machine, from the binaries of `make peers`."""
