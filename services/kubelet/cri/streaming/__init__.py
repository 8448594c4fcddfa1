"""The CRI server's streaming half: one-time URLs at which commands and ports are served.

Rules without I/O: `status`, `tokens`, and in `services.common.remotecommand`. On asyncio: `multiplex`
makes streams of SPDY, `command` and `forward` join client and session, `server` is the HTTP edge.
"""
