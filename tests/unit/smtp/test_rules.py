"""What does a server say of itself, by what is switched on?"""

from __future__ import annotations

from itertools import product

import pytest

from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules

ALWAYS = ["PIPELINING", "SIZE 70000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
LIMITS = "LIMITS MAILMAX=45 RCPTMAX=123"
XCLIENT = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
YES_NO = (False, True)


def rules(*, lmtp: bool = False, starttls: bool = False, chunking: bool = True) -> Rules:
    return Rules(
        "h.example",
        max_size=70000,
        max_recipients=123,
        max_messages=45,
        lmtp=lmtp,
        starttls=starttls,
        chunking=chunking,
    )


@pytest.mark.parametrize(
    ("lmtp", "starttls", "chunking", "tls", "xclient"), [*product(YES_NO, repeat=5)]
)
def test_what_is_offered(
    lmtp: bool, starttls: bool, chunking: bool, tls: bool, xclient: bool
) -> None:
    said = rules(lmtp=lmtp, starttls=starttls, chunking=chunking).ehlo(tls, xclient)
    expected = ["h.example", *ALWAYS, LIMITS]
    expected += ["CHUNKING", "BINARYMIME"] if chunking else []
    # RFC 3207 section 4.2: not where TLS is active.
    expected += ["STARTTLS"] if starttls and not tls else []
    expected += [XCLIENT] if xclient else []
    assert said == Reply(250, "", *expected, "HELP")


@pytest.mark.parametrize(("lmtp", "greeting"), [(False, "ESMTP"), (True, "LMTP")])
def test_the_greeting_names_the_protocol(lmtp: bool, greeting: str) -> None:
    assert rules(lmtp=lmtp).greeting == Reply(220, "", f"h.example {greeting} gsmtpd")


@pytest.mark.parametrize(
    ("lmtp", "starttls", "chunking", "commands"),
    [
        (False, False, True, "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"),
        (False, True, False, "EHLO HELO STARTTLS MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"),
        (True, False, False, "LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"),
        (True, True, True, "LHLO STARTTLS MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"),
    ],
)
def test_help_names_what_there_is(
    lmtp: bool, starttls: bool, chunking: bool, commands: str
) -> None:
    said = rules(lmtp=lmtp, starttls=starttls, chunking=chunking).help
    assert said.lines[0] == f"Commands: {commands}"
    assert (said.code, said.enhanced) == (214, "2.0.0")


def test_rules_are_values() -> None:
    assert rules() == rules()
    assert rules() != rules(lmtp=True)
