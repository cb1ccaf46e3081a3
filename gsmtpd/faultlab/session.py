"""What does one SMTP session of a sender say next, and what became of its mail?

Hand-made for speed: an envelope and DATA are one write, a message with its end is another. It reads
and writes without waiting; the sender's loop says when. Between `read` and `write` the loop puts
the ledger on the disk: what a session hands over in `read` or `begin` leaves in `write` only.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from enum import Enum
from typing import Protocol

from gsmtpd.faultlab.mails import Mail, stuffed

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_CHUNK = 65536
_LONGEST = 65536  # octets of a reply; what is longer is no SMTP
EHLO = b"EHLO faultlab.example\r\n"
QUIT = b"QUIT\r\n"


class Phase(Enum):
    """How far a session is."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    GREETING = "greeting"
    HELLO = "hello"
    READY = "ready"
    MAIL = "mail"  # the envelope is said, its replies come
    DATA = "data"  # the message is leaving
    DOT = "dot"  # all of it has left, its reply comes


class BreakOff(Enum):
    """Where an attempt ends on purpose, by a reset connection."""

    NOWHERE = 0
    IN_DATA = 1
    BEHIND_DOT = 2


class Account(Protocol):
    """Who is told what became of mail. seconds: from the last octet's leaving to the reply."""

    def about_to_end(self, mail: Mail) -> None:
        """The end of its data may leave at the next `write`."""

    def answered(self, mail: Mail, phase: str, code: int, text: str, seconds: float) -> None:
        """It was acknowledged or refused."""

    def lost(self, mail: Mail, phase: str, why: str) -> None:
        """Its connection is gone."""

    def abandoned(self, mail: Mail, phase: str) -> None:
        """It was broken off as it should be."""

    def turned_away(self, code: int, text: str) -> None:
        """The server would not have this session."""

    def left(self) -> None:
        """The end of a mail's data has left."""


