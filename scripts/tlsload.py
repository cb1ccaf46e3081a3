"""Who are the clients of bench-tls? Processes with one connection each at a time, over STARTTLS."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import ssl
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from tests.servers import ServerError

KEYS = {"ecdsa": "ECDSA P-256", "rsa": "RSA 2048"}
VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
CIPHERS = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"  # of TLS 1.2
SIZE = 4096  # octets of a message
SECONDS = 60.0  # that a client waits
HELLO = b"EHLO client.example\r\n"


@dataclass(frozen=True)
class Scenario:
    """What the clients do on each connection. version: of TLS; "" for none."""

    key: str
    version: str
    resumed: bool = False
    messages: int = 0

    @property
    def title(self) -> str:
        """For a line of a table."""
        how = f"{KEYS[self.key]}, TLS {self.version}" if self.version else "in the clear"
        return f"{how}, resumed" if self.resumed else how


def message() -> bytes:
    """A mail as it travels behind DATA, with the final dot."""
    head = b"From: a@example.org\r\nTo: b@example.com\r\nSubject: bench\r\n\r\n"
    line = b"x" * 70 + b"\r\n"
    body = line * ((SIZE - len(head)) // len(line))
    return head + body + b"x" * (SIZE - len(head) - len(body) - 2) + b"\r\n.\r\n"


class Client:
    """One connection. Raises ServerError at a reply that is not the wanted one, OSError."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reply(b"220")
        self.say(HELLO)

    def say(self, octets: bytes, code: bytes = b"250") -> None:
        """Send `octets`, and wait for the reply that begins with `code`, behind any other 250."""
        self.socket.sendall(octets)
        self.reply(code)

    def reply(self, code: bytes) -> None:
        """Read up to the last line of a reply with this code."""
        heard = b""
        while not heard.endswith(b"\n") or not heard.splitlines()[-1].startswith(code + b" "):
            piece = self.socket.recv(16384)
            heard += piece
            if not piece or (heard.endswith(b"\n") and heard.splitlines()[-1][:1] not in b"23"):
                raise ServerError(f"{code.decode()} was expected, not {heard!r}")

    def secure(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLSocket, str]:
        """STARTTLS and EHLO; also the version and the cipher."""
        self.say(b"STARTTLS\r\n", b"220")
        self.socket = tls = context.wrap_socket(self.socket, session=session)
        self.say(HELLO)
        if tls.session_reused is not (session is not None):
            raise ServerError("the session was not resumed")
        cipher = tls.cipher()
        return tls, f"{tls.version()}:{cipher[0] if cipher else ''}"

    def close(self) -> None:
        """QUIT, and hang up."""
        self.say(b"QUIT\r\n", b"221")
        self.socket.close()


def client_context(version: str) -> ssl.SSLContext:
    """One that verifies nothing: what it costs the clients is not asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.set_ciphers(CIPHERS)
    return context


@dataclass(frozen=True)
class Done:
    """What one client process did, or why it could not. cpu: its own seconds."""

    ciphers: frozenset[str]
    cpu: float
    trouble: str = ""


class Talker:
    """A client process's own: a context for each TLS version, and a session of each server."""

    def __init__(self) -> None:
        self._contexts = {version: client_context(version) for version in VERSIONS}
        self._sessions: dict[tuple[int, str], ssl.SSLSession] = {}

    def talk(self, port: int, scenario: Scenario, connections: int) -> set[str]:
        """So many connections, one after the other; the versions and ciphers of their TLS.

        The very first that is to resume something cannot: that is why there is a warm-up.
        """
        mail = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        content = message()
        ciphers = set()
        for _ in range(connections):
            client = Client(port)
            if scenario.version:
                ciphers.add(self._secure(client, port, scenario))
            else:
                client.say(HELLO)
            for _ in range(scenario.messages):
                client.say(mail, b"354")
                client.say(content)
            client.close()
        return ciphers

    def _secure(self, client: Client, port: int, scenario: Scenario) -> str:
        context = self._contexts[scenario.version]
        if not scenario.resumed:
            return client.secure(context)[1]
        which = port, scenario.version
        tls, cipher = client.secure(context, self._sessions.get(which))
        # This one again and again: Python needs as long as for a handshake to take the next.
        if which not in self._sessions:
            assert tls.session is not None
            self._sessions[which] = tls.session
        return cipher


def work(pipe: Pipe) -> None:
    """A client process: does what comes through `pipe`, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    talker = Talker()
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        began = time.process_time()
        try:
            done = Done(frozenset(talker.talk(*order)), time.process_time() - began)
        except (ServerError, OSError) as error:
            done = Done(frozenset(), 0.0, f"{type(error).__name__}: {error}")
        pipe.send(done)


class Load:
    """The client processes. Forked at once, so before there are servers whose files they'd have."""

    def __init__(self, clients: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipes = []
        for _ in range(clients):
            ours, theirs = fork.Pipe()
            fork.Process(target=work, args=(theirs,), daemon=True).start()
            theirs.close()  # so that a client that dies is noticed
            self._pipes.append(ours)

    def run(self, port: int, scenario: Scenario, connections: int) -> tuple[float, float, str]:
        """Seconds on the wall, CPU seconds of the clients, the cipher. Raises ServerError."""
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send((port, scenario, connections))
        try:
            done: list[Done] = [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise ServerError("a client has died") from None
        seconds = time.perf_counter() - began
        for trouble in (one.trouble for one in done if one.trouble):
            raise ServerError(trouble)
        ciphers = frozenset().union(*(one.ciphers for one in done))
        return seconds, sum(one.cpu for one in done), ", ".join(sorted(ciphers))
