"""Clients that never stop connecting, and what became of each attempt: the watch over a change without a gap."""

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from tests.kernel.echo import Answer, Conversation, Refused, Reset, Silent
from tests.kernel.lab import Machine


class Watch:
    """While it is entered, one thread for each of `addresses` asks TCP and UDP by turns, each time as a new client.

    `lasting` are connections that existed before: each is asked again in every turn. No answer within `patience` is a
    failure. They take as many turns as they are given by `go_on`, so that a slow machine is not buried in connections.
    Leaving it stops the threads and raises what they raised.
    """

    def __init__(
        self, machine: Machine, addresses: list[str], port: int, lasting: list[Conversation], patience: float
    ) -> None:
        self._patience = patience
        self._machine = machine
        self._port = port
        self._end = threading.Event()
        self._turns = threading.Semaphore(len(addresses))
        self._errors: list[BaseException] = []
        self.answers: Counter[Answer] = Counter()
        self._lock = threading.Lock()
        shares = [lasting[i :: len(addresses)] for i in range(len(addresses))]
        self._threads = [
            threading.Thread(target=self._work, args=pair, daemon=True) for pair in zip(addresses, shares, strict=True)
        ]

    @property
    def failures(self) -> dict[Answer, int]:
        """How often something else than an answer came: a refused or reset connection, a datagram without reply."""
        with self._lock:
            return {answer: n for answer, n in self.answers.items() if isinstance(answer, Refused | Reset | Silent)}

    @property
    def asked(self) -> int:
        with self._lock:
            return self.answers.total()

    def go_on(self, turns: int) -> None:
        """Let so many more turns be taken, by whichever thread is free; they need not be over when this returns."""
        self._turns.release(turns)

    def _work(self, address: str, lasting: list[Conversation]) -> None:
        try:
            while self._turns.acquire() and not self._end.is_set():
                found = [
                    self._connect(address),
                    self._machine.ask_udp(address, self._port, patience=self._patience),
                    *(conversation.ask(self._patience) for conversation in lasting),
                ]
                with self._lock:
                    self.answers.update(found)
        except BaseException as error:  # noqa: BLE001 - raised again by __exit__
            self._errors.append(error)

    def _connect(self, address: str) -> Answer:
        try:
            return self._machine.ask_tcp(address, self._port, patience=self._patience)
        except ConnectionError:  # reset between the handshake and the return of connect
            return Reset()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._turns.release(len(self._threads))
        for thread in self._threads:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]
