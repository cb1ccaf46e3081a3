"""How does a session take a message in chunks (RFC 3030), and mail when there is no room?"""

from __future__ import annotations

import pytest

from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.events import MessageReceived
from gsmtpd.smtp.reply import Reply, chunk_taken
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import AT_ONCE, Session
from gsmtpd.smtp.states import State
from tests.dialogs import HOST_NAME
from tests.dialogs.pure import PureClient

RULES = Rules(HOST_NAME, max_size=1000)
LMTP = Rules(HOST_NAME, max_size=1000, lmtp=True)
U = Mailbox("u", "example.com")
MAIL = b"MAIL FROM:<sender@example.org>\r\n"
RCPT = b"RCPT TO:<u@example.com>\r\n"
BOTH = pytest.mark.parametrize("rules", [RULES, LMTP], ids=["smtp", "lmtp"])


def begun(rules: Rules = RULES, mail: bytes = MAIL) -> PureClient:
    """A client that has a transaction with two recipients."""
    client = PureClient(rules)
    client.send((b"LHLO x\r\n" if rules.lmtp else b"EHLO x\r\n") + mail + RCPT + RCPT)
    return client


def finals(rules: Rules, said: Reply) -> bytes:
    """What is said to a message: once, or once for each of the two recipients."""
    return said.wire * (2 if rules.lmtp else 1)


# BDAT

BAD = [b"", b" ", b"x", b"-1", b"+1", b"0x10", b"1.0", b"1,000", b"1_0", b"100000000000000000000",
       b"1 LATEST", b"1 LAST LAST", b"LAST", b"LAST 1", b"1\tLAST", b"1LAST", b"1 \xef\xbc\xac",
       b"\xd9\xa1", b"\x00", b"1\x00"]  # fmt: skip


@pytest.mark.parametrize("argument", BAD)
def test_a_size_that_is_none_ends_the_session(argument: bytes) -> None:
    client = begun()
    said = client.send(b"BDAT " + argument + b"\r\nMAIL FROM:<forged@example.net>\r\n")
    assert said == reply.BDAT_SYNTAX.wire
    assert client.session.farewell == reply.BDAT_SYNTAX
    assert client.messages == []


@pytest.mark.parametrize("argument", [b"3 LAST", b"  3  last ", b"03 Last", b"0000000003 LAST"])
def test_sizes(argument: bytes) -> None:
    client = begun()
    assert client.send(b"BDAT " + argument + b"\r\na\r\n").startswith(b"250 2.0.0 OK: queued")
    assert client.messages == [b"a\r\n"]


def test_the_largest_size_is_read_and_not_kept() -> None:
    client = begun()
    assert client.send(b"BDAT 99999999999999999999 LAST\r\n" + b"x" * 2000) == b""
    assert client.session.buffered == 0
    assert client.send(*[b"QUIT\r\n"] * 1000) == b""


@BOTH
@pytest.mark.parametrize("last", [False, True])
def test_too_much_is_told_at_the_end_of_its_chunk(rules: Rules, last: bool) -> None:
    client = begun(rules)
    assert client.send(b"BDAT 600\r\n" + b"x" * 600) == chunk_taken(600).wire
    assert client.send(b"BDAT 401" + b" LAST" * last + b"\r\n" + b"x" * 400) == b""
    # RFC 2033 section 4.2 has a reply for each recipient to the end of the message, and only there.
    expected = finals(rules, reply.TOO_BIG) if last else reply.TOO_BIG.wire
    assert client.send(b"x") == expected
    assert client.session.state is State.READY
    assert client.messages == []
    (refusal,) = client.session.refusals
    assert (refusal.reply, refusal.about.size) == (reply.TOO_BIG, 1001)
    assert refusal.about.recipients == (U, U)


def test_buffered() -> None:
    client = begun()
    client.send(b"BDAT 900\r\n" + b"x" * 300)
    assert client.session.buffered == 300
    client.send(b"x" * 600)
    assert client.session.buffered == 900
    client.send(b"BDAT 50")
    assert client.session.buffered == 900 + len(b"BDAT 50")
    client.send(b"\r\n" + b"x" * 50)
    assert client.session.buffered == 950
    client.send(b"BDAT 51\r\n" + b"x" * 51)
    assert client.session.buffered == 0


