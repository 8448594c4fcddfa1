"""`tripod doctor`: look at the host and the node, and say what is wrong and how to mend it.

Three steps: `gather` reads facts and decides nothing, `core` turns facts into findings
and reads nothing, `report` writes them. It works without root, without a node and
without an engine, and says what it could not look at.
"""
