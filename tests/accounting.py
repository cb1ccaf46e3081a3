"""Is every acknowledged message in the store, exactly, and nothing by halves?

`Client` speaks SMTP byte for byte, pipelined. `Ledger` notes what became of each attempt, and
`Ledger.check` holds it against what the store has. `Load` keeps several clients sending while
something is broken and mended.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from tests.servers import Gsmtpd, MariaDB

Address = tuple[str, int]
SENDER = "a@example.org"
RECIPIENT = "b@example.com"
END = b".\r\n"
TOKEN = re.compile(rb"token-[0-9a-f]{32}")
QUEUED = re.compile(r"250 2\.0\.0 OK: queued as ([0-9a-f]{32})")
FRONT = re.compile(
    rb"Delivered-To: (?P<recipient>[^\r\n]+)\r\n"
    rb"Return-Path: <(?P<sender>[^\r\n]*)>\r\n"
    rb"Received: from (?P<helo>[^\r\n]+) \(unknown \[(?P<ip>[^\r\n]+)\]\)\r\n"
    rb"\tby (?P<host>[^\r\n]+) with (?P<protocol>[A-Z0-9]+) id (?P<id>[0-9a-f]{32})"
    rb"(?:\r\n\tfor <(?P<for>[^\r\n]+)>)?;\r\n"
    rb"\t(?P<date>[^\r\n]+)\r\n"
)


# --- sending --------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """What the server said. text: all lines, without their line ends, joined by LF."""

    code: int
    text: str

    @property
    def id(self) -> str:
        """The id in the 250 of a stored message. Raises ValueError for any other reply."""
        match = QUEUED.fullmatch(self.text)
        if match is None:
            raise ValueError(f"no 250 of a stored message: {self.text}")
        return match[1]


class Gone(Exception):
    """The server closed the connection, or it was lost, before it replied."""


class Mail(NamedTuple):
    """A message to be sent. content: ends with CRLF, as every message that SMTP can carry."""

    content: bytes
    recipients: tuple[str, ...] = (RECIPIENT,)
    sender: str = SENDER


def stuffed(content: bytes) -> bytes:
    """`content` as it travels behind DATA, with the final dot (RFC 5321 section 4.5.2)."""
    assert not content or content.endswith(b"\r\n")
    front = b"." if content.startswith(b".") else b""
    return front + content.replace(b"\r\n.", b"\r\n..") + END


class Client:
    """A raw SMTP client. A wait ends in Gone, or in TimeoutError after `timeout` seconds."""

    def __init__(self, address: Address, timeout: float = 60.0) -> None:
        self.socket = socket.create_connection(address, timeout)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send `data` as it is. Raises Gone."""
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Gone(str(error)) from error

    def reply(self) -> Reply:
        """The next reply. Raises Gone."""
        lines = []
        while True:
            try:
                line = self._file.readline()
            except ConnectionError as error:
                raise Gone(str(error)) from error
            if not line.endswith(b"\r\n"):
                raise Gone(f"closed; the last words are {b''.join([*lines, line])!r}")
            lines.append(line[:-2])
            if line[3:4] != b"-":
                return Reply(int(line[:3]), b"\n".join(lines).decode("ascii"))

    def command(self, line: str) -> Reply:
        """Send one command and read its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def hello(self) -> Self:
        """Read the greeting and say EHLO. Raises Gone where either is refused."""
        greeting = self.reply()
        if greeting.code != 220:
            raise Gone(greeting.text)
        reply = self.command("EHLO client.example")
        if reply.code != 250:
            raise Gone(reply.text)
        return self

    def closed(self) -> bool:
        """Whether the server hangs up without a further word."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def deliver(self, mail: Mail) -> Reply:
        """The reply to `mail`: to its final dot, or the first that refuses it. Raises Gone."""
        return next(self.stream([mail]))

    def begin(self, mail: Mail) -> Reply:
        """Say the envelope of `mail` and DATA; the reply to DATA, or the first that refuses."""
        self.send(_envelope(mail))
        return self._envelope_replies(mail)

    def stream(self, mails: Iterable[Mail]) -> Iterator[Reply]:
        """The replies to `mails`, one by one; each envelope travels right behind a final dot."""
        waiting = iter(mails)
        mail = next(waiting, None)
        if mail is not None:
            self.send(_envelope(mail))
        while mail is not None:
            following = next(waiting, None)
            refusal = self._envelope_replies(mail)
            if refusal.code != 354:
                if following is not None:
                    self.send(_envelope(following))
                yield refusal
            else:
                self.send(stuffed(mail.content) + (_envelope(following) if following else b""))
                yield self.reply()
            mail = following

    def _envelope_replies(self, mail: Mail) -> Reply:
        refusal = None
        for _ in range(len(mail.recipients) + 2):
            reply = self.reply()
            if reply.code >= 400:
                refusal = refusal or reply
            if reply.code == 421:
                break
        # A message may go to some of its recipients only.
        return reply if reply.code == 354 else refusal or reply

    def close(self) -> None:
        """Hang up without a word."""
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _envelope(mail: Mail) -> bytes:
    lines = [f"MAIL FROM:<{mail.sender}>", *(f"RCPT TO:<{r}>" for r in mail.recipients), "DATA", ""]
    return "\r\n".join(lines).encode()