@pytest.mark.parametrize("end", [b"RSET\r\n", b"EHLO x\r\n", b"BDAT 0 LAST\r\n", b"QUIT\r\n"])
def test_nothing_is_kept_behind_the_end(end: bytes) -> None:
    client = begun()
    client.send(b"BDAT 900\r\n" + b"x" * 900)
    client.send(end)
    assert client.session.buffered == 0


def test_the_chunks_of_a_message_are_never_more_than_its_limit() -> None:
    client = begun()
    for _ in range(1000):
        client.send(b"BDAT 1\r\nx")
        assert client.session.buffered <= 1000
    assert client.session.state is State.CHUNKS
    assert client.send(b"BDAT 1\r\nx") == reply.TOO_BIG.wire


def test_chunks_out_of_order_are_noted_and_no_errors() -> None:
    """Whoever pipelines them does not know yet that the first one was refused."""
    client = PureClient(RULES)
    client.send(b"EHLO x\r\n" + MAIL)
    assert client.send(b"BDAT 4 LAST\r\nQUIT") == reply.RCPT_FIRST.wire
    (refusal,) = client.session.refusals
    assert refusal.about.sender == "<sender@example.org>"
    assert client.send(b"BDAT 0\r\n" * 90) == reply.RCPT_FIRST.wire * 90
    assert client.send(b"BDAT 0\r\n" * 10).endswith(reply.TOO_MANY_COMMANDS.wire)


def test_chunks_are_no_junk() -> None:
    """A message may come in any number of them."""
    client = begun(Rules(HOST_NAME, max_commands=5))
    for _ in range(200):
        assert client.send(b"BDAT 1\r\nx") == chunk_taken(1).wire
    client.send(b"BDAT 0 LAST\r\n")
    assert client.messages == [b"x" * 200]


def test_envelope() -> None:
    client = begun(mail=b"MAIL FROM:<> BODY=BINARYMIME SMTPUTF8\r\n")
    client.send(b"BDAT 1 LAST\r\n\n")
    message = client.events[-1]
    assert isinstance(message, MessageReceived)
    envelope = message.envelope
    assert (envelope.body, envelope.smtputf8, envelope.lmtp) == ("BINARYMIME", True, False)
    assert envelope.recipients == (U, U)


@BOTH
@pytest.mark.parametrize("trouble", [reply.STORAGE_TROUBLE, reply.NO_SPACE])
def test_trouble_of_the_store(rules: Rules, trouble: Reply) -> None:
    client = PureClient(rules, store=lambda _: trouble)
    client.send((b"LHLO x\r\n" if rules.lmtp else b"EHLO x\r\n") + MAIL + RCPT + RCPT)
    assert client.send(b"BDAT 1 LAST\r\nx") == finals(rules, trouble)
    assert client.send(MAIL) == reply.SENDER_OK.wire


@BOTH
def test_a_421_for_the_message_ends_the_session(rules: Rules) -> None:
    client = PureClient(rules, store=lambda _: reply.SHUTTING_DOWN)
    client.send((b"LHLO x\r\n" if rules.lmtp else b"EHLO x\r\n") + MAIL + RCPT + RCPT)
    assert client.send(b"BDAT 1 LAST\r\nxNOOP\r\n") == finals(rules, reply.SHUTTING_DOWN)
    assert client.session.farewell == reply.SHUTTING_DOWN


def test_a_server_that_stops_lets_the_chunk_come_and_no_more() -> None:
    client = begun()
    client.send(b"BDAT 4\r\nab")
    client.session.leaving = True
    assert client.send(b"cd") == chunk_taken(4).wire
    assert client.send(b"BDAT 4 LAST\r\nefgh") == reply.SHUTTING_DOWN.wire
    assert client.session.farewell == reply.SHUTTING_DOWN
    assert client.messages == []


def test_a_server_that_stops_takes_the_last_chunk() -> None:
    client = begun()
    client.send(b"BDAT 4 LAST\r\nab")
    client.session.leaving = True
    assert client.send(b"cd").startswith(b"250 2.0.0 OK: queued as ")
    assert client.messages == [b"abcd"]


