"""What the kubelet decides. Pure: values in, values out."""
