"""Whole sessions in every mode a listener may have: is each reply, and each mail, the right one?

Held against a model are all replies, that each comes with the octet that completes its command and
not before, every message by its sha256, and the buffers.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gsmtpd.smtp.events import MessageReceived
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import MAX_LINE_WITH_PARAMETERS
from tests.dialogs import HOST_NAME
from tests.dialogs.pure import TLS, PureClient
from tests.fuzz.model import (
    ANSWERS,
    CONTENTS,
    LINE_CODES,
    LONG,
    MAX_COMMANDS,
    MAX_ERRORS,
    MAX_MESSAGES,
    MAX_RCPT,
    MAX_SIZE,
    MODES,
    Mailed,
    Mode,
    Model,
    Step,
    Turn,
)

SESSIONS = 10_000  # in each run of the tests: half a minute of one core

MAIL, RCPT = ("mail",), ("rcpt",)
LATER: list[Step] = [
    ("noop", "NOOP"), ("rset", "RSET"), ("talk", "HELP"), ("talk", "VRFY x"), ("talk", "VRFY"),
    ("talk", "EXPN x"), ("talk", "RSET x"), ("talk", "DATA x"), ("unknown", "FOO"), ("empty", ""),
    ("long", LONG),
]  # fmt: skip
STEPS: list[tuple[Step, ...]] = [
    *((step,) for step in LATER),
    *(((verb,),) for verb in ("helo", "ehlo", "lhlo", "starttls", "quit", "drop")),
    *((("mail", how),) for how in ("", " BODY=8BITMIME", " BODY=BINARYMIME", " SIZE=1401", " FOO")),
    *((("rcpt", who),) for who in ("u@example.com", "v@example.com", "u@example.net", "")),
    *((("xclient", words),) for words in ("HELO=told", "PROTO=SMTP ADDR=192.0.2.7", "FOO=x")),
    (("starttls", " x"),), (("room", "full"),), (("room",),), (("proxy", [*LINE_CODES][-2]),),
    (("http", "GET / HTTP/1.1"),), (("data",),), (("bdat",),),
]  # fmt: skip
START: list[tuple[Step, ...]] = [
    (), (("ehlo",),), (("lhlo",),), (("starttls",), ("ehlo",)), (("starttls",), ("lhlo",)),
    (("xclient", "HELO=told PROTO=ESMTP"), ("helo",)),
]  # fmt: skip
WAYS: list[tuple[Step, ...]] = [
    *((("data", kind),) for kind in CONTENTS),
    *((("data", "text", answer),) for answer in ANSWERS),
    (("data", "text", "", "drop"),),
    *((("bdat", " LAST", kind),) for kind in CONTENTS),
    *((("bdat", " LAST", "text", answer),) for answer in ANSWERS),
    *((("bdat", "", kind), ("bdat", " last", "empty")) for kind in CONTENTS),
    (("bdat", "", "dots"), ("bdat", "", "empty"), ("bdat", "", "bare"), ("bdat", " LAST", "nul")),
    (("bdat", ""), ("drop",), ("bdat",)),
    (("bdat", ""), ("data",), ("rset", "RSET"), ("bdat",)),
    (("bdat", ""), RCPT, ("bdat", "  LAST ")),
]
mails = st.builds(
    lambda mail, recipients, way: (mail, *recipients, *way),
    st.sampled_from([MAIL, MAIL, ("mail", " BODY=BINARYMIME"), ("mail", " BODY=8BITMIME")]),
    st.sampled_from([(), (RCPT,), (RCPT, RCPT), (RCPT, ("rcpt", "u@example.net")), (RCPT,) * 4]),
    st.sampled_from(WAYS),
)
parts = st.lists(st.one_of(mails, st.sampled_from(STEPS)), min_size=1, max_size=8)
CODE = re.compile(rb"([2-5][0-9]{2})(?: ([245]\.[0-9]\.[0-9]))?(?: |\r\n)")


def codes(wire: bytes) -> list[str]:
    """The codes of the replies in `wire`, with the enhanced ones."""
    found = []
    for line in wire.split(b"\r\n")[:-1]:
        match = CODE.match(line + b"\r\n")
        if match:
            found.append(b" ".join(filter(None, match.groups())).decode())
        else:
            assert re.match(rb"[0-9]{3}-", line), line
    return found


def client_of(mode: Mode, model: Model) -> PureClient:
    rules = Rules(
        *(HOST_NAME, MAX_SIZE, MAX_RCPT, MAX_MESSAGES, MAX_ERRORS, MAX_COMMANDS, mode.strict),
        lmtp=mode.lmtp,
        starttls=mode.tls in ("starttls", "required"),
        require_tls=mode.tls == "required",
        chunking=mode.chunking,
    )
    client = PureClient(rules, store=lambda _: model.answers.pop(0))
    client.session.speaks_for_others = mode.xclient
    if mode.tls == "implicit":
        client.session.secured(TLS)
    assert codes(client.send()) == ["220"]
    return client


def send(client: PureClient, burst: list[Turn], size: int) -> None:
    """Send `burst` in pieces of `size`; each reply comes with the last octet of its command."""
    wire = b"".join(turn.octets for turn in burst)
    ends: Counter[int] = Counter()
    expected: list[str] = []
    at = 0
    for turn in burst:
        at += len(turn.octets)
        ends[at] += len(turn.codes)
        expected += turn.codes
    said: list[str] = []
    for start in range(0, len(wire), size):
        said += codes(client.send(wire[start : start + size]))
        due = sum(count for end, count in ends.items() if end <= start + size)
        assert said == expected[:due]
        # A line, or a message and what may be its end.
        assert client.session.buffered <= MAX_LINE_WITH_PARAMETERS + MAX_SIZE + 8


def mailed(event: MessageReceived) -> Mailed:
    envelope = event.envelope
    return Mailed(
        *(hashlib.sha256(event.content).hexdigest(), len(envelope.recipients), envelope.helo),
        *(envelope.esmtp, envelope.lmtp, envelope.tls, envelope.body),
    )


@settings(
    max_examples=SESSIONS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.sampled_from(MODES),
    st.sampled_from(START),
    parts,
    st.sampled_from([1, 5, 100, 1 << 20]),
    st.booleans(),
)
@example(Mode(True, "off", True, False, False), START[2], [(MAIL, RCPT, RCPT, *WAYS[20])], 1, True)
def test_whole_sessions(
    mode: Mode, start: tuple[Step, ...], parts: list[tuple[Step, ...]], size: int, pipelined: bool
) -> None:
    model = Model(mode)
    turns: list[Turn] = []
    expected: list[Mailed] = []
    for step in (*start, *(step for part in parts for step in part)):
        turns += model.step(step)
        if model.closed:
            break
    expected = list(model.stored)
    client = client_of(mode, model)
    burst: list[Turn] = []
    for turn in turns:
        if turn.call is not None:
            send(client, burst, size)
            burst = []
            turn.call(client)
        burst.append(turn)
        if turn.alone or not pipelined:
            send(client, burst, size)
            burst = []
    send(client, burst, size)
    assert [mailed(each) for each in client.events if isinstance(each, MessageReceived)] == expected
    assert client.session.closing is model.closed
    assert model.answers == []
    if model.closed:
        assert client.send(b"NOOP\r\n.\r\nQUIT\r\n") == b""
    else:
        assert codes(client.send(b"QUIT\r\n")) == ["221 2.0.0"]
    assert client.session.buffered == 0