def test_close_forgets_the_chunks() -> None:
    client = begun()
    client.send(b"BDAT 4\r\nabcd")
    client.session.close(reply.TIMED_OUT)
    assert client.session.buffered == 0
    assert client.send(b"BDAT 0 LAST\r\n") == reply.TIMED_OUT.wire
    assert client.messages == []


# No room


def test_no_room_for_another_message() -> None:
    client = PureClient(RULES)
    client.send(b"EHLO x\r\n")
    client.session.no_room = True
    assert client.send(MAIL) == reply.NO_MEMORY.wire
    assert client.send(RCPT) == reply.MAIL_FIRST.wire
    (refusal, _) = client.session.refusals
    assert (refusal.reply, refusal.closes) == (reply.NO_MEMORY, False)
    client.session.no_room = False
    assert client.send(MAIL) == reply.SENDER_OK.wire
    # One that has begun goes on.
    client.session.no_room = True
    assert client.send(RCPT) == reply.RECIPIENT_OK.wire


def test_no_room_is_no_error_of_the_client() -> None:
    client = PureClient(RULES)
    client.send(b"EHLO x\r\n")
    client.session.no_room = True
    assert client.send(MAIL * 98) == reply.NO_MEMORY.wire * 98
    assert client.send(MAIL) == reply.TOO_MANY_COMMANDS.wire


@BOTH
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"DATA\r\n", b"a\r\n.\r\n"),
        (b"BDAT 4 LAST\r\nab", b"cd"),
    ],
)
def test_a_message_that_is_dropped(rules: Rules, before: bytes, behind: bytes) -> None:
    client = begun(rules)
    client.send(before)
    client.session.drop_message()
    assert client.session.buffered < 4
    assert client.send(behind) == finals(rules, reply.NO_MEMORY)
    assert client.messages == []
    (refusal,) = client.session.refusals
    assert refusal.reply == reply.NO_MEMORY
    # The next one may have room.
    assert client.send(MAIL + RCPT + b"BDAT 1 LAST\r\nx").startswith(
        reply.SENDER_OK.wire + reply.RECIPIENT_OK.wire + b"250 2.0.0 OK: queued"
    )


@BOTH
@pytest.mark.parametrize("between", [b"BDAT 4\r\nab", b"BDAT 2\r\nab"])
def test_a_message_that_is_dropped_before_its_last_chunk(rules: Rules, between: bytes) -> None:
    client = begun(rules)
    client.send(between)
    client.session.drop_message()
    assert client.session.buffered == 0
    if between.startswith(b"BDAT 2"):
        client.send(b"BDAT 2\r\n")
    assert client.send(b"cd") == reply.NO_MEMORY.wire
    assert client.session.state is State.READY
    assert client.send(b"BDAT 0 LAST\r\n") == reply.MAIL_FIRST.wire


def test_there_may_be_no_message_to_drop() -> None:
    client = begun()
    client.session.drop_message()
    assert client.send(b"BDAT 1 LAST\r\nx").startswith(b"250 2.0.0 OK: queued")


def test_chunks_that_are_skipped_can_be_dropped() -> None:
    client = PureClient(RULES)
    client.send(b"EHLO x\r\nBDAT 4\r\nab")
    client.session.drop_message()
    assert client.send(b"cd") == reply.MAIL_FIRST.wire


# Pauses


def test_a_burst_of_chunks_is_carried_out_bit_by_bit() -> None:
    session = Session(RULES)
    session.receive(b"EHLO x\r\n" + MAIL + RCPT)
    session.answer(reply.RECIPIENT_OK)
    session.take_output()
    event = session.receive(b"BDAT 1\r\nx" * 100)
    rounds = 1
    while event is not None:
        assert session.waiting
        assert session.take_output().count(b"\r\n") <= AT_ONCE
        event = session.resume()
        rounds += 1
    assert rounds >= 100 // AT_ONCE
    assert session.buffered == 100


def test_only_a_pause_is_resumed() -> None:
    session = Session(RULES)
    with pytest.raises(RuntimeError):
        session.resume()
    session.receive(b"EHLO x\r\n" + MAIL + RCPT)
    with pytest.raises(RuntimeError):
        session.resume()


def test_a_pause_is_not_answered() -> None:
    session = Session(RULES)
    assert session.receive(b"NOOP\r\n" * 2 * AT_ONCE) is not None
    with pytest.raises(RuntimeError):
        session.answer(reply.OK)
