"""The demo's servers, one process: `python -m redirector.demo.server`.

It gives its privileges up, asks for port 80 all the same (and is refused), then listens, for IPv4 and IPv6, on the
ports that anyone may have: HTTP on 8080 and 8443, a UDP echo on 5353. One line of JSON says what came of it. It ends
when its standard input does, and so together with the demo, however that ends.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler

from redirector.host.privileges import drop_privileges

CLOSED_PORT = 80
WEB_PORTS = (8080, 8443)
UDP_PORT = 5353

_MAPPED = "::ffff:"  # before an IPv4 address in IPv6 form (RFC 4291, 2.5.5.2)


def greeting(client: str, port: int) -> str:
    """What the servers answer: whom they see, and on which port of theirs."""
    return f"hello {client.removeprefix(_MAPPED)}, from port {port}"


class _DualStack:
    """Listen on every address, IPv4 and IPv6, with one socket."""

    address_family: int = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    socket: socket.socket

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()  # type: ignore[misc]  # the class that this one is mixed into has it


# Not HTTPServer, which looks its own name up in the DNS.
class _WebServer(_DualStack, socketserver.ThreadingTCPServer):
    pass


class _EchoServer(_DualStack, socketserver.UDPServer):
    pass


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = greeting(self.client_address[0], self.connection.getsockname()[1]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
        """Standard error belongs to the demo's story."""


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        question, one = self.request
        answer = greeting(self.client_address[0], one.getsockname()[1])
        one.sendto(answer.encode() + b": " + question, self.client_address)


def _refusal(port: int) -> str:
    """Why this process may not listen on `port`, "" if it may."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def main() -> None:
    drop_privileges()
    refusal = _refusal(CLOSED_PORT)
    servers: list[socketserver.BaseServer] = [_WebServer(("::", port), _Page) for port in WEB_PORTS]
    servers.append(_EchoServer(("::", UDP_PORT), _Echo))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({"uid": os.geteuid(), "refusal": refusal}) + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
