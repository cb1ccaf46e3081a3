"""Whatever the octets: whole == byte by byte == any cuts, no exception, bounded buffers."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsmtpd.smtp import reply
from gsmtpd.smtp.events import Event, MessageReceived
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from tests.dialogs import HOST_NAME
from tests.dialogs.false_ends import FALSE_ENDS, unstuffed
from tests.dialogs.pure import PureClient

# Limits that a short conversation meets.
SMALL = Rules(
    HOST_NAME, max_size=300, max_recipients=3, max_messages=3, max_errors=8, max_commands=9
)
STRICT = Rules(HOST_NAME, max_size=300, max_messages=3, reject_bare_newline=True)
OTHERWISE = Rules(HOST_NAME, max_size=300, max_recipients=3, lmtp=True, starttls=True)
GUARDED = Rules(HOST_NAME, max_size=300, starttls=True, require_tls=True, chunking=False)
ROOMY = Rules(HOST_NAME, max_size=1000, max_errors=1000, max_commands=1000)

COMMANDS = [
    b"HELO a", b"EHLO a", b"EHLO", b"MAIL FROM:<a@example.org>", b"MAIL FROM:<>", b"mail from:<a>",
    b"MAIL FROM:<a@example.org> SIZE=9 BODY=8BITMIME SMTPUTF8", b"MAIL FROM:<> SIZE=301",
    b"MAIL FROM:<> X=" + b"x" * 2030, b"MAIL FROM:<> X=" + b"x" * 2040,
    b"RCPT TO:<u@example.com>", b"RCPT TO:<v@example.com>", b"RCPT TO:<u@example.net>",
    b"RCPT TO:<>", b"RCPT TO:<Postmaster>", b"RCPT TO:<\xc3\xbc@example.com>",
    b"RCPT TO:<\xff@example.com>", b"DATA", b"DATA", b"DATA ", b"data \t", b"DATA x", b"RSET",
    b"NOOP", b"NOOP " + b"x" * 505, b"NOOP " + b"x" * 506, b"HELP", b"VRFY a", b"VRFY",
    b"EXPN a",
    b"LHLO a", b"LHLO", b"STARTTLS", b"STARTTLS x", b"XCLIENT ADDR=192.0.2.1", b"XCLIENT",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2", b"MAIL FROM:<> BODY=BINARYMIME", b"BDAT 0",
    b"BDAT 4 LAST", b"BDAT 9", b"BDAT 301", b"bdat 302 last", b"BDAT 0 LAST", b"BDAT", b"BDAT -1",
    b"QUIT", b"QUIT x", b"", b" ", b"FOO", b"x" * 513, b"NOOP\rNOOP", b"NOOP\nNOOP",
]  # fmt: skip
FRAGMENTS = [
    b"\r\n", b"\r", b"\n", b".", b"..", b"\r\n.\r\n", b"\r\n.", b"\n.\n", b"\x00", b"\xff", b"text",
    b"Received: x\r\n", b"Received: x\r\n" * 100, b"DATA", b"QUIT", b"x" * 298, b"x" * 3000,
    b"x" * 70000, *FALSE_ENDS.values(),
]  # fmt: skip

lines = st.sampled_from(COMMANDS).map(lambda command: command + b"\r\n")
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map(b"".join)
bodies = st.one_of(fragments, st.binary(max_size=60)).map(lambda body: body + b"\r\n.\r\n")
transactions = st.builds(
    lambda rcpts, body: b"RSET\r\nMAIL FROM:<a@example.org>\r\n" + rcpts + b"DATA\r\n" + body,
    st.sampled_from([b"RCPT TO:<u@example.com>\r\n" * n for n in (0, 1, 2, 4)]),
    bodies,
)
in_chunks = st.builds(
    lambda rcpts, chunks: (
        b"RSET\r\nMAIL FROM:<>\r\n"
        + rcpts
        + b"".join(b"BDAT %d\r\n%s" % (len(chunk), chunk) for chunk in chunks)
        + b"BDAT 0 LAST\r\n"
    ),
    st.sampled_from([b"RCPT TO:<u@example.com>\r\n" * n for n in (0, 1, 2)]),
    st.lists(st.one_of(fragments, st.binary(max_size=60)), max_size=4),
)
streams = st.builds(
    lambda start, rest: start + b"".join(rest),
    st.sampled_from([b"", b"HELO a\r\n", b"EHLO a\r\n", b"LHLO a\r\n"]),
    st.lists(st.one_of(lines, lines, transactions, bodies, fragments, in_chunks), max_size=14),
)
# What may be DATA, QUIT or STARTTLS.
TURN = re.compile(rb"(?i)(?:DATA|QUIT|STARTTLS)[^\n]*\r\n")


class Outcome(NamedTuple):
    """What a conversation came to."""

    said: bytes
    events: list[Event]
    farewell: Reply | None


def turns(stream: bytes) -> list[int]:
    """Where a client that keeps its turn waits for the reply."""
    return [match.end() for match in TURN.finditer(stream)]


def bursts(stream: bytes) -> list[bytes]:
    """`stream` in bursts that respect the turn."""
    return [stream[start:end] for start, end in pairwise([0, *turns(stream), len(stream)])]


def outcome(client: PureClient) -> Outcome:
    """What has become of the conversation of `client`."""
    return Outcome(client.send(), client.events, client.session.farewell)


def talk(rules: Rules, pieces: list[bytes]) -> Outcome:
    """The outcome of sending `pieces`, with each event answered at once."""
    client = PureClient(rules)
    said = b"".join(client.send(piece) for piece in pieces)
    end = outcome(client)
    return end._replace(said=said + end.said)


def talk_late(rules: Rules, stream: list[bytes], size: int) -> Outcome:
    """The outcome where a burst comes in pieces of `size`, and answers only at its end."""
    client = PureClient(rules)
    for burst in stream:
        asked: Event | None = None
        for i in range(0, len(burst), size):
            event = client.session.receive(burst[i : i + size])
            assert asked is None or event is None
            asked = asked or event
            assert client.session.waiting == (asked is not None)
        client.answer(asked)
    return outcome(client)


rules = st.sampled_from([SMALL, STRICT, OTHERWISE, GUARDED])


@settings(max_examples=200, deadline=None)
@given(rules, streams, st.sets(st.integers(0, 3000), max_size=12))
def test_cuts_mean_nothing(rules: Rules, stream: bytes, cuts: set[int]) -> None:
    expected = talk(rules, bursts(stream))
    assert talk(rules, [stream[i : i + 1] for i in range(len(stream))]) == expected
    at = sorted({0, *(cut for cut in cuts if cut < len(stream)), *turns(stream), len(stream)})
    pieces = [stream[start:end] for start, end in pairwise(at)]
    assert talk(rules, pieces) == expected


@settings(max_examples=150, deadline=None)
@given(rules, streams, st.sampled_from([1, 7, 100, 1 << 20]))
def test_late_answers_change_nothing(rules: Rules, stream: bytes, size: int) -> None:
    assert talk_late(rules, bursts(stream), size) == talk(rules, bursts(stream))


@settings(max_examples=200, deadline=None)
@given(rules, st.lists(st.one_of(streams, st.binary(max_size=2000)), max_size=5))
def test_any_octets(rules: Rules, pieces: list[bytes]) -> None:
    """Turns or not: no exception, replies that are replies, messages that keep the rules."""
    client = PureClient(rules)
    said = client.send(*pieces)
    rows = said.split(b"\r\n")
    assert rows.pop() == b""
    for row in rows:
        assert re.fullmatch(rb"[245][0-5][0-9][ -][\x20-\x7e]+|354 [\x20-\x7e]+", row)
    for event in client.events:
        if isinstance(event, MessageReceived):
            assert len(event.content) <= rules.max_size
            assert 1 <= len(event.envelope.recipients) <= rules.max_recipients
    assert len(client.messages) <= rules.max_messages
    if client.session.closing:
        assert client.send(b"NOOP\r\n", b".\r\n") == b""


@settings(max_examples=100, deadline=None)
@given(rules, st.lists(st.one_of(fragments, lines, transactions), max_size=10))
@example(
    SMALL, [b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<u@example.com>\r\n", b"DATA\r\n", b"x" * 5000]
)
@example(SMALL, [b"x" * 2047, b"\r", b"x" * 60000])
def test_buffers_are_bounded(rules: Rules, pieces: list[bytes]) -> None:
    client = PureClient(rules)
    for piece in pieces:
        client.send(piece)
        # A line of a command, or a message and the octets that may be its end.
        assert client.session.buffered <= max(2048, rules.max_size + 8)


def stuffed(content: bytes) -> bytes:
    """`content` as a client sends it (RFC 5321 section 4.5.2), with the final dot."""
    lines = content.split(b"\r\n")
    dotted = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
    return (dotted if dotted.endswith(b"\r\n") else dotted + b"\r\n") + b".\r\n"


contents = st.one_of(
    st.binary(max_size=400),
    st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"a", b"\x00"])).map(b"".join),
    fragments,
)


@settings(max_examples=300, deadline=None)
@given(contents, st.integers(1, 50))
@example(b"", 1)
@example(b".", 1)
@example(b"\r\n.\r\n.\r\n", 2)
def test_a_message_comes_back_as_it_was(content: bytes, size: int) -> None:
    client = PureClient()
    client.send(b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<u@example.com>\r\n")
    client.send(b"DATA\r\n")
    # A message is lines: without a last CRLF it could not be sent, and the empty one needs none.
    sent = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    wire = stuffed(sent) if sent else b".\r\n"
    said = client.send(*(wire[i : i + size] for i in range(0, len(wire), size)))
    if client.messages:
        assert said.startswith(b"250 ")
        assert client.messages == [sent]
    else:
        assert said == reply.MAIL_LOOP.wire
        assert sent.lower().count(b"received:") >= 100
    assert unstuffed(wire[:-3]) == sent


class Model:
    """The order of commands in a few words: what a client may do next, and the code it hears."""

    def __init__(self) -> None:
        self.greeted = False
        self.sender = False
        self.recipients = 0
        self.stored: list[int] = []

    def says(self, command: str) -> list[int]:
        """The codes of the replies to `command`; DATA brings its message along."""
        match command:
            case "helo" | "ehlo":
                self.greeted = True
                self.forget()
            case "mail":
                if not self.greeted or self.sender:
                    return [503]
                self.sender = True
            case "rcpt" | "relay":
                if not self.sender:
                    return [503]
                if command == "relay":
                    return [550]
                self.recipients += 1
            case "data":
                if not self.recipients:
                    return [503]
                self.stored.append(self.recipients)
                self.forget()
                return [354, 250]
            case "rset":
                self.forget()
            case "bad":
                return [501 if self.greeted and not self.sender else 503]
        return [250]

    def forget(self) -> None:
        """The transaction is over."""
        self.sender = False
        self.recipients = 0


WORDS = {
    "helo": b"HELO a\r\n",
    "ehlo": b"EHLO a\r\n",
    "mail": b"MAIL FROM:<a@example.org>\r\n",
    "bad": b"MAIL FROM:<a@@example.org>\r\n",
    "rcpt": b"RCPT TO:<u@example.com>\r\n",
    "relay": b"RCPT TO:<u@example.net>\r\n",
    "data": b"DATA\r\n",
    "rset": b"RSET\r\n",
    "noop": b"NOOP\r\n",
}
usual = st.lists(st.sampled_from(["mail", "rcpt", "rcpt", "data", "relay"]), max_size=6)
stories = st.lists(
    st.one_of(st.sampled_from([*WORDS]).map(lambda word: [word]), usual), max_size=12
)


def codes(said: bytes) -> list[int]:
    """The codes of the replies, each reply once."""
    return [int(line[:3]) for line in said.split(b"\r\n") if line[3:4] == b" "]


@settings(max_examples=200, deadline=None)
@given(stories, st.booleans())
def test_the_order_of_commands(story: list[list[str]], greet: bool) -> None:
    client, model = PureClient(ROOMY), Model()
    client.send()
    for word in [*(["helo"] if greet else []), *(word for part in story for word in part)]:
        said = codes(client.send(WORDS[word]))
        if word == "data" and said == [354]:
            said += codes(client.send(b"text\r\n.\r\n"))
        assert said == model.says(word), word
    messages = [event for event in client.events if isinstance(event, MessageReceived)]
    assert [len(message.envelope.recipients) for message in messages] == model.stored
