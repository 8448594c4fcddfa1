"""The demo's web server: says which pod answered. Standard library alone.

GET /ready answers 503 while the file /tmp/unready exists; anything else answers
with the pod's name. Ends at once on SIGTERM.
"""

import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def do_GET(self):
        """Answer."""
        if self.path == "/ready" and Path("/tmp/unready").exists():
            self.answer(503, "not ready\n")
        elif self.path == "/ready":
            self.answer(200, "ready\n")
        else:
            self.answer(200, f"hello from {socket.gethostname()}\n")

    def answer(self, status, text):
        """Send text."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002  # as the base class calls it
        """Log what is no probe."""
        if self.path != "/ready":
            sys.stdout.write(f"{self.client_address[0]} {format % args}\n")


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
port = int(os.environ.get("PORT", "8080"))
print(f"Serving on port {port}")
ThreadingHTTPServer(("", port), Handler).serve_forever()
