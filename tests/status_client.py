"""How do tests ask the HTTP server of [status], and how is one started for them?"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.servers import Gsmtpd, Settings, free_port, merge

WITHIN = 30.0  # seconds


class Said(NamedTuple):
    """An answer. headers: in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Status:
    """What a gsmtpd serves over HTTP on `port` of 127.0.0.1."""

    def __init__(self, port: int, password: str = "") -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {password}"} if password else {}

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        within: float = WITHIN,
        **parameters: object,
    ) -> Said:
        """The answer to one request, over a connection of its own."""
        if parameters:
            path += "?" + urlencode({name.rstrip("_"): value for name, value in parameters.items()})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=within)
        try:
            connection.request(method, path, headers=self.headers | dict(headers or {}))
            answer = connection.getresponse()
            said = {name.lower(): value for name, value in answer.getheaders()}
            return Said(answer.status, said, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **parameters: object) -> Any:
        """The JSON of an answer that must be good."""
        said = self.ask(path, **parameters)  # type: ignore[arg-type]
        assert said.status == 200, said
        return said.json

    @contextmanager
    def events(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Events]:
        """The server-sent events of `path`."""
        with socket.create_connection(("127.0.0.1", self.port), WITHIN) as connection:
            lines = [f"GET {path} HTTP/1.0", "Host: localhost"]  # 1.0: no chunks to undo
            lines += [
                f"{name}: {value}" for name, value in (self.headers | dict(headers or {})).items()
            ]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            with connection.makefile("rb") as file:
                assert b" 200 " in file.readline()
                while file.readline().strip():
                    pass
                yield Events(connection, file)


class Event(NamedTuple):
    """One event; id: the last that was said, as a browser has it."""

    name: str
    data: Any
    id: str


class Events:
    """Reads server-sent events as a browser does."""

    def __init__(self, connection: socket.socket, file: Any) -> None:
        self._connection = connection
        self._file = file
        self.id = ""

    def drain(self) -> None:
        """Read all there is until the end."""
        while self._file.read1(1 << 20):
            pass

    def hang_up(self) -> None:
        """End it: whoever reads hears the end."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def step(self) -> None:
        """Read a line, for its id. Raises EOFError at the end."""
        if not (octets := self._file.readline()):
            raise EOFError
        field, _, value = octets.decode().rstrip("\n").partition(": ")
        if field == "id":
            self.id = value

    def next(self) -> Event:
        """The next event that has data. Raises EOFError at the end."""
        name, data = "", ""
        while octets := self._file.readline():
            field, _, value = octets.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif field == "id":
                self.id = value
            elif not field and data:
                return Event(name, json.loads(data), self.id)
        raise EOFError


def with_status(settings: Settings | None = None, **status: object) -> tuple[Settings, int]:
    """Settings with a [status], and its port."""
    port = free_port()
    return merge({"status": {"listen": str(port)} | status}, settings or {}), port


@contextmanager
def served(
    settings: Settings | None = None, before: str = "", **status: object
) -> Iterator[tuple[Gsmtpd, Status]]:
    """A running gsmtpd with a [status], and what asks it. before: see Gsmtpd."""
    chosen, port = with_status(settings, **status)
    with Gsmtpd(chosen, before=before) as daemon:
        yield daemon, Status(port, str(status.get("password", "")))
