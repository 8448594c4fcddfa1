"""Ask a service on loopback for /healthz, with no more than a socket: run as `python3 -I -S health.py PORT`.

Exits with 0 when the answer is 200. Importing gRPC for this would cost half a second each time.
"""

import socket
import sys


def main() -> int:
    """Ask once."""
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=3) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            answer = connection.recv(4096)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if b" 200 " in answer.split(b"\r\n", 1)[0]:
        return 0
    sys.stderr.write(answer.partition(b"\r\n\r\n")[2].decode(errors="replace"))
    return 1


sys.exit(main())
