"""Does the envelope say which mailboxes each recipient's mail goes into, and never too many?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope, Mailboxes
from gsmtpd.smtp.events import MessageReceived, RecipientAsked
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session
from gsmtpd.smtp.states import State

ANN, BOB, EVE = (Mailbox(local, "x.example") for local in ("ann", "bob", "eve"))
SENDER = Mailbox("sender", "example.org")
OK, NO = reply.RECIPIENT_OK, reply.NO_SUCH_USER


class Client:
    """A client in a transaction."""

    def __init__(self, most: int = 1000) -> None:
        self.session = Session(Rules("mx.example.com", max_recipients=most, max_commands=100_000))
        self.send(b"EHLO client.example.org\r\n")
        self.mail()

    def send(self, octets: bytes) -> bytes:
        """What is said to it; nothing of it has to be answered."""
        assert self.session.receive(octets) is None
        return self.session.take_output()

    def mail(self) -> None:
        """Begin."""
        assert self.send(b"MAIL FROM:<sender@example.org>\r\n") == reply.SENDER_OK.wire

    def rcpt(
        self, recipient: Mailbox, decision: Reply = OK, mailboxes: Mailboxes | None = None
    ) -> bytes:
        """Name a recipient, who is decided so unless the session refuses him itself."""
        asked = self.session.receive(f"RCPT TO:<{recipient}>\r\n".encode())
        if asked is not None:
            assert asked == RecipientAsked(recipient)
            assert self.session.answer(decision, mailboxes) is None
        return self.session.take_output()

    def data(self) -> Envelope:
        """Send the message."""
        assert self.send(b"DATA\r\n") == reply.START_DATA.wire
        received = self.session.receive(b"text\r\n.\r\n")
        assert isinstance(received, MessageReceived)
        self.session.answer(reply.OK)
        self.session.take_output()
        return received.envelope


def envelope(*recipients: Mailbox, **more: Any) -> Envelope:
    base = Envelope("client.example.org", True, SENDER, recipients)
    return base._replace(**more)


def test_who_has_his_own_mailbox_needs_no_word() -> None:
    client = Client()
    for each in (ANN, BOB):
        assert client.rcpt(each) == OK.wire
    found = client.data()
    assert found == envelope(ANN, BOB)
    assert (found.mailboxes, found.discarded) == ((), ())
    assert found.copies == 2


def test_each_recipient_has_his_mailboxes() -> None:
    client = Client()
    client.rcpt(ANN)
    client.rcpt(BOB, OK, (EVE, ANN))
    client.rcpt(EVE, NO)
    client.rcpt(EVE, OK, ())
    found = client.data()
    assert found == envelope(ANN, BOB, mailboxes=((ANN,), (EVE, ANN)), discarded=(EVE,))
    assert found.copies == 3


def test_a_discarded_recipient_leaves_no_trace_among_the_others() -> None:
    client = Client()
    for each, mailboxes in ((EVE, ()), (ANN, None), (EVE, ())):
        client.rcpt(each, OK, mailboxes)
    found = client.data()
    assert found.recipients == (ANN,)
    assert found.mailboxes == ((ANN,),)
    assert found.discarded == (EVE, EVE)
    assert found.copies == 1


def test_a_message_that_is_thrown_away_is_received_all_the_same() -> None:
    client = Client()
    assert client.rcpt(EVE, OK, ()) == OK.wire
    assert client.session.state is State.RECIPIENTS
    found = client.data()
    assert found == envelope(discarded=(EVE,))
    assert found.copies == 0


def test_the_same_recipient_twice_decided_otherwise() -> None:
    """The policy may change between two RCPT."""
    client = Client()
    client.rcpt(ANN)
    client.rcpt(ANN, OK, (BOB,))
    client.rcpt(ANN, OK, ())
    client.rcpt(ANN, NO)
    client.rcpt(ANN)
    found = client.data()
    assert found == envelope(ANN, ANN, ANN, mailboxes=((ANN,), (BOB,), (ANN,)), discarded=(ANN,))


@pytest.mark.parametrize(
    "again", [b"RSET\r\n", b"EHLO client.example.org\r\n", b"HELO client.example.org\r\n", None]
)
def test_nothing_is_left_for_the_next_transaction(again: bytes | None) -> None:
    client = Client(most=3)
    client.rcpt(BOB, OK, (ANN, BOB, EVE))
    client.rcpt(EVE, OK, ())
    if again is None:
        client.data()
    else:
        client.send(again)
    client.mail()
    client.rcpt(ANN)
    assert client.rcpt(BOB, OK, (EVE, BOB)) == OK.wire
    found = client.data()
    assert found.recipients == (ANN, BOB)
    assert found.mailboxes == ((ANN,), (EVE, BOB))
    assert found.discarded == ()


def test_a_refusal_forgets_the_mailboxes_it_came_with() -> None:
    client = Client()
    client.rcpt(BOB, NO, (ANN, EVE))
    client.rcpt(ANN)
    assert client.data() == envelope(ANN)


# How many


def test_copies_count() -> None:
    client = Client(most=4)
    assert client.rcpt(ANN) == OK.wire
    assert client.rcpt(BOB, OK, (ANN, BOB)) == OK.wire
    assert client.rcpt(BOB, OK, (ANN, BOB)) == reply.TOO_MANY_RECIPIENTS.wire
    assert client.rcpt(EVE) == OK.wire
    assert client.rcpt(EVE) == reply.TOO_MANY_RECIPIENTS.wire
    found = client.data()
    assert found.recipients == (ANN, BOB, EVE)
    assert found.copies == 4


def test_who_comes_first_may_have_as_many_as_he_needs() -> None:
    client = Client(most=2)
    assert client.rcpt(BOB, OK, (ANN, BOB, EVE)) == OK.wire
    assert client.rcpt(ANN) == reply.TOO_MANY_RECIPIENTS.wire
    assert client.data().copies == 3
    # As a client does that was told to try the rest again.
    client.mail()
    assert client.rcpt(ANN) == OK.wire
    assert client.rcpt(BOB, OK, (ANN, BOB, EVE)) == reply.TOO_MANY_RECIPIENTS.wire
    client.data()
    client.mail()
    assert client.rcpt(BOB, OK, (ANN, BOB, EVE)) == OK.wire
    assert client.data().copies == 3


def test_who_is_thrown_away_counts_as_one() -> None:
    client = Client(most=2)
    assert client.rcpt(EVE, OK, ()) == OK.wire
    assert client.rcpt(ANN, OK, (ANN, BOB)) == reply.TOO_MANY_RECIPIENTS.wire
    assert client.rcpt(EVE, OK, ()) == OK.wire
    assert client.rcpt(EVE, OK, ()) == reply.TOO_MANY_RECIPIENTS.wire
    assert client.data().discarded == (EVE, EVE)


def test_one_too_many_is_noted_and_no_error() -> None:
    client = Client(most=2)
    client.rcpt(ANN)
    for _ in range(20):
        assert client.rcpt(BOB, OK, (ANN, BOB)) == reply.TOO_MANY_RECIPIENTS.wire
    assert not client.session.closing
    refusals = client.session.refusals
    assert {(each.reply, each.about.recipients) for each in refusals} == {
        (reply.TOO_MANY_RECIPIENTS, (BOB,))
    }
    assert len(refusals) == 20
    assert client.data() == envelope(ANN)


mailboxes = st.none() | st.lists(st.sampled_from([ANN, BOB, EVE]), max_size=4).map(tuple)
decisions = st.tuples(st.sampled_from([ANN, BOB, EVE]), st.sampled_from([OK, OK, NO]), mailboxes)


@given(st.lists(decisions, min_size=1, max_size=12), st.integers(1, 6))
def test_a_message_has_those_that_were_told_ok(
    story: list[tuple[Mailbox, Reply, Mailboxes | None]], most: int
) -> None:
    client = Client(most)
    taken: list[tuple[Mailbox, Mailboxes]] = []
    for recipient, decision, into in story:
        said = client.rcpt(recipient, decision, into)
        own = (recipient,) if into is None else into
        if said == OK.wire:
            assert decision == OK
            taken.append((recipient, own))
        elif decision == OK or said == reply.TOO_MANY_RECIPIENTS.wire:
            assert said == reply.TOO_MANY_RECIPIENTS.wire
            # It would have been one too many, or more.
            counted = sum(max(len(each), 1) for _, each in taken)
            assert counted + (max(len(own), 1) if decision == OK else 1) > most
            assert taken
    if not taken:
        assert client.send(b"DATA\r\n") == reply.RCPT_FIRST.wire
        return
    found = client.data()
    stored = [(recipient, into) for recipient, into in taken if into]
    assert found.recipients == tuple(recipient for recipient, _ in stored)
    assert found.discarded == tuple(recipient for recipient, into in taken if not into)
    into_each = found.mailboxes or tuple((each,) for each in found.recipients)
    assert into_each == tuple(into for _, into in stored)
    assert found.copies == sum(len(into) for _, into in stored)
    assert found.copies <= most or len(taken) == 1
