"""The CRI server's streaming half: one-time URLs at which a command's streams are served over WebSocket.

`websocket` and `tokens` are rules without I/O; `server` is the HTTP edge.
"""
