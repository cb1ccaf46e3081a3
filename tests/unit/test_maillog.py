"""Is each event one line, that a script can take apart, whatever the client said?"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.maillog import MAX_FIELD, LineFormatter, MailLog, json_line, logfmt, quote, timestamp
from gsmtpd.message.row import Message
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.session import Envelope

Line = Callable[[Iterable[tuple[str, object]]], str]
U = Mailbox("u", "example.com")
SENDER = Mailbox("sender", "example.org")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |$)')


def parsed(line: str) -> dict[str, str]:
    """The fields of a logfmt line."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        match = PAIR.match(line, at)
        assert match, line[at:]
        name, value = match.groups()
        assert name not in found
        found[name] = json.loads(value) if value[0] == '"' else value
        at = match.end()
    return found


def a_message(helo: str = "client.example.org", recipients: int = 1) -> Message:
    """A message of 3 octets."""
    envelope = Envelope(helo, True, SENDER, (U,) * recipients)
    return Message("id1", envelope, b"abc", "192.0.2.1", 1_700_000_000.0)


class Written:
    """A mail log and what it wrote."""

    def __init__(self, **options: object) -> None:
        self.texts: list[str] = []
        self.log = MailLog(self.texts.append, **options)  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        """The lines so far."""
        self.log.flush()
        text = "".join(self.texts)
        assert not text or text.endswith("\n")
        return text.split("\n")[:-1]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", "plain"),
        ("a@example.com", "a@example.com"),
        ("<a@b>", "<a@b>"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', r'"a\"b"'),
        ("a\\b", r'"a\\b"'),
        ("a\nb", r'"a\nb"'),
        ("a\r\nevent=accepted", r'"a\r\nevent=accepted"'),
        ("a\tb", r'"a\tb"'),
        ("\x00\x1b[31m\x7f", r'"\u0000\u001b[31m\u007f"'),
        ("ü", r'"\u00fc"'),
        ("a\u2028b\x85c", r'"a\u2028b\u0085c"'),
        ("\U0001f600", r'"\ud83d\ude00"'),
        ("\udcff", '"?"'),
        ("x" * 512, "x" * 512),
        ("x" * 513, f'"{"x" * 512}"'),
        ("é" * 300, '"' + r"\u00e9" * 256 + '"'),
    ],
)
def test_quote(value: str, quoted: str) -> None:
    assert quote(value) == quoted


@given(st.text())
def test_a_value_is_printable_ascii_on_one_line(value: str) -> None:
    quoted = quote(value)
    assert re.fullmatch(r'[\x21-\x7e]+|"[\x20-\x7e]*"', quoted)
    said = json.loads(quoted) if quoted[0] == '"' else quoted
    assert said == value.encode("utf-8", "replace")[:MAX_FIELD].decode("utf-8", "ignore")
    assert len(said.encode()) <= MAX_FIELD == 512


@pytest.mark.parametrize("line", [logfmt, json_line])
def test_no_value_of_a_line_is_longer_than_512_octets(line: Line) -> None:
    text = line([("a", "é" * 1000), ("b", "x" * 1000), ("c", 5)])
    said = parsed(text) if line is logfmt else json.loads(text)
    assert said["b"] == "x" * 512
    assert len(said["a"].encode()) == 512
    assert int(said["c"]) == 5


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.text()), unique_by=lambda pair: pair[0]))
def test_lines_can_be_taken_apart(fields: list[tuple[str, str]]) -> None:
    assert len(logfmt(fields).splitlines()) <= 1
    assert parsed(logfmt(fields)).keys() == dict(fields).keys()
    assert len(json_line(fields).splitlines()) == 1
    assert json.loads(json_line(fields)).keys() == dict(fields).keys()


def test_timestamp() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"
    assert timestamp(1_700_000_000) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("answer", "event", "code"),
    [(reply.OK, "accepted", "250"), (reply.STORAGE_TROUBLE, "refused", "451")],
)
def test_message(answer: Reply, event: str, code: str) -> None:
    written = Written()
    written.log.message(a_message(), answer, 0.0123)
    (line,) = written.lines()
    fields = parsed(line)
    assert TIME.fullmatch(fields.pop("time"))
    assert fields == {
        "event": event,
        "id": "id1",
        "client": "192.0.2.1",
        "helo": "client.example.org",
        "from": "<sender@example.org>",
        "to": "u@example.com",
        "recipients": "1",
        "size": "3",
        "seconds": "0.012",
        "reply": code,
    }


