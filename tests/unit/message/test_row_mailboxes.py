"""Which rows does a message become whose recipients have other mailboxes than their own?"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.message.row import Message, Row, RowMaker
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.envelope import Envelope, Mailboxes

HOST = "mx.example.com"
ANN, BOB, EVE = (Mailbox(local, "x.example") for local in ("ann", "bob", "eve"))
CARL = Mailbox("Carl", "y.example")
TAGGED = Mailbox("ann+news", "x.example")
CONTENT = b"Subject: test\r\n\r\ntext\r\n"


def message(
    *recipients: Mailbox, mailboxes: tuple[Mailboxes, ...] = (), discarded: Mailboxes = ()
) -> Message:
    envelope = Envelope("client.example.org", True, None, recipients)
    envelope = envelope._replace(mailboxes=mailboxes, discarded=discarded)
    return Message("0" * 32, envelope, CONTENT, "192.0.2.7", 1_700_000_000.0)


def rows(mail: Message, primary: str | None = None, compress: int | None = None) -> list[Row]:
    return [*RowMaker(HOST, primary, compress=compress).rows(mail)]


def pairs(mail: Message, primary: str | None = None) -> list[tuple[str, str]]:
    """The columns `recipient` and `to`."""
    return [(row.recipient, row.to) for row in rows(mail, primary)]


def test_a_row_for_each_recipient_and_mailbox() -> None:
    mail = message(BOB, ANN, TAGGED, mailboxes=((CARL, EVE), (ANN,), (ANN,)))
    assert pairs(mail) == [
        ("bob@x.example", "Carl@y.example"),
        ("bob@x.example", "eve@x.example"),
        ("ann@x.example", "ann@x.example"),
        ("ann+news@x.example", "ann@x.example"),
    ]


@pytest.mark.parametrize(
    ("recipient", "mailbox", "stored", "to"),
    [
        (BOB, CARL, "bob@x.example", "Carl@main.example"),
        (TAGGED, ANN, "ann+news@x.example", "ann@main.example"),
        (POSTMASTER, POSTMASTER, f"postmaster@{HOST}", "postmaster@main.example"),
        (POSTMASTER, Mailbox("root", HOST), f"postmaster@{HOST}", "root@main.example"),
        (ANN, Mailbox('"a b"', "[IPv6:::1]"), "ann@x.example", '"a b"@main.example'),
    ],
)
def test_the_primary_domain_is_for_mailboxes(
    recipient: Mailbox, mailbox: Mailbox, stored: str, to: str
) -> None:
    mail = message(recipient, mailboxes=((mailbox,),))
    assert pairs(mail, "main.example") == [(stored, to)]


def test_a_mailbox_without_domain_is_our_own() -> None:
    assert pairs(message(ANN, mailboxes=((POSTMASTER,),))) == [
        ("ann@x.example", f"postmaster@{HOST}")
    ]


def test_mail_says_what_the_client_said_and_never_the_mailbox() -> None:
    (one, other) = rows(message(BOB, mailboxes=((CARL, EVE),)))
    assert one.mail == other.mail
    assert one.mail.startswith(b"Delivered-To: bob@x.example\r\n")
    assert b"for <bob@x.example>;" in one.mail
    assert not re.search(b"(?i)carl|eve", one.mail)
    assert one == other._replace(to=one.to)


def test_who_was_thrown_away_is_in_no_row() -> None:
    """Also not by what is missing: "for" is said where one recipient is left."""
    alone = rows(message(ANN))
    assert rows(message(ANN, mailboxes=((ANN,),), discarded=(EVE, BOB))) == alone
    assert b"for <ann@x.example>;" in alone[0].mail
    assert rows(message(discarded=(EVE,))) == []


def test_an_alias_of_one_recipient_does_not_hide_that_there_are_others() -> None:
    for row in rows(message(ANN, BOB, mailboxes=((ANN,), (EVE,)))):
        assert b"for <" not in row.mail


def test_the_columns_of_duplicates_are_the_recipients() -> None:
    mail = message(BOB, POSTMASTER, mailboxes=((CARL, EVE), (ANN,)))
    assert RowMaker(HOST).recipients(mail) == ["bob@x.example", f"postmaster@{HOST}"]


def test_a_long_mailbox_is_cut_to_its_column() -> None:
    long = Mailbox("u" * 64, f"{'d' * 63}.{'d' * 63}.{'d' * 63}.{'d' * 55}.example")
    ((recipient, to),) = pairs(message(ANN, mailboxes=((long,),)))
    assert recipient == "ann@x.example"
    assert to == str(long)[:255]


def test_where_a_body_store_has_it_there_are_as_many_rows() -> None:
    mail = message(BOB, ANN, mailboxes=((CARL, EVE), (ANN,)))
    held = [*RowMaker(HOST).rows(mail, held="redis")]
    assert [(row.recipient, row.to) for row in held] == pairs(mail)
    assert {row.mail for row in held} == {b""}


own = st.sampled_from([ANN, BOB, CARL, TAGGED, POSTMASTER])
into = st.lists(st.sampled_from([ANN, BOB, CARL, EVE]), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.tuples(own, into), min_size=1, max_size=5), st.sampled_from([None, 1]))
def test_as_many_rows_as_copies(
    recipients: list[tuple[Mailbox, Mailboxes]], compress: int | None
) -> None:
    names, mailboxes = zip(*recipients, strict=True)
    mail = message(*names, mailboxes=mailboxes)
    made = rows(mail, compress=compress)
    assert len(made) == mail.envelope.copies
    # What differs between rows is whom they are for, and "Delivered-To" with it.
    plain = rows(message(*names), compress=compress)
    by_name = {row.recipient: row for row in plain}
    assert all(row == by_name[row.recipient]._replace(to=row.to) for row in made)
