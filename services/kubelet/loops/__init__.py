"""How the kubelet acts."""
