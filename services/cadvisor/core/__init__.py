"""What cAdvisor computes. Pure: bytes and values in, values out."""
