"""Read facts from this machine. Each part answers within seconds, whatever hangs."""
