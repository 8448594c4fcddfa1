"""The CRI server on Docker: a half of its own, which meets the kubelet only at its socket."""