class Session:
    """A client's connection to `address`, again and again.

    sender: its return path. per_connection: mails until it says QUIT and connects anew.
    """

    def __init__(
        self,
        address: tuple[str, int],
        sender: str,
        account: Account,
        timeout: float,
        per_connection: int,
    ) -> None:
        self._address = address
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._sender = sender.encode()
        self._account = account
        self._timeout = timeout
        self._per_connection = per_connection
        self._socket: socket.socket | None = None
        self._in = b""
        self._out = b""
        self._code_of_refusal = 0
        self._refusal = ""
        self._expected = 0  # replies to the envelope that are still to come
        self._tidy = False  # RSET comes first, a transaction was left open
        self._eight_bits = False
        self._sent = 0  # mails on this connection
        self._left_at = 0.0
        self._break_off = BreakOff.NOWHERE
        self.mail: Mail | None = None
        self.phase = Phase.CLOSED
        self.deadline = 0.0
        self.failures = 0  # connections in a row that came to nothing

    # --- for the loop -------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """Of the socket; -1 if there is none."""
        return self._socket.fileno() if self._socket is not None else -1

    @property
    def wants_to_write(self) -> bool:
        """Whether something is to leave, or the connection is being made."""
        return bool(self._out) or self.phase is Phase.CONNECTING

    def connect(self, now: float) -> None:
        """Begin to connect. now: monotonic."""
        self._socket = socket.socket(self._family)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.phase = Phase.CONNECTING
        self.deadline = now + self._timeout
        self._in = self._out = b""
        self._sent = 0
        self._tidy = False
        try:
            self._socket.connect(self._address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(str(error))

    def begin(self, mail: Mail, break_off: BreakOff, now: float) -> None:
        """Send `mail`: READY sessions only."""
        self.mail = mail
        mail.attempt += 1
        self._break_off = break_off
        ending = b"> BODY=8BITMIME" if self._eight_bits else b">"
        lines = [b"MAIL FROM:<" + self._sender + ending]
        lines += [b"RCPT TO:<%b>" % to.encode() for to in mail.to]
        lines += [b"DATA\r\n"]
        self._expected = len(lines)
        if self._tidy:
            lines.insert(0, b"RSET")
            self._expected += 1
            self._tidy = False
        self._out = b"\r\n".join(lines)
        self._code_of_refusal = 0
        self.phase = Phase.MAIL
        self.deadline = now + self._timeout

    def read(self, now: float) -> None:
        """Take what has come."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if not data:
            self._fail("closed by the server")
            return
        if self.phase is Phase.CONNECTING:
            self.phase = Phase.GREETING
        self.deadline = now + self._timeout
        self._in += data
        try:
            self._take(now)
        except ValueError:
            self._fail(f"no SMTP: {self._in[:80]!r}")

    def write(self, now: float) -> None:
        """Let out what is to leave."""
        assert self._socket is not None
        if self.phase is Phase.CONNECTING:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._fail(f"cannot connect (error {error})")
            else:
                self.phase = Phase.GREETING
            return
        try:
            gone = self._socket.send(self._out)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        self._out = self._out[gone:]
        if not self._out and self.phase is Phase.DATA:
            self._all_has_left(now)

    def timed_out(self) -> None:
        """The server was silent for too long."""
        self._fail(f"silent for {self._timeout:g} s")

    def give_up(self) -> None:
        """End at once, whatever is under way."""
        self._fail("given up by the sender")

    def quit(self) -> None:
        """Say QUIT and hang up: READY sessions only."""
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.send(QUIT)
        self._close()

    # --- what comes ---------------------------------------------------------------------------

    def _take(self, now: float) -> None:
        """Take whole replies. Raises ValueError for what is none."""
        while self.phase is not Phase.CLOSED:
            reply = self._reply()
            if reply is None:
                return
            code, text = reply
            if self.phase is Phase.MAIL:
                self._to_envelope(code, text, now)
            elif self.phase in (Phase.DOT, Phase.DATA):
                self._to_message(code, text, now)
            else:
                self._to_hello(code, text)

    def _reply(self) -> tuple[int, str] | None:
        """The next whole reply, with its lines joined by LF. Raises ValueError."""
        end = 0
        while True:
            begin, end = end, self._in.find(b"\r\n", end) + 2
            if end == 1:
                if len(self._in) > _LONGEST:
                    raise ValueError
                return None
            if self._in[begin + 3 : begin + 4] != b"-":
                break
        text = self._in[: end - 2].decode("latin-1")
        self._in = self._in[end:]
        code = int(text[:3])
        if not 200 <= code < 600:
            raise ValueError
        return code, text.replace("\r\n", "\n")

    def _to_hello(self, code: int, text: str) -> None:
        if code >= 400:
            self._account.turned_away(code, text)
            self.failures += 1
            self._close()
        elif self.phase is Phase.GREETING:
            self._out = EHLO
            self.phase = Phase.HELLO
        elif self.phase is Phase.HELLO:
            self._eight_bits = "8BITMIME" in text
            self.failures = 0
            self.phase = Phase.READY
        else:
            self._fail(f"said unasked: {text}")

    def _to_envelope(self, code: int, text: str, now: float) -> None:
        assert self.mail is not None
        self._expected -= 1
        if code >= 400 and not self._code_of_refusal:
            self._code_of_refusal, self._refusal = code, text
        if code == 421:
            self._answered("mail", code, text, 0.0)
            self._close()
        elif self._expected:
            return
        elif not self._code_of_refusal:
            self._send_content()
        elif code == 354:
            # Some recipients are refused, and a message to the others is none that we wanted.
            self._answered("mail", self._code_of_refusal, self._refusal, 0.0)
            self._close(reset=True)
        else:
            self._tidy = True
            self._answered("mail", self._code_of_refusal, self._refusal, 0.0)

    def _to_message(self, code: int, text: str, now: float) -> None:
        """The answer to the data, perhaps before all of it has left."""
        if self.phase is Phase.DATA:
            self._answered("data", code, text, 0.0)
            self._close(reset=True)
            return
        self._answered("dot", code, text, now - self._left_at)
        if code == 421:
            self._close()
        elif self._sent >= self._per_connection:
            self.quit()

    def _answered(self, phase: str, code: int, text: str, seconds: float) -> None:
        assert self.mail is not None
        mail, self.mail = self.mail, None
        self._sent += 1
        self.phase = Phase.READY
        self._account.answered(mail, phase, code, text, seconds)

    # --- what leaves --------------------------------------------------------------------------

    def _send_content(self) -> None:
        assert self.mail is not None
        self.phase = Phase.DATA
        self._out = stuffed(self.mail.content)
        if self._break_off is BreakOff.IN_DATA:
            self._out = self._out[: len(self._out) * (1 + self.mail.dice % 7) // 8]
        else:
            self._account.about_to_end(self.mail)

    def _all_has_left(self, now: float) -> None:
        assert self.mail is not None
        if self._break_off is BreakOff.IN_DATA:
            self._abandon("data")
            return
        self._left_at = now
        self.phase = Phase.DOT
        self._account.left()
        if self._break_off is BreakOff.BEHIND_DOT:
            self._abandon("dot")

    def _abandon(self, phase: str) -> None:
        assert self.mail is not None
        mail, self.mail = self.mail, None
        self._close(reset=True)
        self._account.abandoned(mail, phase)

    # --- the end ------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        mail, self.mail = self.mail, None
        phase = self.phase.value
        self.failures += self.phase in (Phase.CONNECTING, Phase.GREETING, Phase.HELLO)
        self._close()
        if mail is not None:
            self._account.lost(mail, phase, why)

    def _close(self, *, reset: bool = False) -> None:
        if self._socket is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        self._socket = None
        self._out = b""
        self.phase = Phase.CLOSED
        self.deadline = 0.0


def pause_before_connecting(failures: int) -> float:
    """Seconds to wait before the next try, after so many that came to nothing."""
    return 0.0 if not failures else min(0.5, 0.02 * 2.0 ** min(failures, 8))