def send(address: Address, *mails: Mail, timeout: float = 60.0) -> list[Reply]:
    """Send `mails` over one connection; the replies. Raises Gone."""
    with Client(address, timeout) as client:
        return [*client.hello().stream(mails)]


def simple(text: str, **fields: str) -> Mail:
    """A small mail to RECIPIENT. fields: header fields by name."""
    header = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Mail(f"{header}\r\n{text}\r\n".encode())


def with_token(size: int = 200, recipients: Sequence[str] = (RECIPIENT,)) -> Mail:
    """A mail like no other: its body names it."""
    token = f"token-{uuid.uuid4().hex}"
    head = f"Subject: {token}\r\n\r\n{token}\r\n".encode()
    return Mail(head + b"x" * max(0, size - len(head) - 2) + b"\r\n", tuple(recipients))


# --- what is stored -------------------------------------------------------------------------------


class Row(NamedTuple):
    """A stored row: what an account needs of it."""

    mail_id: int
    hash: str
    recipient: str
    mail: bytes
    size: int
    content_hash: str

    @property
    def content(self) -> bytes:
        """The message's own octets, behind the fields we put in front."""
        return self.mail[len(self.mail) - self.size :]

    @property
    def front(self) -> bytes:
        """The fields we put in front."""
        return self.mail[: len(self.mail) - self.size]

    def problem(self) -> str | None:
        """What contradicts itself in this row, if anything."""
        front = FRONT.fullmatch(self.front)
        if front is None:
            return f"row {self.mail_id}: wrong fields in front: {self.front!r}"
        if front["id"].decode() != self.hash or front["recipient"].decode() != self.recipient:
            return f"row {self.mail_id}: the fields in front are of another row: {self.front!r}"
        if hashlib.sha256(self.content).hexdigest() != self.content_hash:
            return f"row {self.mail_id}: content_hash is not the sha256 of its message"
        return None


class Table(Protocol):
    """Where mail is kept, seen from outside."""

    def query(self, sql: str) -> list[tuple]:
        """The rows of one statement on a new connection."""


class MySQLTable:
    """The tables in a database of MariaDB."""

    def __init__(self, server: MariaDB, schema: str) -> None:
        self.server = server
        self.schema = schema

    def query(self, sql: str) -> list[tuple]:
        return self.server.query(sql, database=self.schema, charset="utf8mb4")


class SQLiteTable:
    """The tables in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def query(self, sql: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as file:
            found = file.execute(sql).fetchall()
            file.commit()
            return found


def rows(table: Table) -> list[Row]:
    """All that is stored, in the order of mail_id."""
    names = ", ".join(f"`{name}`" for name in Row._fields)
    found = table.query(f"SELECT {names} FROM new_mail ORDER BY mail_id")
    return [Row(*row) for row in found]


def count(table: Table) -> int:
    """How many rows are stored."""
    return table.query("SELECT COUNT(*) FROM new_mail")[0][0]


# --- the account ----------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One attempt to deliver a mail. reply: None where the connection was lost.

    dot: whether the final dot may have reached the server, so that it may have been stored.
    """

    mail: Mail
    reply: Reply | None
    dot: bool


