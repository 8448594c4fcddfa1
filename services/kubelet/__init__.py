"""The kubelet: runs the pods bound to this node and says how they fare."""
