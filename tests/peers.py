"""Which programs of others are clients in the tests, and how are they run?

Programs that end by themselves are functions, which give what they printed. Those that stay, and
mail through us, are servers as in tests/servers.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from typing import NamedTuple, Self

from tests.accounting import Address, Client, Gone
from tests.servers import (
    START_SECONDS,
    MissingRightError,
    Server,
    environment,
    find_program,
)

SECONDS = 60.0  # for any one program


class Done(NamedTuple):
    """A program that has ended. said: what it wrote to standard output and standard error."""

    code: int
    said: str

    def check(self) -> Self:
        """Itself. Raises AssertionError, with what it said, where the program failed."""
        assert self.code == 0, f"exit status {self.code}\n{self.said}"
        return self


def run(program: str, *arguments: object, stdin: bytes = b"") -> Done:
    """Run a program that ends by itself. Raises MissingProgramError, subprocess.TimeoutExpired."""
    done = subprocess.run(
        [find_program(program), *map(str, arguments)],
        check=False,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        env=environment(),
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"))


def swaks(address: Address, *arguments: object) -> Done:
    """Have swaks send a mail from sender@example.org."""
    return run(
        *("swaks", "--server", address[0], "--port", address[1], "--helo", "swaks.example"),
        *("--from", "sender@example.org", *arguments),
    )


def curl(url: str, mail: bytes, *arguments: object) -> Done:
    """Have curl send `mail` from sender@example.org to the smtp:// or smtps:// server of `url`."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(mail)
        file.flush()
        return run(
            *("curl", "--silent", "--show-error", "--verbose", "--url", url),
            *("--mail-from", "sender@example.org", "--upload-file", file.name, *arguments),
        )


class TLSClient(Client):
    """A raw SMTP client over TLS, by Python's ssl: by STARTTLS, or at once where `implicit`.

    It has not said EHLO over TLS yet. Raises Gone, ssl.SSLError.
    """

    socket: ssl.SSLSocket

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext,
        *,
        implicit: bool = False,
        session: ssl.SSLSession | None = None,
        name: str = "mx.example.com",
    ) -> None:
        super().__init__(address)
        self._greeted = not implicit
        if not implicit:
            super().hello()
            reply = self.command("STARTTLS")
            if reply.code != 220:
                raise Gone(reply.text)
        self._file.close()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(self.socket, server_hostname=name, session=session)
        self._file = self.socket.makefile("rb")

    def hello(self) -> Self:
        """Say EHLO, once the greeting has come. Raises Gone."""
        if not self._greeted:
            return super().hello()
        reply = self.command("EHLO client.example")
        if reply.code != 250:
            raise Gone(reply.text)
        return self


class SClient:
    """openssl s_client, which speaks TLS for us: what is sent to it travels encrypted.

    heard: all it wrote to standard error, after `close`: what it has to say of the connection.
    """

    def __init__(self, address: Address, *arguments: object) -> None:
        self.heard = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                *(find_program("openssl"), "s_client", "-quiet"),
                *("-connect", f"{address[0]}:{address[1]}", *map(str, arguments)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
        )

    def send(self, octets: bytes) -> None:
        """Send it as it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(octets)
        self._process.stdin.flush()

    def reply(self) -> str:
        """The last line of the next reply; empty where the connection has ended."""
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline())[3:4] == b"-":
            pass
        return line.decode(errors="replace").rstrip()

    def command(self, line: str) -> str:
        """Send one command; the last line of the reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate(timeout=SECONDS)
        self._errors.seek(0)
        self.heard = self._errors.read().decode(errors="replace")
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def handshake(address: Address, *arguments: object, stdin: bytes = b"QUIT\r\n") -> Done:
    """Have openssl s_client shake hands and hang up; all that it says of the connection."""
    where = f"{address[0]}:{address[1]}"
    return run("openssl", "s_client", "-connect", where, *arguments, stdin=stdin)


