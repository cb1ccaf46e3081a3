"""How does a program act on mail? The message on its stdin, the facts in its environment.

There is no shell, and nothing of a mail is in its arguments.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess

from gsmtpd.handlers.handler import DISCARD, GiveUpError, Handler, Result, RetryError
from gsmtpd.handlers.mail import Mail
from gsmtpd.handlers.process import signal_name

DISCARDED = 99  # as in qmail: done, and nobody else needs it
REFUSED = (64, 65, 66, 67, 68, 69, 70, 72, 73, 76, 77, 78, 100)  # of sysexits.h, and of qmail
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_FACT = 4096  # octets; the kernel takes 128 KiB of one, and some MiB of all
_MAX_OUTPUT = 4096  # octets that are kept of what it says, the last ones
_MAX_REASON = 200  # characters
_PIECE = 65536


class Command(Handler):
    """Runs `command` for each mail. Its exit code says what becomes of that."""

    defaults = {"command": ""}

    def prepare(self) -> None:
        """Check the command. Raises ValueError."""
        text = self.settings["command"]
        try:
            self._command = shlex.split(text)
        except ValueError as error:
            raise ValueError(f"command = {text}: {error}") from error
        if not self._command:
            raise ValueError("command is missing: write the full path of a program, and arguments")
        program = self._command[0]
        if not os.path.isabs(program):
            raise ValueError(f"command = {text}: write the full path of {program}")
        if not (os.path.isfile(program) and os.access(program, os.X_OK)):
            raise ValueError(f"command = {text}: {program} is no program that can be run")

    def handle(self, mail: Mail) -> Result:
        """Run it. Raises RetryError and GiveUpError."""
        try:
            code, output = run(self._command, mail.raw, environment(mail))
        except OSError as error:
            raise RetryError(f"{self._command[0]}: {error.strerror}") from error
        if code == 0:
            return None
        if code == DISCARDED:
            return DISCARD
        said = " ".join(_one_line(output.decode(errors="replace")).split())[-_MAX_REASON:]
        reason = f"{signal_name(-code) if code < 0 else f'exit code {code}'} {said}".strip()
        if code in REFUSED:
            raise GiveUpError(reason)
        raise RetryError(reason)


def run(command: list[str], octets: bytes, facts: dict[bytes, bytes]) -> tuple[int, bytes]:
    """Run `command` with `octets` on its stdin: its exit code, or minus a signal, and what it said.

    Only the end of what it says is kept, however much that is. What it has left running in the
    background is not waited for. Raises OSError where it cannot be run.
    """
    # A file and no pipe: nobody has to wait while a program reads, or does not.
    with os.fdopen(os.memfd_create("mail"), "w+b") as file:
        file.write(octets)
        file.seek(0)
        process = subprocess.Popen(
            command,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=facts,
            cwd="/",
            bufsize=0,
        )
    try:
        return _heard(process)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _heard(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    output = process.stdout
    assert output is not None
    os.set_blocking(output.fileno(), False)
    ended = os.pidfd_open(process.pid)
    said = b""
    try:
        with output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while True:
                has_ended = ended in [key.fileobj for key, _ in selector.select()]
                piece = output.read(_PIECE)
                said = (said + (piece or b""))[-_MAX_OUTPUT:]
                # It has closed its output, or has ended: and then what others say that hold its
                # output is nothing to us.
                if has_ended or piece == b"":
                    return process.wait(), said
    finally:
        os.close(ended)


def environment(mail: Mail) -> dict[bytes, bytes]:
    """The facts, each in one line of UTF-8; nothing else is in it but PATH."""
    facts = mail.facts
    values = {
        "ID": facts.id,
        "MAIL_ID": str(facts.row),
        "DELIVERY": facts.delivery,
        "ATTEMPT": str(facts.attempt),
        "SENDER": facts.sender,
        "RECIPIENT": facts.recipient,
        "MAILBOX": facts.mailbox,
        "CLIENT_IP": facts.client_ip,
        "HELO": facts.helo,
        "TLS": "1" if facts.is_tls else "0",
        "RECEIVED_AT": f"{facts.received_at:.0f}",
        "SUBJECT": mail.subject,
    }
    made = {f"GSMTPD_{name}".encode(): _value(value) for name, value in values.items()}
    return {b"PATH": PATH.encode(), **made}


def _value(text: str) -> bytes:
    octets = _one_line(text[:MAX_FACT]).encode()[:MAX_FACT]
    return octets.decode(errors="ignore").encode()  # no half of a character


def _one_line(text: str) -> str:
    """A space for each NUL, line end, surrogate, and whatever else is no character to be seen."""
    return "".join(c if c.isprintable() else " " for c in text)
