"""Is the order of commands that of RFC 5321 section 4.1.4?"""

from __future__ import annotations

import pytest

from gsmtpd.smtp import reply
from gsmtpd.smtp.states import NEXT, WHY, State

HELLOS = [b"HELO", b"EHLO", b"LHLO"]
VERBS = [*HELLOS, b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"STARTTLS", b"XCLIENT"]
START, READY, SENDER, RECIPIENTS, CHUNKS, DATA = State
ORDER: dict[bytes, list[State | None]] = {
    **dict.fromkeys(HELLOS, [READY, READY, READY, READY, READY]),
    b"MAIL": [None, SENDER, None, None, None],
    b"RCPT": [None, None, RECIPIENTS, RECIPIENTS, None],
    b"DATA": [None, None, None, DATA, None],
    b"BDAT": [None, None, None, CHUNKS, CHUNKS],
    b"RSET": [START, READY, READY, READY, READY],
    b"STARTTLS": [START, START, None, None, None],
    b"XCLIENT": [START, START, None, None, None],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", [START, READY, SENDER, RECIPIENTS, CHUNKS])
def test_order(state: State, verb: bytes) -> None:
    assert NEXT.get((state, verb)) == ORDER[verb][state]


def test_each_step_is_legal_or_explained() -> None:
    assert not NEXT.keys() & WHY.keys()
    steps = {(state, verb) for state in State if state < DATA for verb in VERBS}
    assert NEXT.keys() | WHY.keys() == steps


def test_out_of_order_is_503() -> None:
    assert {(why.code, why.enhanced) for why in WHY.values()} == {(503, "5.5.1")}


def test_the_reply_says_what_is_missing() -> None:
    assert {verb: WHY[START, verb] for verb in (b"MAIL", b"RCPT", b"DATA")} == dict.fromkeys(
        (b"MAIL", b"RCPT", b"DATA"), reply.HELO_FIRST
    )
    assert WHY[READY, b"RCPT"] == WHY[READY, b"DATA"] == reply.MAIL_FIRST
    assert WHY[SENDER, b"DATA"] == reply.RCPT_FIRST
    assert WHY[SENDER, b"MAIL"] == WHY[RECIPIENTS, b"MAIL"] == reply.NESTED_MAIL
