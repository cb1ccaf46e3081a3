"""Is each event one line, that a script can take apart, whatever the client said?"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.maillog import (
    MAX_FIELD,
    MAX_RECORDS,
    NO_TLS,
    LineFormatter,
    MailLog,
    json_line,
    logfmt,
    quote,
    timestamp,
)
from gsmtpd.message.row import Message
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.refusal import About, Refusal
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from tests.dialogs.pure import PureClient

Line = Callable[[Iterable[tuple[str, object]]], str]
U = Mailbox("u", "example.com")
SENDER = Mailbox("sender", "example.org")
TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384"
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
        ("a\r\nresult=accepted", r'"a\r\nresult=accepted"'),
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
    ("answer", "result", "said"),
    [(reply.OK, "accepted", "250"), (reply.STORAGE_TROUBLE, "refused", str(reply.STORAGE_TROUBLE))],
)
def test_message(answer: Reply, result: str, said: str) -> None:
    written = Written()
    written.log.message(a_message(), answer, 0.0123)
    (line,) = written.lines()
    fields = parsed(line)
    assert TIME.fullmatch(fields.pop("time"))
    assert fields == {
        "result": result,
        "id": "id1",
        "client": "192.0.2.1",
        "helo": "client.example.org",
        "from": "<sender@example.org>",
        "to": "u@example.com",
        "recipients": "1",
        "size": "3",
        "reply": said,
        "delay": "0.012",
        "tls": "no",
    }


@given(
    helo=st.one_of(st.text(max_size=20), st.text("x", min_size=440, max_size=520)),
    local=st.one_of(st.sampled_from(["u", '"a b"', "a=b", "ü"]), st.text(max_size=20)),
    null=st.booleans(),
    delay=st.floats(0, 1000),
    tls=st.sampled_from(["", TLS]),
)
def test_ordinary_messages_have_no_other_line(
    helo: str, local: str, null: bool, delay: float, tls: str
) -> None:
    """The short way to a line and the long one say the same."""
    message = a_message(helo)
    sender, recipient = None if null else Mailbox(local, "a"), Mailbox(local, "b")
    envelope = message.envelope._replace(sender=sender, recipients=(recipient,), tls=tls)
    written = Written()
    written.log.message(message._replace(envelope=envelope), reply.OK, delay)
    (line,) = written.lines()
    time, _, rest = line.partition(" ")
    assert TIME.fullmatch(time.removeprefix("time="))
    assert rest == logfmt(
        [
            ("result", "accepted"),
            ("id", "id1"),
            ("client", "192.0.2.1"),
            ("helo", helo),
            ("from", f"<{sender or ''}>"),
            ("to", str(recipient)),
            ("recipients", 1),
            ("size", 3),
            ("reply", 250),
            ("delay", f"{delay:.3f}"),
            ("tls", tls or NO_TLS),
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


def test_stored_unheard() -> None:
    """All that is known of the message, but no reply: there was none."""
    written = Written()
    written.log.stored_unheard(a_message(), 31.5)
    fields = parsed(written.lines()[0])
    assert (fields["result"], fields["id"], fields["delay"]) == ("stored_unheard", "id1", "31.500")
    assert fields["to"] == "u@example.com"
    assert "reply" not in fields


def test_closed() -> None:
    written = Written()
    written.log.closed("192.0.2.1", "", reply.NOT_SMTP)
    written.log.closed("192.0.2.1", "client.example.org", reply.TIMED_OUT)
    fields = [parsed(line) for line in written.lines()]
    for each in fields:
        del each["time"]
    first = {"result": "closed", "client": "192.0.2.1", "reply": str(reply.NOT_SMTP), "tls": "no"}
    second = first | {"helo": "client.example.org", "reply": str(reply.TIMED_OUT)}
    assert fields == [first, second]


def test_dropped() -> None:
    """Closed without a word: not what was said is told, but why."""
    written = Remembered()
    written.log.dropped("192.0.2.1", "", "TLS: no shared cipher")
    written.log.dropped("192.0.2.1", "client.example.org", "replies not read", TLS)
    first, second = map(parsed, written.lines())
    assert TIME.fullmatch(first.pop("time"))
    assert TIME.fullmatch(second.pop("time"))
    closed = {"result": "closed", "client": "192.0.2.1"}
    assert first == closed | {"reason": "TLS: no shared cipher", "tls": "no"}
    assert second == closed | {
        "helo": "client.example.org", "reason": "replies not read", "tls": TLS,
    }  # fmt: skip
    assert [record["keys"] for record in written.records()] == [["192.0.2.1"]] * 2


@pytest.mark.parametrize("line", [logfmt, json_line])
@pytest.mark.parametrize("tls", ["", TLS])
def test_every_line_tells_of_tls(line: Line, tls: str) -> None:
    written = Remembered(line=line)
    log = written.log
    secured, thrown = (
        message._replace(envelope=message.envelope._replace(tls=tls))
        for message in (a_message(), discarding())
    )
    log.message(secured, reply.OK, 0.0)
    log.message(secured, reply.NO_SPACE, 0.0)
    log.duplicate(secured, "id0", reply.OK, 0.0)
    log.stored_unheard(secured, 0.0)
    log.discarded(thrown, reply.OK, 0.0)
    log.refused("192.0.2.1", Refusal(reply.NOT_SERVED, False, "h", About("<>", (U,))), tls)
    log.closed("192.0.2.1", "h", reply.TIMED_OUT, tls)
    log.dropped("192.0.2.1", "h", "because", tls)
    read = parsed if line is logfmt else json.loads
    lines = [read(text) for text in written.lines()]
    assert [fields["tls"] for fields in lines] == [tls or "no"] * 8
    assert [record["tls"] for record in written.records()] == [tls or "no"] * 7


def discarding(accepted: tuple[Mailbox, ...] = ()) -> Message:
    """A message that is thrown away for two, and kept for `accepted`."""
    message = a_message()
    thrown = (Mailbox("x", "example.com"), Mailbox("Y", "example.com"))
    return message._replace(
        envelope=message.envelope._replace(recipients=accepted, discarded=thrown)
    )


def test_discarded() -> None:
    written = Written()
    written.log.discarded(discarding(), reply.OK, 0.0123)
    fields = parsed(written.lines()[0])
    assert TIME.fullmatch(fields.pop("time"))
    assert fields == {
        "result": "discarded",
        "id": "id1",
        "client": "192.0.2.1",
        "helo": "client.example.org",
        "from": "<sender@example.org>",
        "to": "x@example.com,Y@example.com",
        "recipients": "2",
        "size": "3",
        "reply": "250",
        "delay": "0.012",
        "tls": "no",
    }


def test_a_message_may_be_kept_for_some_and_thrown_away_for_others() -> None:
    written = Written()
    message = discarding(accepted=(U,))
    written.log.message(message, reply.OK, 0.0)
    written.log.discarded(message, reply.OK, 0.0)
    kept, thrown = map(parsed, written.lines())
    assert (kept["result"], kept["to"], kept["recipients"]) == ("accepted", str(U), "1")
    assert (thrown["result"], thrown["recipients"]) == ("discarded", "2")
    assert kept["id"] == thrown["id"]


def test_but_it_is_refused_for_all() -> None:
    written = Written()
    written.log.message(discarding(accepted=(U,)), reply.NO_SPACE, 0.0)
    fields = parsed(written.lines()[0])
    assert fields["to"] == "u@example.com,x@example.com,Y@example.com"


# What is remembered


class Remembered(Written):
    """A mail log, and what it hands on to be remembered."""

    def __init__(self, **options: object) -> None:
        self.pieces: list[bytes] = []
        super().__init__(recent=self.pieces.append, **options)

    def records(self) -> list[dict[str, Any]]:
        """The records so far."""
        self.log.flush()
        assert all(piece.endswith(b"\n") and piece.isascii() for piece in self.pieces)
        return [json.loads(line) for line in b"".join(self.pieces).splitlines()]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("line", [logfmt, json_line])
def test_what_was_not_simply_stored_is_remembered(enabled: bool, line: Line) -> None:
    written = Remembered(enabled=enabled, line=line)
    log, message = written.log, a_message()
    log.message(message, reply.OK, 0.0)
    log.message(message, reply.NO_SPACE, 0.0)
    log.duplicate(message, "id0", reply.OK, 0.0)
    log.stored_unheard(message, 0.0)
    log.discarded(discarding(), reply.OK, 0.0)
    log.refused("192.0.2.2", Refusal(reply.NOT_SERVED, False, "h", About("<>", (U,))))
    log.closed("192.0.2.1", "h", reply.TIMED_OUT)
    log.dropped("192.0.2.1", "h", "because")
    records = written.records()
    results = ["refused", "duplicate", "stored_unheard", "discarded", "refused", *["closed"] * 2]
    assert [record["result"] for record in records] == results
    ends = ["192.0.2.1", "sender@example.org", "u@example.com"]
    thrown = [*ends[:2], "x@example.com", "y@example.com"]
    rcpt = ["192.0.2.2", "<>", "u@example.com"]
    assert [r.pop("keys") for r in records] == [ends, ends, ends, thrown, rcpt, ends[:1], ends[:1]]
    if enabled and line is json_line:
        lines = [json.loads(text) for text in written.lines()]
        assert lines[1:] == records
    assert len(written.lines()) == (8 if enabled else 0)


def test_spooled() -> None:
    """As accepted, for who counts, and remembered, as nothing else tells of it for a while."""
    written = Remembered()
    written.log.spooled(a_message(), reply.queued("id1"), 0.0123)
    (line,) = written.lines()
    ordinary = Written()
    ordinary.log.message(a_message(), reply.queued("id1"), 0.0123)
    (other,) = ordinary.lines()
    fields = parsed(line)
    assert fields.pop("spooled") == "yes"
    assert fields | {"time": ""} == parsed(other) | {"time": ""}
    (record,) = written.records()
    assert (record["result"], record["spooled"]) == ("accepted", "yes")


def test_mail_for_an_alias_is_remembered() -> None:
    written = Remembered()
    message = a_message(recipients=2)
    other, third = Mailbox("Other", "example.com"), Mailbox("third", "example.com")
    envelope = message.envelope._replace(mailboxes=((U,), (other, third, U)))
    written.log.message(message._replace(envelope=envelope), reply.OK, 0.0)
    written.log.message(message._replace(envelope=envelope), reply.NO_SPACE, 0.0)
    accepted, refused = written.records()
    assert accepted["result"] == "accepted"
    assert accepted["mailboxes"] == "Other@example.com,third@example.com"
    assert accepted["keys"][2:] == ["u@example.com", "other@example.com", "third@example.com"]
    assert "mailboxes" not in refused
    assert "mailboxes" not in written.lines()[0]


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("FROM:<a@@B>", "a@@b"),
        ("FROM:<A@b> SIZE=x", "a@b"),
        ("FROM:", "from:"),
        ("<>", "<>"),
        ("<a@b>", "a@b"),
        ('<"<a>"@b>', '"<a>"@b'),
        ("<" + "x" * 600 + ">", "x" * 512),
    ],
)
def test_what_cannot_be_read_is_found_as_well(said: str, key: str) -> None:
    written = Remembered()
    quoted = Mailbox('"<a>"', "b")
    refusal = Refusal(reply.BAD_SENDER, False, "h", About(said, (quoted,)))
    written.log.refused("192.0.2.1", refusal)
    assert [*dict.fromkeys(["192.0.2.1", key, '"<a>"@b'])] == written.records()[0]["keys"]


def test_a_record_has_all_recipients_but_no_more_than_1000_keys() -> None:
    written = Remembered()
    many = tuple(Mailbox(f"u{n}", "example.com") for n in range(2000))
    message = a_message()
    envelope = message.envelope._replace(recipients=many)
    written.log.message(message._replace(envelope=envelope), reply.NO_SPACE, 0.0)
    (record,) = written.records()
    assert record["recipients"] == 2000
    assert len(record["keys"]) == 1000
    assert record["keys"][-1] == "u997@example.com"


def test_a_flood_between_two_flushes_is_cut_and_counted() -> None:
    written = Remembered()
    for _ in range(10_000):
        written.log.closed("192.0.2.1", "", reply.TIMED_OUT)
    *records, last = written.records()
    assert len(written.pieces) == 1
    assert len(written.pieces[0]) < MAX_RECORDS + 1000
    assert last == {"lost": 10_000 - len(records)}
    assert len(records) > 100
    assert len(written.lines()) == 10_000
    written.log.closed("192.0.2.2", "", reply.TIMED_OUT)
    assert written.records()[-1]["client"] == "192.0.2.2", "the next flush has room again"


@given(helo=st.text(max_size=600), local=st.text(max_size=100))
def test_a_client_forges_no_record(helo: str, local: str) -> None:
    written = Remembered()
    recipients = (Mailbox(local, "example.com"), f"TO:<{local}>")
    about = About(f"FROM:{local}", recipients)
    written.log.refused("192.0.2.1", Refusal(reply.NOT_SERVED, False, helo, about))
    (record,) = written.records()
    assert record["keys"][0] == "192.0.2.1"


# Refusals: a session notes them, the log has a line for each.

HELO = b"HELO h"
MAIL = b"MAIL FROM:<sender@example.org>"
RCPT = b"RCPT TO:<u@example.com>"
FROM = "<sender@example.org>"
LIMITS = Rules("mx.example.com", max_size=20, max_recipients=1, max_messages=1, max_commands=9)


def refusals(rules: Rules, *pieces: bytes) -> list[dict[str, str]]:
    """The lines a session leaves in the log that hears `pieces`, CRLF behind each."""
    client = PureClient(rules)
    for piece in pieces:
        client.send(piece + b"\r\n")
    written = Written()
    for refusal in client.session.refusals:
        written.log.refused("192.0.2.1", refusal)
    fields = [parsed(line) for line in written.lines()]
    for each in fields:
        assert (each.pop("result"), each.pop("client")) == ("refused", "192.0.2.1")
        assert each.pop("tls") == "no"
        assert TIME.fullmatch(each.pop("time"))
    return fields


@pytest.mark.parametrize(
    ("heard", "fields"),
    [
        # MAIL
        ([MAIL], {"from": FROM, "reply": reply.HELO_FIRST}),
        ([HELO, MAIL, MAIL], {"helo": "h", "from": FROM, "reply": reply.NESTED_MAIL}),
        (
            [HELO, MAIL + b" SIZE=21"],
            {"helo": "h", "from": FROM, "size": "21", "reply": reply.TOO_BIG},
        ),
        ([HELO, b"MAIL FROM:<>a"], {"helo": "h", "from": "FROM:<>a", "reply": reply.MAIL_SYNTAX}),
        (
            [HELO, b"mail FROM:<a@@b>"],
            {"helo": "h", "from": "FROM:<a@@b>", "reply": reply.BAD_SENDER},
        ),
        (
            [HELO, b"MAIL FROM:<\xff@b>"],
            {"helo": "h", "from": "FROM:<\ufffd@b>", "reply": reply.BAD_SENDER},
        ),
        (
            [HELO, "MAIL FROM:<ü@b>".encode()],
            {"helo": "h", "from": "FROM:<ü@b>", "reply": reply.NEEDS_SMTPUTF8},
        ),
        (
            [HELO, b"MAIL FROM:<> SIZE=x"],
            {"helo": "h", "from": "FROM:<> SIZE=x", "reply": reply.BAD_PARAMETER},
        ),
        (
            [HELO, b"MAIL FROM:<> RET=HDRS"],
            {"helo": "h", "from": "FROM:<> RET=HDRS", "reply": reply.UNKNOWN_PARAMETER},
        ),
        (
            [HELO, b"mail FROM:<a\n@b>"],
            {"helo": "h", "from": "FROM:<a\n@b>", "reply": reply.BARE_NEWLINE_IN_COMMAND},
        ),
        (
            [HELO, b"mail FROM:" + b"x" * 3000],
            {"helo": "h", "from": "FROM:" + "x" * 507, "reply": reply.LINE_TOO_LONG},
        ),
        (
            [HELO, MAIL, RCPT, b"DATA", b".", MAIL],
            {"helo": "h", "from": FROM, "reply": reply.TOO_MANY_MESSAGES},
        ),
        # RCPT
        ([RCPT], {"to": "u@example.com", "recipients": "1", "reply": reply.HELO_FIRST}),
        (
            [HELO, RCPT],
            {"helo": "h", "to": "u@example.com", "recipients": "1", "reply": reply.MAIL_FIRST},
        ),
        (
            [HELO, b"MAIL FROM:<>", b"RCPT TO:<u@example.net>"],
            {
                "helo": "h",
                "from": "<>",
                "to": "u@example.net",
                "recipients": "1",
                "reply": reply.NOT_SERVED,
            },
        ),
        (
            [HELO, MAIL, RCPT, b"RCPT TO:<v@example.com>"],
            {
                "helo": "h",
                "from": FROM,
                "to": "v@example.com",
                "recipients": "1",
                "reply": reply.TOO_MANY_RECIPIENTS,
            },
        ),
        (
            [HELO, MAIL, b"RCPT TO:<u@@example.com>"],
            {
                "helo": "h",
                "from": FROM,
                "to": "TO:<u@@example.com>",
                "recipients": "1",
                "reply": reply.BAD_RECIPIENT,
            },
        ),
        # DATA
        ([b"DATA"], {"reply": reply.HELO_FIRST}),
        ([HELO, MAIL, b"DATA"], {"helo": "h", "from": FROM, "reply": reply.RCPT_FIRST}),
        (
            [HELO, MAIL, RCPT, b"DATA x"],
            {
                "helo": "h",
                "from": FROM,
                "to": "u@example.com",
                "recipients": "1",
                "reply": reply.NO_ARGUMENT_ALLOWED,
            },
        ),
        (
            [HELO, MAIL, RCPT, b"DATA\r\nNOOP"],
            {
                "helo": "h",
                "from": FROM,
                "to": "u@example.com",
                "recipients": "1",
                "reply": reply.OUT_OF_TURN,
            },
        ),
        # The final dot
        (
            [HELO, MAIL, RCPT, b"DATA", b"x" * 19 + b"\r\n..\r\n."],
            {
                "helo": "h",
                "from": FROM,
                "to": "u@example.com",
                "recipients": "1",
                "size": "24",
                "reply": reply.TOO_BIG,
            },
        ),
    ],
)
def test_what_the_session_refuses(heard: list[bytes], fields: dict[str, object]) -> None:
    assert refusals(LIMITS, *heard) == [fields | {"reply": str(fields["reply"])}]


@pytest.mark.parametrize(
    ("rules", "content", "said"),
    [
        (Rules("mx.example.com", reject_bare_newline=True), b"a\nb", reply.BARE_NEWLINE),
        (Rules("mx.example.com"), b"\r\n".join([b"Received: x"] * 100), reply.MAIL_LOOP),
    ],
)
def test_messages_that_the_session_refuses(rules: Rules, content: bytes, said: Reply) -> None:
    found = refusals(rules, b"EHLO h", MAIL, RCPT, RCPT, b"DATA", content + b"\r\n.")
    assert found == [
        {
            "helo": "h",
            "from": FROM,
            "to": "u@example.com,u@example.com",
            "recipients": "2",
            "size": str(len(content) + 2),
            "reply": str(said),
        }
    ]


def test_other_commands_leave_no_line() -> None:
    heard = (b"FOO", b"VRFY", b"EXPN a", b"HELO", b"RSET x", b"", b"NOOP\n", b"x" * 3000)
    assert refusals(Rules("mx.example.com"), *heard, HELO, MAIL, RCPT, b"DATA", b".") == []


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ([HELO, *[b"MAIL FROM:<a@>"] * 10], reply.TOO_MANY_ERRORS),
        ([HELO, *[b"MAIL FROM:<> SIZE=99"] * 9], reply.TOO_MANY_COMMANDS),
        ([HELO, MAIL, *[b"RCPT TO:<u@example.net>"] * 9], reply.TOO_MANY_COMMANDS),
    ],
)
def test_the_reply_is_what_the_client_heard(heard: list[bytes], said: Reply) -> None:
    client = PureClient(LIMITS)
    for each in heard:
        client.send(each + b"\r\n")
    assert [refusal.closes for refusal in client.session.refusals[-2:]] == [False, True]
    assert client.session.refusals[-1].reply == said


def test_a_server_that_stops_refuses() -> None:
    client = PureClient()
    client.send(HELO + b"\r\n")
    client.session.leaving = True
    client.send(MAIL + b"\r\n")
    (refusal,) = client.session.refusals
    assert (refusal.reply, refusal.closes) == (reply.SHUTTING_DOWN, True)
    assert refusal.about.sender == FROM


@pytest.mark.parametrize("piece", [1, 100, 5000])
def test_a_long_line_is_known_however_it_comes(piece: int) -> None:
    line = b"RCPT TO:<" + b"u" * 3000 + b"@example.com>\r\n"
    client = PureClient()
    client.send(HELO + b"\r\n", MAIL + b"\r\n")
    client.send(*(line[i : i + piece] for i in range(0, len(line), piece)))
    (refusal,) = client.session.refusals
    assert (refusal.reply, refusal.about.sender) == (reply.LINE_TOO_LONG, FROM)
    assert str(refusal.about.recipients[0]).startswith("TO:<uuu")


@pytest.mark.parametrize("line", [logfmt, json_line])
@given(helo=st.text(max_size=600), local=st.text(max_size=100))
def test_a_client_forges_no_line(line: Line, helo: str, local: str) -> None:
    written = Written(line=line)
    helo = f"x\nresult=accepted {helo}"
    written.log.message(a_message(helo), reply.NO_SPACE, 1.0)
    recipients = (Mailbox(local, "example.com"), f"TO:<{local}>")
    refusal = Refusal(reply.NOT_SERVED, False, helo, About(f"FROM:{local}", recipients))
    written.log.refused("192.0.2.1", refusal)
    lines = written.lines()
    assert len(lines) == 2
    read = parsed if line is logfmt else json.loads
    assert [read(each)["result"] for each in lines] == ["refused", "refused"]
    assert all(each.isascii() and len(each.splitlines()) == 1 for each in lines)


def test_json_keeps_numbers() -> None:
    written = Written(line=json_line)
    written.log.message(a_message(), reply.OK, 0.12345)
    fields = json.loads(written.lines()[0])
    assert (fields["size"], fields["recipients"], fields["delay"]) == (3, 1, 0.123)
    assert fields["reply"] == "250"  # a text, as that of a refusal


def test_lines_are_written_together_at_flush() -> None:
    written = Written()
    written.log.closed("192.0.2.1", "", reply.TIMED_OUT)
    written.log.closed("192.0.2.2", "", reply.TIMED_OUT)
    assert written.texts == []
    written.log.flush()
    assert len(written.texts) == 1
    assert written.texts[0].count("\n") == 2
    written.log.flush()
    assert len(written.texts) == 1


def test_a_log_that_is_off_gathers_nothing() -> None:
    written = Written(enabled=False)
    written.log.message(a_message(), reply.OK, 0.0)
    written.log.message(a_message(), reply.NO_SPACE, 0.0)
    written.log.stored_unheard(a_message(), 0.0)
    written.log.discarded(discarding(), reply.OK, 0.0)
    written.log.refused("192.0.2.1", Refusal(reply.NOT_SERVED, False, "h", About("<>", (U,))))
    written.log.closed("192.0.2.1", "h", reply.TIMED_OUT)
    written.log.dropped("192.0.2.1", "h", "because")
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
