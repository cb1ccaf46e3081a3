"""What is fuzzed? Functions that take any octets, and fail by an exception.

Nothing of atheris is needed to call them: `tests/fuzz/test_corpus.py` does so with each file of the
corpus, and `scripts/fuzz` looks for octets that nobody has thought of.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from gsmtpd.maillog import MailLog
from gsmtpd.message.body import MAX_NAME, MAX_TEXT, attachment, read_body
from gsmtpd.message.headers import Headers, read_headers, score_reader
from gsmtpd.message.mime import MAX_PARTS, read_parts
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.message.trace import parse_front
from gsmtpd.message.words import CONTROL
from gsmtpd.server.certificates import Certificates
from gsmtpd.server.proxy import MAX_V2, ProxyError, ProxyHeader, parse_proxy
from gsmtpd.server.tls import TLSError, TLSStream
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import MAX_DOMAIN, MAX_LOCAL_PART, POSTMASTER, Mailbox, parse_path
from gsmtpd.smtp.command import parse_mail, parse_rcpt
from gsmtpd.smtp.dialogue import text_of
from gsmtpd.smtp.events import Event, MessageReceived, Paused, RecipientAsked, TLSAsked
from gsmtpd.smtp.reply import Reply, queued
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import MAX_LINE_WITH_PARAMETERS, Session
from gsmtpd.smtp.xclient import parse_xclient
from tests.certificates import Authority

Target = Callable[[bytes], None]
# logfmt, as docs/logs.md has it.
_LOG_LINE = re.compile(r'time=\S+(?: [a-z_]+=(?:[!#-<>-\[\]-~]+|"(?:[ !#-\[\]-~]|\\.)*"))+')
HOST = "mx.example.com"
_REPLY = re.compile(rb"[245][0-5][0-9][ -][\x20-\x7e]+|354 [\x20-\x7e]+")


def address(data: bytes) -> None:
    """A path, as in MAIL FROM:<…>; its mailbox is that of its own text."""
    text = text_of(data)
    if text is not None:
        _same_again(parse_path(text))
        _same_again(parse_path(f"<{text}>"))


def _same_again(mailbox: Mailbox | None) -> None:
    if mailbox is None or mailbox == POSTMASTER:
        return
    assert mailbox.local
    # Two octets of quotes may come on top where a quoted pair is written anew.
    assert len(mailbox.local.encode()) <= 2 * MAX_LOCAL_PART
    assert 0 < len(mailbox.domain.encode()) <= MAX_DOMAIN
    assert not {*str(mailbox)} & {*"\r\n\0"}
    text = f"<{mailbox}>"
    if len(text.encode()) <= 256 and len(mailbox.local.encode()) <= MAX_LOCAL_PART:
        assert parse_path(text) == mailbox


def command(data: bytes) -> None:
    """The argument of MAIL, RCPT and XCLIENT."""
    text = text_of(data)
    if text is None:
        return
    for said in (parse_mail(text), parse_mail(f"FROM:<a@example.org> {text}")):
        if not isinstance(said, Reply):
            assert said.size >= 0
            assert said.body in ("7BIT", "8BITMIME", "BINARYMIME")
            _same_again(said.sender)
    for utf8 in (False, True):
        recipient = parse_rcpt(text, utf8)
        if not isinstance(recipient, Reply):
            assert utf8 or str(recipient).isascii()
            _same_again(recipient)
    client = parse_xclient(text)
    if client is not None:
        if client.ip is not None:
            assert str(ipaddress.ip_address(client.ip)) == client.ip
        if client.helo is not None:
            assert len(client.helo.encode()) <= 255


def header(data: bytes) -> None:
    """The header of a message, and the fields that stand in front of a stored one."""
    found = read_headers(data)
    for name, value in zip(Headers._fields, found, strict=True):
        if isinstance(value, str):
            value.encode()
            assert not CONTROL.search(value), name
    assert found.content_type
    score_reader("X-Spam-Score")(data)
    front = parse_front(data)
    if front is not None:
        assert 0 < front.size <= len(data)


def body(data: bytes) -> None:
    """The text and the attachments of a message."""
    for content in (data, b"Content-Type: multipart/mixed; boundary=B\r\n\r\n" + data):
        found = read_body(content)
        found.text.encode()
        assert not {*found.text} & {*"\0\r"}
        assert len(found.text) <= 4 * MAX_TEXT
        assert not CONTROL.search(found.charset)
        assert len(found.attachments) <= MAX_PARTS
        for number, each in enumerate(found.attachments[:20], 1):
            assert len(each.filename) <= MAX_NAME
            assert not {*each.filename} & {*"/\\\r\n\0"}
            each.filename.encode()
            assert each.content_type.isascii()
            octets = attachment(content, number)
            assert (each.size, each.sha256) == (len(octets), sha256(octets).hexdigest())
        ends = 0
        for part in read_parts(content):
            assert ends <= part.start <= part.end <= len(content)
            ends = part.end


def proxy(data: bytes) -> None:
    """A header of the PROXY protocol; octets behind it, and where it is cut, change nothing."""
    whole = _proxy(data)
    for end in (*range(min(len(data), 20)), len(data) // 2, max(0, len(data) - 1)):
        part = _proxy(data[:end])
        if isinstance(part, ProxyError):
            assert isinstance(whole, ProxyError)
        elif part is not None:
            assert part == whole
    if isinstance(whole, ProxyHeader):
        assert 0 < whole.size <= min(len(data), MAX_V2)
        assert _proxy(data[: whole.size]) == whole
        if whole.client is not None:
            assert str(ipaddress.ip_address(whole.client)) == whole.client
    elif whole is None:
        assert len(data) < MAX_V2


def _proxy(data: bytes) -> ProxyHeader | ProxyError | None:
    try:
        return parse_proxy(data)
    except ProxyError as error:
        return error


def hello(data: bytes) -> None:
    """What begins as TLS does, in pieces of as many octets as the first says; 255: at once."""
    stream = TLSStream(_certificates().context)
    try:
        for piece in _cut(data[1:], data[0] if data else 0):
            assert stream.receive(piece) == b""
    except TLSError as error:
        assert str(error)
    assert stream.description == ""
    assert len(stream.take_output()) < 16384


@cache
def _certificates() -> Certificates:
    with TemporaryDirectory() as name:
        pair = Authority(Path(name)).pair(HOST)
        return Certificates(pair, {HOST: pair, "*.example.net": pair})


def session(data: bytes) -> None:
    """A whole conversation. Two octets choose the server's mode and the cuts; then the client."""
    if len(data) >= 2:
        _Conversation(data[0]).hold(data[2:], data[1])