class Ledger:
    """What was sent and what was said to it. Threads may share one."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def note(self, mail: Mail, reply: Reply | None, dot: bool) -> None:
        """Note what became of an attempt."""
        self.attempts.append(Attempt(mail, reply, dot))  # atomic

    @property
    def acknowledged(self) -> list[Attempt]:
        """The attempts that were answered with 250."""
        return [a for a in self.attempts if a.reply is not None and a.reply.code == 250]

    def check(self, stored: Iterable[Row]) -> None:
        """Hold the account against all rows of the store. Raises AssertionError."""
        found = [*self.problems([*stored])]
        assert not found, f"{len(found)} problems:\n" + "\n".join(found[:20])

    def problems(self, stored: Sequence[Row]) -> Iterator[str]:
        """All that is wrong, one line each."""
        yield from filter(None, (row.problem() for row in stored))
        by_id: dict[str, list[Row]] = {}
        for row in stored:
            by_id.setdefault(row.hash, []).append(row)
        yield from self._refused_for_good()
        yield from self._lost(by_id)
        yield from self._partial(by_id)
        yield from self._too_many(by_id)

    def _refused_for_good(self) -> Iterator[str]:
        for attempt in self.attempts:
            if attempt.reply is not None and attempt.reply.code >= 500:
                yield f"{_name(attempt.mail)}: a fault of ours was answered: {attempt.reply.text}"

    def _lost(self, by_id: dict[str, list[Row]]) -> Iterator[str]:
        """Acknowledged, and not stored with these bytes for these recipients."""
        said: Counter[str] = Counter()
        for mail, reply, _ in self.acknowledged:
            assert reply is not None
            said[reply.id] += 1
            found = by_id.get(reply.id, [])
            if not found:
                yield f"{_name(mail)}: LOST: {reply.text}"
            elif any(row.content != mail.content for row in found):
                yield f"{_name(mail)}: stored with other bytes: {reply.text}"
        yield from (f"id {id_} was said {n} times" for id_, n in said.items() if n > 1)

    def _partial(self, by_id: dict[str, list[Row]]) -> Iterator[str]:
        """Stored for some of its recipients, or for one of them twice."""
        mails = {_name(attempt.mail): attempt.mail for attempt in self.attempts}
        for id_, found in by_id.items():
            mail = mails.get(_token(found[0].content))
            if mail is None:
                yield f"id {id_}: nobody sent what is stored"
            elif sorted(row.recipient for row in found) != sorted(mail.recipients):
                yield f"{_name(mail)}: PARTIAL: id {id_} has {len(found)} of {len(mail.recipients)}"

    def _too_many(self, by_id: dict[str, list[Row]]) -> Iterator[str]:
        """Stored more often than it was acknowledged and left in doubt."""
        may: Counter[str] = Counter()
        for mail, reply, dot in self.attempts:
            may[_name(mail)] += dot and (reply is None or reply.code < 500)
        copies = Counter(_token(found[0].content) for found in by_id.values())
        for name, number in copies.items():
            if number > may[name]:
                yield f"{name}: {number} copies of {may[name]} attempts"

    def duplicates(self, stored: Iterable[Row]) -> int:
        """How many ids are stored that nobody was told: the price of doubt."""
        known = {a.reply.id for a in self.acknowledged if a.reply is not None}
        return len({row.hash for row in stored} - known)


def _token(content: bytes) -> str:
    match = TOKEN.search(content)
    return match.group().decode() if match else repr(content[:60])


def _name(mail: Mail) -> str:
    return _token(mail.content)


# --- load -----------------------------------------------------------------------------------------


class Load:
    """Clients that send one mail after the other, each until it is acknowledged.

    On entry they start; on leaving each brings its last mail home and ends. A mail that is refused
    for now, or whose connection is lost, is tried again. make: makes the next mail. refused: how
    many connections were refused.
    """

    def __init__(
        self,
        address: Address,
        ledger: Ledger,
        sessions: int = 6,
        make: Callable[[], Mail] = with_token,
        pause: float = 0.0,
    ) -> None:
        self._address = address
        self._ledger = ledger
        self._make = make
        self._pause = pause
        self.refused = 0
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(sessions)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, trouble: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if trouble is not None:
            self._given_up.set()
            return  # the trouble is to be seen, and not what follows from it
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a mail never came home"
        if self._failures:
            raise self._failures[0]

    def wait_for(self, more: int, seconds: float = 60.0) -> None:
        """Wait until `more` further mails were acknowledged. Raises AssertionError."""
        goal = len(self._ledger.acknowledged) + more
        deadline = time.monotonic() + seconds
        while len(self._ledger.acknowledged) < goal:
            assert not self._failures, self._failures
            assert time.monotonic() < deadline, f"not {more} mails more within {seconds:g} s"
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            mail = self._make()
            while mail is not None and not self._given_up.is_set():
                try:
                    with Client(self._address) as client:
                        mail = self._send(client.hello(), mail)
                except (Gone, OSError) as error:
                    self.refused += isinstance(error, ConnectionRefusedError)
                    time.sleep(0.05)
        except BaseException as failure:
            self._failures.append(failure)

    def _send(self, client: Client, mail: Mail) -> Mail | None:
        """Send from `mail` on; returns the mail that must be tried again, None at the end."""
        while True:
            dot = False
            try:
                reply = client.begin(mail)
                if reply.code == 354:
                    dot = True
                    client.send(stuffed(mail.content))
                    reply = client.reply()
            except (Gone, OSError):
                self._ledger.note(mail, None, dot)
                return mail
            self._ledger.note(mail, reply, dot)
            if reply.code != 250:
                time.sleep(0.05)
                return mail
            if self._stop.is_set():
                return None
            time.sleep(self._pause)
            mail = self._make()


def to_several() -> Mail:
    """A mail like no other, to a few recipients."""
    return with_token(recipients=[f"r{i}@example.com" for i in range(random.randint(1, 4))])


def table_of(daemon: Gsmtpd) -> SQLiteTable:
    """The SQLite file of a daemon with the tests' default settings."""
    return SQLiteTable(daemon.mail_db)
