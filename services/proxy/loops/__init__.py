"""How the proxy acts."""
