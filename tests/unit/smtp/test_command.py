"""What do MAIL and RCPT say, and how are they refused? The tables are the specification."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.smtp import address, command, reply
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.command import MailCommand, parse_mail, parse_rcpt
from gsmtpd.smtp.reply import Reply

U = Mailbox("u", "example.org")
MAIL: list[tuple[str, MailCommand | Reply]] = [
    ("FROM:<u@example.org>", MailCommand(U)),
    ("from:<u@EXAMPLE.org>", MailCommand(U)),
    ("FROM: <u@example.org>", MailCommand(U)),
    ("FROM:u@example.org", MailCommand(U)),
    ("FROM:<u@example.org>  ", MailCommand(U)),
    ("FROM:<>", MailCommand(None)),
    ("FROM:<> SIZE=5", MailCommand(None, size=5)),
    ("FROM:<@a:u@example.org>", MailCommand(U)),
    ('FROM:<"a> b"@example.org> SIZE=5', MailCommand(Mailbox('"a> b"', "example.org"), size=5)),
    # SIZE (RFC 1870)
    ("FROM:<u@example.org> SIZE=0", MailCommand(U)),
    ("FROM:<u@example.org> size=1000", MailCommand(U, size=1000)),
    ("FROM:<u@example.org> SIZE=99999999999999999999", MailCommand(U, size=10**20 - 1)),
    ("FROM:<u@example.org> SIZE=100000000000000000000", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=abc", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=-1", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=+1", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=1_0", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=٣", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE=", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> SIZE", reply.BAD_PARAMETER),
    # BODY (RFC 6152)
    ("FROM:<u@example.org> BODY=7BIT", MailCommand(U, body="7BIT")),
    ("FROM:<u@example.org> body=8bitmime", MailCommand(U, body="8BITMIME")),
    ("FROM:<u@example.org> BODY=FOO", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> BODY=BINARY", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> BODY", reply.BAD_PARAMETER),
    # SMTPUTF8 (RFC 6531)
    ("FROM:<u@example.org> SMTPUTF8", MailCommand(U, smtputf8=True)),
    ("FROM:<u@example.org> SMTPUTF8=1", reply.BAD_PARAMETER),
    ("FROM:<ü@example.org> SMTPUTF8", MailCommand(Mailbox("ü", "example.org"), smtputf8=True)),
    ("FROM:<ü@example.org>", reply.NEEDS_SMTPUTF8),
    ("FROM:<u@exämple.org>", reply.NEEDS_SMTPUTF8),
    # Several, in any order
    ("FROM:<u@example.org> SMTPUTF8  BODY=8BITMIME SIZE=7 ", MailCommand(U, 7, True, "8BITMIME")),
    ("FROM:<u@example.org> SIZE=1 SIZE=1", reply.DUPLICATE_PARAMETER),
    ("FROM:<u@example.org> SIZE=1 size=2", reply.DUPLICATE_PARAMETER),
    # Others
    ("FROM:<u@example.org> RET=HDRS", reply.UNKNOWN_PARAMETER),
    ("FROM:<u@example.org> X-FOO", reply.UNKNOWN_PARAMETER),
    ("FROM:<u@example.org> AUTH=<>", reply.UNKNOWN_PARAMETER),
    ("FROM:<u@example.org> -X=1", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> X==", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> X=ü", reply.BAD_PARAMETER),
    ("FROM:<u@example.org> X=a\tb", reply.BAD_PARAMETER),
    # No path, or a bad one
    ("", reply.MAIL_SYNTAX),
    ("FROM:", reply.MAIL_SYNTAX),
    ("FROM: ", reply.MAIL_SYNTAX),
    ("FROM <u@example.org>", reply.MAIL_SYNTAX),
    ("TO:<u@example.org>", reply.MAIL_SYNTAX),
    ("<u@example.org>", reply.MAIL_SYNTAX),
    ("FROM:<u@example.org>SIZE=1", reply.MAIL_SYNTAX),
    ("FROM:<u@example.org", reply.MAIL_SYNTAX),
    ('FROM:<"u@example.org>', reply.MAIL_SYNTAX),
    ("FROM:<u>", reply.BAD_SENDER),
    ("FROM:u", reply.BAD_SENDER),
    ("FROM:<<u@example.org>", reply.BAD_SENDER),
    ("FROM:< >", reply.BAD_SENDER),
    ("FROM:<u@example.org\x00>", reply.BAD_SENDER),
    ("FROM:<u@[1.2.3]>", reply.BAD_SENDER),
]
RCPT: list[tuple[str, bool, Mailbox | Reply]] = [
    ("TO:<u@example.org>", False, U),
    ("to: <u@example.org> ", False, U),
    ("TO:u@example.org", False, U),
    ("TO:<Postmaster>", False, POSTMASTER),
    ("TO:postmaster", False, POSTMASTER),
    ("TO:<@a,@b:u@example.org>", False, U),
    ('TO:<"a b"@example.org>', False, Mailbox('"a b"', "example.org")),
    ("TO:<u@[IPv6:::1]>", False, Mailbox("u", "[IPv6:::1]")),
    ("TO:<ü@example.org>", True, Mailbox("ü", "example.org")),
    ("TO:<ü@example.org>", False, reply.NEEDS_SMTPUTF8),
    ("TO:<>", False, reply.BAD_RECIPIENT),
    ("TO:<u>", False, reply.BAD_RECIPIENT),
    ("TO:<u@>", True, reply.BAD_RECIPIENT),
    ("TO:<u@example.org> NOTIFY=NEVER", False, reply.UNKNOWN_PARAMETER),
    ("TO:<u@example.org> SIZE=1", False, reply.UNKNOWN_PARAMETER),
    ("TO:<u@example.org> =", False, reply.BAD_PARAMETER),
    ("TO:<u@example.org> X=1 X=1", False, reply.DUPLICATE_PARAMETER),
    ("", False, reply.RCPT_SYNTAX),
    ("FROM:<u@example.org>", False, reply.RCPT_SYNTAX),
    ("TO:", False, reply.RCPT_SYNTAX),
]


@pytest.mark.parametrize(("argument", "said"), MAIL)
def test_mail(argument: str, said: MailCommand | Reply) -> None:
    assert parse_mail(argument) == said


@pytest.mark.parametrize(("argument", "smtputf8", "said"), RCPT)
def test_rcpt(argument: str, smtputf8: bool, said: Mailbox | Reply) -> None:
    assert parse_rcpt(argument, smtputf8) == said


WORDS = ["FROM:", "TO:", "<", ">", "<>", '"', "\\", " ", "  ", "=", "SIZE", "SIZE=1", "BODY=7BIT",
         "SMTPUTF8", "u@example.org", "<u@example.org>", "ü", "\x00", "\t", "-", ","]  # fmt: skip
words = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
arguments = st.one_of(words, words.map("FROM:<u@example.org> {}".format), st.text())


@settings(deadline=None)
@given(arguments)
def test_whatever_is_said_is_understood_or_refused(argument: str) -> None:
    mail, rcpt = parse_mail(argument), parse_rcpt(argument, True)
    assert isinstance(mail, MailCommand) or mail.code in (501, 553, 555)
    assert isinstance(rcpt, Mailbox) or rcpt.code in (501, 555)


addresses = st.one_of(
    st.from_regex(re.compile(address.ORDINARY_PATH), fullmatch=True),
    st.builds(
        "<{}@{}>".format,
        st.integers(60, 70).map(lambda n: "l" * n),
        st.integers(1, 260).map(lambda n: ".".join(["d" * 63] * 5)[:n].rstrip(".")),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["FROM:", "from:", "TO:", "tO: ", "FROM"]),
    addresses,
    st.one_of(st.just(""), st.sampled_from(WORDS)),
)
def test_the_short_way_is_the_grammar(verb: str, path: str, more: str) -> None:
    """Whatever the one match for an ordinary command says, the long way says as well."""
    argument = verb + path + more
    said = parse_mail(argument), parse_rcpt(argument, False)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_match_ordinary_mail", "_match_ordinary_rcpt"):
            patch.setattr(command, name, lambda argument: None)
        assert (parse_mail(argument), parse_rcpt(argument, False)) == said


def seconds(argument: str) -> float:
    """How long one parse takes, at best."""
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        parse_mail(argument)
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.parametrize(
    "form",
    [
        lambda n: "FROM:<u@example.org> x" + " " * n + "x",
        lambda n: "FROM:<u@example.org>" + " " * n + "\x00",
        lambda n: "FROM:" + " " * n,
        lambda n: "FROM:<" + '"' * n,
        lambda n: 'FROM:<"' + "\\" * n,
        lambda n: "FROM:<u@" + "a." * (n // 2) + ">",
        lambda n: "FROM:<u@example.org>" + " x" * (n // 2),
    ],
    ids=["inner spaces", "spaces", "no path", "quotes", "backslashes", "labels", "parameters"],
)
def test_time_grows_with_the_length_only(form: Callable[[int], str]) -> None:
    """Eight times the octets take some eight times as long, and not sixty-four."""
    assert seconds(form(4000)) < 24 * max(seconds(form(500)), 5e-6)
