"""A server without any privilege, and its clients, for the systemd box, where there is nothing but a system's Python.

`plain_peer.py serve PLACE…` answers on each place: "tcp:0.0.0.0:80", "udp::::53" (IPv6 alone), or "inherited": the
sockets that systemd handed over. `plain_peer.py serve-apart PLACE…` does so in the background, ready when the command
returns. To a line, or to a datagram, it answers in one line with the local port, the client's address as it sees it,
its own user id, its effective capabilities and, for an inherited socket, the name that systemd gave it; to an HTTP
request with the same, and the request's line and headers.

`plain_peer.py ask LABEL QUESTION…` prints one line for each question, what came back or what befell the client;
"tcp:192.0.2.1:80" or "http:…" or "udp:…", and behind "@" the address to ask from. `await QUESTION` asks until there is
an answer.
"""

import contextlib
import os
import selectors
import socket
import sys
from collections.abc import Iterator
from typing import BinaryIO

PATIENCE = 10.0
SILENCE = 0.3  # until a question behind "!" counts as unanswered
CLAIMS = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "Proxy": "evil", "X-Real-IP": "203.0.113.9"}


def identity(port: int, peer: str, name: str) -> str:
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    told = f"{port} {peer} uid={os.getuid()} caps={int(effective, 16):x}"
    return f"{told} name={name}" if name else told


def place_of(text: str) -> tuple[str, str, int]:
    """(protocol, address, port)."""
    protocol, _, rest = text.partition(":")
    address, _, port = rest.rpartition(":")
    return protocol, address.strip("[]"), int(port)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def opened(places: list[str]) -> Iterator[tuple[socket.socket, str]]:
    """Bound sockets with the names that systemd gave them."""
    if places == ["inherited"]:
        names = os.environ["LISTEN_FDNAMES"].split(":")
        assert len(names) == int(os.environ["LISTEN_FDS"]), names
        for number, name in enumerate(names):
            yield socket.socket(fileno=3 + number), name
        return
    for protocol, address, port in map(place_of, places):
        one = socket.socket(family_of(address), socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        if one.family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        if protocol == "tcp":
            one.listen(128)
        yield one, ""


def serve(places: list[str], *, apart: bool) -> None:
    selector = selectors.DefaultSelector()
    for one, name in opened(places):
        selector.register(one, selectors.EVENT_READ, name)
    if apart and os.fork():
        os._exit(0)
    while True:
        for key, _ in selector.select():
            bound = key.fileobj
            assert isinstance(bound, socket.socket)
            with contextlib.suppress(OSError):
                if bound.type == socket.SOCK_DGRAM:
                    _, peer = bound.recvfrom(4096)
                    bound.sendto(identity(bound.getsockname()[1], peer[0], key.data).encode(), peer)
                else:
                    answer(bound.accept()[0], key.data)


def answer(client: socket.socket, name: str) -> None:
    with client, client.makefile("rwb") as stream:
        client.settimeout(PATIENCE)
        who = identity(client.getsockname()[1], client.getpeername()[0], name)
        first = stream.readline().decode().strip()
        if not first.startswith("GET "):
            stream.write(who.encode() + b"\n")
            return
        headers = [first]
        while line := stream.readline().decode().strip():
            headers.append(line)
        body = " | ".join([who, *headers]).encode()
        if any(header.lower() == "upgrade: echo" for header in headers):
            stream.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            stream.flush()
            stream.write(b"echo " + stream.readline())
            return
        stream.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def head_of(stream: BinaryIO) -> list[str]:
    """The lines of an answer's head. Raises ConnectionError where there is none."""
    lines = []
    while (line := stream.readline()) != b"\r\n":
        if not line:
            raise ConnectionError
        lines.append(line.decode().strip())
    return lines


def ask(question: str) -> str:
    place, _, source = question.strip("!").partition("@")
    protocol, address, port = place_of(place)
    patience = SILENCE if question.startswith("!") else PATIENCE
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family_of(address), kind) as client:
        client.settimeout(patience)
        try:
            if source:
                client.bind((source, 0))
            client.connect((address, port))
            if protocol == "upgrade":
                lines = "GET / HTTP/1.1\r\nHost: example.net\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
                client.sendall(lines.encode())
                with client.makefile("rb") as stream:
                    head_of(stream)
                    client.sendall(b"hello\n")
                    return stream.readline().decode().strip()
            if protocol == "http":
                claims = "".join(f"{name}: {value}\r\n" for name, value in CLAIMS.items())
                client.sendall(f"GET /a%2Fb?c HTTP/1.1\r\nHost: example.net\r\n{claims}\r\n".encode())
                with client.makefile("rb") as stream:
                    head = head_of(stream)
                    length = next(int(line.split()[1]) for line in head if line.lower().startswith("content-length"))
                    status, body = head[0].split()[1], stream.read(length).decode()
                    return body if status == "200" else status
            client.sendall(b"who\n")
            return client.recv(4096).decode().strip() or "closed"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        except ConnectionError:
            return "closed"


def main(what: str, *words: str) -> None:
    if what in {"serve", "serve-apart"}:
        serve(list(words), apart=what == "serve-apart")
    elif what == "ask":
        for question in words[1:]:
            sys.stdout.write(f"{words[0]} {question} {ask(question)}\n")
    elif what == "await":
        while ask(words[0]) in {"refused", "closed"}:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
