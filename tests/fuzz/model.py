"""What does a mail server say, and store? A model of the protocol, apart from gsmtpd's own code.

`Model` says in the words of the RFCs what each step of a client is answered with, and what must be
stored. Fuzzing holds it against `Session`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from gsmtpd.smtp import reply
from gsmtpd.smtp.reply import Reply
from tests.dialogs.pure import TLS, PureClient

MAX_SIZE, MAX_RCPT, MAX_MESSAGES, MAX_ERRORS, MAX_COMMANDS = 1400, 3, 5, 6, 9


class Mode(NamedTuple):
    """How a listener is set up. tls: as in gsmtpd.conf."""

    lmtp: bool
    tls: str
    chunking: bool
    xclient: bool
    strict: bool


NO_YES = (False, True)
TLS_MODES = ("off", "starttls", "required", "implicit")
MODES = [Mode(*each) for each in product(NO_YES, TLS_MODES, NO_YES, NO_YES, NO_YES)]

CONTENTS: dict[str, bytes] = {
    "text": b"Subject: x\r\n\r\ntext\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.a\r\n...\r\n",
    "commands": b"QUIT\r\nRSET\r\nMAIL FROM:<forged@example.net>\r\n",
    "bare": b"a\n.\nb\r.\rc\r\n",
    "nul": b"\x00\xff\x80\r\n",
    "loop": b"Received: x\r\n" * 100,
    "limit": b"x" * (MAX_SIZE - 34) + b"\r\n",  # with its number, see Model.content
    "over": b"x" * (MAX_SIZE - 33) + b"\r\n",
    "much over": b"x" * 5000 + b"\r\n",
}
ANSWERS = {
    "": reply.OK,
    "trouble": reply.STORAGE_TROUBLE,
    "stops": reply.SHUTTING_DOWN,
}


class Mailed(NamedTuple):
    """A message that the store is given."""

    digest: str
    recipients: int
    helo: str
    esmtp: bool
    lmtp: bool
    tls: str
    body: str


class Turn(NamedTuple):
    """What the client sends, and the codes that it hears at its end. call: done before it."""

    octets: bytes
    codes: list[str]
    call: Callable[[PureClient], None] | None = None
    alone: bool = False  # nothing may stand behind it in the same burst


Step = tuple[str, ...]


class Model:
    """A server as the RFCs have it. Each `step` is answered with the turns it comes to."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.greeted = self.secure = self.closed = False
        self.secure = mode.tls == "implicit"
        self.errors = self.commands = self.messages = self.number = 0
        self.helo = self.named_helo = ""
        self.esmtp = False
        self.named_esmtp: bool | None = None
        self.full = False  # of memory
        self.stored: list[Mailed] = []
        self.answers: list[Reply] = []
        self.forget()

    def forget(self) -> None:
        """No transaction."""
        self.mail: str | None = None  # the value of BODY=
        self.recipients = 0
        self.chunks: bytes | None = None
        self.dropped = False

    def step(self, step: Step) -> list[Turn]:
        """What the client does, and hears."""
        verb, *rest = step
        free = ("ehlo", "lhlo", "noop", "starttls", "quit", "xclient", "proxy", "http", "bdat",
                "long", "room", "drop", "unknown", "empty")  # fmt: skip
        if self.mode.tls == "required" and not self.secure and verb not in free:
            return self.says(LINES[verb, *rest] if verb in PLAIN else FORMS[verb], self.error(530))
        return getattr(self, f"do_{verb}")(*rest)

    def says(self, line: bytes, codes: list[str]) -> list[Turn]:
        """A line, and what is said to it."""
        return [Turn(line + b"\r\n", codes)]

    def error(self, code: int, enhanced: str = "") -> list[str]:
        """One more error; the tenth is another reply."""
        self.errors += 1
        if self.errors >= MAX_ERRORS:
            return self.close("421 4.7.0")
        return [f"{code} {enhanced or {530: '5.7.0', 503: '5.5.1'}.get(code, '5.5.4')}"]

    def junk(self, *said: str) -> list[str]:
        """A command that brings no mail nearer."""
        self.commands += 1
        return self.close("421 4.7.0") if self.commands >= MAX_COMMANDS else list(said)

    def close(self, said: str) -> list[str]:
        """The last reply."""
        self.closed = True
        return [said]

    # The small talk

    def do_helo(self) -> list[Turn]:
        return self.hello(b"HELO a", not self.mode.lmtp)

    def do_ehlo(self) -> list[Turn]:
        return self.hello(b"EHLO a", not self.mode.lmtp)

    def do_lhlo(self) -> list[Turn]:
        return self.hello(b"LHLO a", self.mode.lmtp)

    def hello(self, line: bytes, known: bool) -> list[Turn]:
        if not known:
            return self.says(line, self.error(500, "5.5.1"))
        said = self.junk("250")
        if not self.closed:
            self.forget()
            self.greeted = True
            self.helo = self.named_helo or "a"
            self.esmtp = line[:4] != b"HELO" if self.named_esmtp is None else self.named_esmtp
        return self.says(line, said)

    def do_plain(self, line: str) -> list[Turn]:
        kind, code = LINE_CODES[line]
        octets = line.encode()
        if kind == "error":
            return self.says(octets, self.error(int(code[:3]), code[4:]))
        if kind == "close":
            return self.says(octets, self.close(code))
        said = self.junk(code)
        if line == "RSET" and not self.closed:
            self.forget()
        return self.says(octets, said)

    do_noop = do_rset = do_unknown = do_empty = do_long = do_proxy = do_http = do_talk = do_plain

    def do_quit(self) -> list[Turn]:
        return [Turn(b"QUIT\r\n", self.close("221 2.0.0"), alone=True)]

    # TLS, and proxies

    def do_starttls(self, argument: str = "") -> list[Turn]:
        line = b"STARTTLS" + argument.encode()
        if self.mode.tls == "off":
            return self.says(line, self.error(500, "5.5.1"))
        if self.mode.tls == "implicit":
            return self.says(line, self.error(503))
        if argument:
            return self.says(line, self.error(501))
        if self.secure or self.mail is not None:
            return self.says(line, self.error(503))
        self.secure, self.greeted = True, False
        return [Turn(line + b"\r\n", ["220 2.0.0"], alone=True)]

    def do_xclient(self, words: str) -> list[Turn]:
        line = b"XCLIENT " + words.encode()
        if not self.mode.xclient:
            return self.says(line, self.close("550 5.7.1"))
        if self.mail is not None:
            return self.says(line, self.error(503))
        if words == "FOO=x":
            return self.says(line, self.error(501))
        said = self.junk("220")
        if not self.closed:
            self.greeted = False
            for word in words.split():
                name, value = word.split("=")
                self.named_helo = value if name == "HELO" else self.named_helo
                self.named_esmtp = value == "ESMTP" if name == "PROTO" else self.named_esmtp
        return self.says(line, said)

    # Mail

    def do_mail(self, parameters: str = "") -> list[Turn]:
        line = b"MAIL FROM:<a@example.org>" + parameters.encode()
        if not self.greeted or self.mail is not None:
            return self.says(line, self.error(503))
        body = parameters.partition("BODY=")[2]
        if parameters == " FOO" or (body == "BINARYMIME" and not self.mode.chunking):
            unknown = parameters == " FOO"
            return self.says(line, self.error(555 if unknown else 501))
        if "SIZE=" in parameters:
            return self.says(line, self.junk("552 5.3.4"))
        if self.full:
            return self.says(line, self.junk("452 4.3.1"))
        if self.messages >= MAX_MESSAGES:
            return self.says(line, self.close("421 4.7.0"))
        self.mail = body or "7BIT"
        return self.says(line, ["250 2.1.0"])

    def do_rcpt(self, who: str = "u@example.com") -> list[Turn]:
        line = f"RCPT TO:<{who}>".encode()
        if not self.greeted or self.mail is None or self.chunks is not None:
            return self.says(line, self.error(503))
        if not who:
            return self.says(line, self.error(501, "5.1.3"))
        if self.recipients >= MAX_RCPT:
            return self.says(line, ["452 4.5.3"])
        if not who.endswith("example.com"):
            return self.says(line, self.junk("550 5.7.1"))
        self.recipients += 1
        return self.says(line, ["250 2.1.5"])

    def content(self, kind: str) -> bytes:
        """A message like no other."""
        self.number += 1
        return b"" if kind == "empty" else b"%030d\r\n" % self.number + CONTENTS[kind]

    def do_data(self, kind: str = "text", answer: str = "", drop: str = "") -> list[Turn]:
        if not self.recipients or self.chunks is not None or self.mail == "BINARYMIME":
            return self.says(b"DATA", self.error(503))
        content = self.content(kind)
        stuffed = re.sub(rb"(\A|(?<=\r\n))\.", b"..", content) + b".\r\n"
        self.dropped = bool(drop)
        said = self.end(content, answer, last=True)
        if not drop:
            return [Turn(b"DATA\r\n", ["354"], alone=True), Turn(stuffed, said)]
        half = len(stuffed) // 2
        return [
            Turn(b"DATA\r\n", ["354"], alone=True),
            Turn(stuffed[:half], [], alone=True),
            Turn(stuffed[half:], said, lambda client: client.session.drop_message()),
        ]

    def do_bdat(self, last: str = " LAST", kind: str = "text", answer: str = "") -> list[Turn]:
        content = self.content(kind)
        line = b"BDAT %d%s\r\n" % (len(content), last.encode())
        if not self.mode.chunking:
            return [Turn(line, self.close("502 5.5.1")), Turn(content, [])]
        octets = line + content
        if not self.recipients:
            return [Turn(octets, self.junk("503 5.5.1"))]
        self.chunks = (self.chunks or b"") + content
        if last or self.dropped or len(self.chunks) > MAX_SIZE:
            return [Turn(octets, self.end(self.chunks, answer, bool(last)))]
        return [Turn(octets, ["250 2.0.0"] if content else self.junk("250 2.0.0"))]

    def do_drop(self) -> list[Turn]:
        self.dropped = self.chunks is not None
        return [Turn(b"", [], lambda client: client.session.drop_message())]

    def do_room(self, full: str = "") -> list[Turn]:
        self.full = bool(full)
        return [Turn(b"", [], lambda client: setattr(client.session, "no_room", bool(full)))]

    def end(self, content: bytes, answer: str, last: bool) -> list[str]:
        """A message has come; what is said, to SMTP once, to LMTP for each recipient."""
        self.messages += 1
        times = self.recipients if self.mode.lmtp and last else 1
        mailed = Mailed(
            *(hashlib.sha256(content).hexdigest(), self.recipients, self.helo, self.esmtp),
            *(self.mode.lmtp, TLS if self.secure else "", self.mail or ""),
        )
        said = self.refusal(content)
        self.forget()
        if said:
            return [said] * times
        self.stored.append(mailed)
        self.answers.append(ANSWERS[answer])
        if answer == "stops":
            return self.close("421 4.3.2") * times
        if answer == "trouble":
            return ["451 4.3.0"] * times
        self.errors = self.commands = 0
        return ["250 2.0.0"] * times

    def refusal(self, content: bytes) -> str:
        """Why it is not given to the store, if it is not."""
        if self.dropped:
            return "452 4.3.1"
        if len(content) > MAX_SIZE:
            return "552 5.3.4"
        bare = re.search(rb"\r(?!\n)|(?<!\r)\n", content)
        if bare and self.mode.strict and self.mail != "BINARYMIME":
            return self.close("550 5.5.2")[0]
        return "554 5.4.6" if content.count(b"Received:") >= 100 else ""


LONG = "NOOP " + "x" * 600
LINE_CODES = {
    "NOOP": ("junk", "250 2.0.0"),
    "RSET": ("junk", "250 2.0.0"),
    "HELP": ("junk", "214 2.0.0"),
    "VRFY x": ("junk", "252 2.5.2"),
    "VRFY": ("error", "501 5.5.4"),
    "EXPN x": ("error", "502 5.5.1"),
    "RSET x": ("error", "501 5.5.4"),
    "DATA x": ("error", "501 5.5.4"),
    "FOO": ("error", "500 5.5.1"),
    "": ("error", "500 5.5.2"),
    LONG: ("error", "500 5.5.2"),
    "PROXY TCP4 192.0.2.1 192.0.2.2 1 2": ("close", "550 5.7.1"),
    "GET / HTTP/1.1": ("close", "554 5.5.1"),
}
# What is said to a plain line where TLS is required, and is not active yet.
PLAIN = ("talk", "rset")
LINES = {(verb, line): line.encode() for verb in PLAIN for line in LINE_CODES}
FORMS = {
    "helo": b"HELO a",
    "mail": b"MAIL FROM:<a@example.org>",
    "rcpt": b"RCPT TO:<u@example.com>",
    "data": b"DATA",
}