class _Conversation:
    """A client with a Session, whose events are answered as the names of recipients say.

    mode: bits for LMTP, STARTTLS, TLS required, no CHUNKING, no bare newlines, XCLIENT taken, no
    room for messages, and a message that is dropped as it comes in.
    """

    def __init__(self, mode: int) -> None:
        bit = [bool(mode & 1 << number) for number in range(8)]
        self._rules = Rules(
            HOST,
            max_size=600,
            max_recipients=4,
            max_messages=5,
            max_errors=12,
            max_commands=40,
            lmtp=bit[0],
            starttls=bit[1] or bit[2],
            require_tls=bit[2],
            chunking=not bit[3],
            reject_bare_newline=bit[4],
        )
        self._session = Session(self._rules)
        self._session.speaks_for_others = bit[5]
        self._session.no_room = bit[6]
        self._drops = bit[7]
        self._ids = (f"{number:032x}" for number in count(1))
        self._rows = RowMaker(HOST)
        self._messages = 0
        self._ip = "192.0.2.1"
        self._log = MailLog(_check_log, recent=_check_records)

    def hold(self, stream: bytes, size: int) -> None:
        """Send `stream` in pieces of `size` octets; 0: line by line; 255: at once."""
        self._check_replies()
        for piece in stream.splitlines(True) if size == 0 else _cut(stream, size):
            self._answer(self._session.receive(piece))
            self._check_replies()
            if self._drops:
                self._session.drop_message()
            room = max(MAX_LINE_WITH_PARAMETERS, self._rules.max_size + 8)
            assert self._session.buffered <= room
            for refusal in self._session.refusals:
                self._log.refused(self._ip, refusal, self._session.tls)
            self._session.refusals.clear()
        if self._session.farewell is not None:
            self._log.closed(self._ip, self._session.helo, self._session.farewell)
        self._log.flush()
        over = self._session.closing
        self._session.leaving = True
        self._answer(self._session.receive(b"\r\nNOOP\r\n"))
        self._check_replies(nothing=over)

    def _check_replies(self, nothing: bool = False) -> None:
        lines = self._session.take_output().split(b"\r\n")
        assert lines.pop() == b""
        for line in lines:
            assert _REPLY.fullmatch(line), line
        assert not nothing or not lines

    def _answer(self, event: Event | None) -> None:
        while event is not None:
            if isinstance(event, Paused):
                event = self._session.resume()
            elif isinstance(event, RecipientAsked):
                event = self._session.answer(*self._decide(event.recipient))
            elif isinstance(event, MessageReceived):
                self._check_message(event)
                event = self._session.answer(queued(next(self._ids)))
            elif isinstance(event, TLSAsked):
                self._session.secured("TLSv1.3:TLS_AES_256_GCM_SHA384")
                event = None
            else:
                self._ip = event.ip or self._ip
                event = self._session.answer(self._rules.greeting)

    def _decide(self, recipient: Mailbox) -> tuple[Reply, tuple[Mailbox, ...] | None]:
        match recipient.local[:1]:
            case "n":
                return reply.NOT_SERVED, None
            case "l":
                return reply.SHUTTING_DOWN, None
            case "d":
                return reply.RECIPIENT_OK, ()
            case "m":
                return reply.RECIPIENT_OK, (Mailbox("m1", HOST), Mailbox("m2", HOST))
            case _:
                return reply.RECIPIENT_OK, None

    def _check_message(self, event: MessageReceived) -> None:
        """It keeps the rules, and its rows can be made and read again."""
        envelope = event.envelope
        self._messages += 1
        assert self._messages <= self._rules.max_messages
        assert len(event.content) <= self._rules.max_size
        assert len(envelope.recipients) + len(envelope.discarded) >= 1
        assert envelope.copies + len(envelope.discarded) <= self._rules.max_recipients
        assert envelope.lmtp == self._rules.lmtp
        assert envelope.tls or not self._rules.require_tls
        message = Message("0" * 32, envelope, event.content, self._ip, 1.7e9)
        self._log.message(message, reply.OK, 0.0)
        for row in self._rows.rows(message):
            front = parse_front(row.mail)
            assert front is not None
            assert row.mail[front.size :] == event.content
            assert front.envelope.tls == envelope.tls
            assert front.envelope.lmtp == envelope.lmtp


def _cut(stream: bytes, size: int) -> Iterator[bytes]:
    size = size if 0 < size < 255 else max(1, len(stream))
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


def _check_log(text: str) -> None:
    for line in text.removesuffix("\n").split("\n"):
        assert _LOG_LINE.fullmatch(line), line


def _check_records(text: bytes) -> None:
    for line in text.splitlines():
        json.loads(line)


TARGETS: dict[str, Target] = {
    each.__name__: each for each in (address, command, header, body, proxy, hello, session)
}
