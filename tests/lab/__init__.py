"""Real parts that tests start for themselves and may break: an engine, processes, proxies that harm."""
