"""A web server for the boot test, for IPv4 and IPv6: `web.py PORT...`. Each page is the number of its port.

It tells systemd once it listens on all of them (sd_notify(3)), so that nobody has to wait for it in the dark.
"""

import os
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    servers = [Server(("::", int(port)), Page) for port in sys.argv[1:]]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