class HAProxy(Server):
    """HAProxy in front of `backend`. how: keywords of its `server` line, like send-proxy-v2."""

    def __init__(self, backend: Address, how: str) -> None:
        super().__init__("haproxy")
        (self.path / "haproxy.cfg").write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n"
            "  timeout server 60s\n"
            f"listen smtp\n  bind 127.0.0.1:{self.port}\n"
            f"  server one {backend[0]}:{backend[1]} {how}\n"
        )

    def command(self) -> list[str]:
        return [find_program("haproxy"), "-db", "-f", str(self.path / "haproxy.cfg")]

    def answers(self) -> bool:
        # The backend may not be the first to speak.
        with contextlib.suppress(OSError), socket.create_connection(self.address, 5):
            return True
        return False


MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
anvil unix - - n - 1 anvil
bounce unix - - n - 0 bounce
cleanup unix n - n - 0 cleanup
defer unix - - n - 0 bounce
discard unix - - n - - discard
error unix - - n - - error
flush unix n - n 1000? 0 flush
lmtp unix - - n - - lmtp
pickup unix n - n 60 1 pickup
postlog unix-dgram n - n - 1 postlogd
proxymap unix - - n - - proxymap
qmgr unix n - n 300 1 qmgr
retry unix - - n - - error
rewrite unix - - n - - trivial-rewrite
scache unix - - n - 1 scache
smtp unix - - n - - smtp
tlsmgr unix - - n 1000? 1 tlsmgr
trace unix - - n - 0 bounce
"""
"""The services of a Postfix that relays: none of them in a chroot, and none on port 25."""


class Postfix(Server):
    """A Postfix of its own, which takes mail from this machine on its port and sends it on.

    main: settings of main.cf; the defaults here make it try again soon. It must be root's.
    """

    def __init__(self, main: Mapping[str, object]) -> None:
        super().__init__("postfix")
        if os.geteuid() != 0:
            raise MissingRightError("root, to run Postfix")
        self.path.chmod(0o755)
        self.etc, self.queue, data = (self.path / name for name in ("etc", "queue", "data"))
        for directory in (self.etc, self.queue, data):
            directory.mkdir()
        shutil.chown(data, "postfix")
        settings = {
            "compatibility_level": "3.6",
            "myhostname": "postfix.example.org",
            "maillog_file": self.output,
            "maillog_file_prefixes": self.path,
            "queue_directory": self.queue,
            "data_directory": data,
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "mydestination": "",
            "alias_maps": "",
            "smtpd_client_connection_count_limit": 0,
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "queue_run_delay": "1s",
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "3s",
            "transport_retry_time": "1s",
        }
        lines = (f"{key} = {value}\n" for key, value in (settings | dict(main)).items())
        (self.etc / "main.cf").write_text("".join(lines))
        (self.etc / "master.cf").write_text(MASTER_CF.format(port=self.port))

    def start(self, seconds: float = START_SECONDS) -> None:
        run("postfix", "-c", self.etc, "check").check()  # makes the queue
        super().start(seconds)

    def command(self) -> list[str]:
        directory = run("postconf", "-c", self.etc, "-h", "daemon_directory").check().said
        # -d: it stays in our session, so that nothing of it is left behind.
        return [f"{directory.strip()}/master", "-c", str(self.etc), "-d"]

    def queued(self) -> int:
        """How many messages it has still to deliver."""
        names = ("incoming", "active", "deferred")
        return sum(len(files) for name in names for _, _, files in os.walk(self.queue / name))

    def flush(self) -> None:
        """Have it try all of them now."""
        run("postqueue", "-c", self.etc, "-f").check()

    def deliveries(self, status: str) -> list[str]:
        """The lines of its log about attempts with this outcome, "sent" or "deferred"."""
        return [
            line for line in self.output.read_text().splitlines() if f" status={status} " in line
        ]
