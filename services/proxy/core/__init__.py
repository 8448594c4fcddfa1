"""What the proxy decides. Pure: values in, values out."""