@given(
    helo=st.one_of(st.text(max_size=20), st.text("x", min_size=440, max_size=520)),
    local=st.one_of(st.sampled_from(["u", '"a b"', "a=b", "ü"]), st.text(max_size=20)),
    null=st.booleans(),
    seconds=st.floats(0, 1000),
)
def test_ordinary_messages_have_no_other_line(
    helo: str, local: str, null: bool, seconds: float
) -> None:
    """The short way to a line and the long one say the same."""
    message = a_message(helo)
    sender, recipient = None if null else Mailbox(local, "a"), Mailbox(local, "b")
    envelope = message.envelope._replace(sender=sender, recipients=(recipient,))
    written = Written()
    written.log.message(message._replace(envelope=envelope), reply.OK, seconds)
    (line,) = written.lines()
    time, _, rest = line.partition(" ")
    assert TIME.fullmatch(time.removeprefix("time="))
    assert rest == logfmt(
        [
            ("event", "accepted"),
            ("id", "id1"),
            ("client", "192.0.2.1"),
            ("helo", helo),
            ("from", f"<{sender or ''}>"),
            ("to", str(recipient)),
            ("recipients", 1),
            ("size", 3),
            ("seconds", f"{seconds:.3f}"),
            ("reply", 250),
        ]
    )


def test_many_recipients_are_counted_and_five_named() -> None:
    written = Written()
    written.log.message(a_message(recipients=1000), reply.OK, 0.0)
    fields = parsed(written.lines()[0])
    assert fields["recipients"] == "1000"
    assert fields["to"] == ",".join(["u@example.com"] * 5)


def test_the_null_sender() -> None:
    written = Written()
    message = a_message()
    null = message._replace(envelope=message.envelope._replace(sender=None))
    written.log.message(null, reply.OK, 0.0)
    assert parsed(written.lines()[0])["from"] == "<>"


def test_refused_and_closed() -> None:
    written = Written()
    written.log.recipient_refused("192.0.2.1", U, reply.NOT_SERVED)
    written.log.closed("192.0.2.1", reply.TOO_MANY_ERRORS)
    first, second = map(parsed, written.lines())
    assert (first["event"], first["client"], first["to"]) == (
        "refused",
        "192.0.2.1",
        "u@example.com",
    )
    assert first["reply"] == str(reply.NOT_SERVED)
    assert (second["event"], second["reply"]) == ("closed", str(reply.TOO_MANY_ERRORS))


@pytest.mark.parametrize("line", [logfmt, json_line])
@given(helo=st.text(max_size=600), local=st.text(max_size=100))
def test_a_client_forges_no_line(line: Line, helo: str, local: str) -> None:
    written = Written(line=line)
    written.log.message(a_message(helo=f"x\nevent=accepted {helo}"), reply.NO_SPACE, 1.0)
    written.log.recipient_refused("192.0.2.1", Mailbox(local, "example.com"), reply.NOT_SERVED)
    lines = written.lines()
    assert len(lines) == 2
    read = parsed if line is logfmt else json.loads
    assert [read(each)["event"] for each in lines] == ["refused", "refused"]
    assert all(each.isascii() and len(each.splitlines()) == 1 for each in lines)


def test_json_keeps_numbers() -> None:
    written = Written(line=json_line)
    written.log.message(a_message(), reply.OK, 0.5)
    fields = json.loads(written.lines()[0])
    assert (fields["size"], fields["recipients"], fields["reply"]) == (3, 1, 250)


def test_lines_are_written_together_at_flush() -> None:
    written = Written()
    written.log.closed("192.0.2.1", reply.TIMED_OUT)
    written.log.closed("192.0.2.2", reply.TIMED_OUT)
    assert written.texts == []
    written.log.flush()
    assert len(written.texts) == 1
    assert written.texts[0].count("\n") == 2
    written.log.flush()
    assert len(written.texts) == 1


def test_a_log_that_is_off_gathers_nothing() -> None:
    written = Written(enabled=False)
    written.log.message(a_message(), reply.OK, 0.0)
    written.log.recipient_refused("192.0.2.1", U, reply.NOT_SERVED)
    written.log.closed("192.0.2.1", reply.TIMED_OUT)
    assert written.lines() == []


# The program's own log


def record(text: str, *, fault: bool = False) -> logging.LogRecord:
    """A log record that says `text`."""
    trouble = None
    if fault:
        try:
            raise ValueError("bad\nworse")
        except ValueError:
            trouble = sys.exc_info()
    return logging.LogRecord("gsmtpd", logging.WARNING, "file", 1, "%s", (text,), trouble)


@pytest.mark.parametrize("line", [logfmt, json_line])
def test_a_record_is_one_line(line: Line) -> None:
    text = LineFormatter(line).format(record("two\nlines\u2028and more"))
    assert len(text.splitlines()) == 1
    said = parsed(text) if line is logfmt else json.loads(text)
    assert TIME.fullmatch(said["time"])
    assert (said["level"], said["msg"]) == ("warning", "two\nlines\u2028and more")


def test_a_traceback_is_indented() -> None:
    head, *rest = LineFormatter(logfmt).format(record("fault", fault=True)).split("\n")
    assert parsed(head)["msg"] == "fault"
    assert len(rest) >= 4
    assert all(line.startswith("  ") for line in rest)
    assert rest[-2:] == ["  ValueError: bad", "  worse"]
