"""Which mail is replied to, and what does the reply look like? (RFC 3834, RFC 5230)"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest

from gsmtpd.handlers import DISCARD, GiveUpError, Handler, Later, Mail, Result, RetryError
from gsmtpd.handlers.mail import Answer
from gsmtpd.handlers.replying import compose, octets_of, send, why_not
from gsmtpd.handlers.runner import _handled
from gsmtpd.handlers.wire import Wire
from tests.handled import CONTENT, DELIVERY, HOSTILE, Postbox, mail_of, smarthost, with_fields

HOST = "mx.example.com"
FIELDS = [
    *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Precedence", "In-Reply-To"),
    *("References", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
]


def answered(mail: Mail, text: str = "Yes.", subject: str | None = None) -> EmailMessage:
    """The reply to `mail`, as who gets it reads it."""
    octets = octets_of(compose(mail, Answer(text, subject)))
    return message_from_bytes(octets, policy=policy.default)


def yes(_: str) -> bool:
    """Nobody has had a reply lately."""
    return True


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("Auto-Submitted: auto-generated", "automaton"),
        ("auto-submitted : Auto-Replied; owner=x", "automaton"),
        ("Auto-Submitted: auto-notified (x)", "automaton"),
        ("Auto-Submitted: no\r\nAuto-Submitted: auto-replied", "automaton"),
        ("X-Autoreply: yes", "automaton"),
        ("List-Id: <x.example.org>", "list"),
        ("List-Unsubscribe:\r\n <https://example.org/x>", "list"),
        ("Mailing-List: x", "list"),
        ("Precedence: bulk", "many"),
        ("Precedence: LIST", "many"),
        ("Precedence: junk", "many"),
        ("X-Auto-Response-Suppress: DR, OOF, AutoReply", "wants no"),
        ("X-Auto-Response-Suppress: All", "wants no"),
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=b", "report"),
    ],
)
def test_fields_that_forbid_a_reply(field: str, reason: str) -> None:
    assert reason in why_not(mail_of(with_fields(field)))


@pytest.mark.parametrize(
    "field",
    [
        *("Auto-Submitted: no", "Auto-Submitted: No (a person)", "Precedence: first-class"),
        *("X-Auto-Response-Suppress: DR, RN", "X-List-Id: x", "Content-Type: text/plain"),
        "X: a\r\n List-Id: not a field",
    ],
)
def test_fields_that_do_not(field: str) -> None:
    assert why_not(mail_of(with_fields(field))) == ""


def test_what_looks_like_a_field_in_the_text_forbids_nothing() -> None:
    assert why_not(mail_of(CONTENT + b"List-Id: x\r\nAuto-Submitted: auto-replied\r\n")) == ""


@pytest.mark.parametrize(
    "sender",
    [
        *("", "MAILER-DAEMON@example.org", "owner-x@example.org", "x-request@example.org"),
        *("LISTSERV@example.org", "Majordomo@example.org", "bounces+1=a@example.org", "joe"),
        *("no-reply@example.org", "noreply@example.org", "x-bounces@example.org"),
        *("Ball@Example.com", "real-ball@example.com"),
    ],
)
def test_senders_that_get_no_reply(sender: str) -> None:
    assert why_not(mail_of(sender=sender, mailbox="real-ball@example.com"))


@pytest.mark.parametrize(
    "sender", ["joe@example.org", "request@example.org", "root@vm", "bowner@x.org", "o'x@x.org"]
)
def test_senders_that_do(sender: str) -> None:
    assert why_not(mail_of(sender=sender)) == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_get_no_reply_or_are_written_as_they_are(text: str) -> None:
    for mail in (mail_of(sender=f"{text}@a.org"), mail_of(recipient=f"{text}@a.org")):
        if not why_not(mail):
            reply = answered(mail)
            assert [*reply] == FIELDS
            assert (reply["From"], reply["To"]) == (mail.recipient, mail.sender)


def test_the_reply() -> None:
    content = with_fields("References: <a@b>\r\n <c@d>", "In-Reply-To: <c@d>")
    reply = answered(mail_of(content), "Yes.\nReally.\n")
    assert [*reply] == FIELDS
    assert reply["From"] == "ball@example.com"
    assert reply["To"] == "joe@example.org"
    assert reply["Subject"] == "Auto: Will it rain?"
    assert reply["Date"] == "Sat, 22 Nov 2025 08:26:40 +0000"
    assert reply["Auto-Submitted"] == "auto-replied"
    assert reply["Message-ID"] == f"<{DELIVERY}@example.com>"
    assert reply["In-Reply-To"] == "<1@example.org>"
    assert reply["References"] == "<a@b> <c@d> <1@example.org>"
    assert reply.get_content() == "Yes.\r\nReally.\r\n"


def test_it_is_the_same_at_each_try() -> None:
    first, second = (mail_of(attempt=number) for number in (1, 2))
    answer = Answer("Yes.", None)
    assert octets_of(compose(first, answer)) == octets_of(compose(second, answer))


def test_it_is_plain_ascii_but_for_addresses_that_are_not() -> None:
    mail = mail_of(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n")
    octets = octets_of(compose(mail, Answer("Schön\r\n\r\nund\x00 gut\udcff\rso", None)))
    assert octets.isascii()
    reply = message_from_bytes(octets, policy=policy.default)
    assert reply["Subject"] == "Auto: Grüße"
    assert reply.get_content() == "Schön\r\n\r\nund gut\r\nso\r\n"
    mail = mail_of(sender="jö@example.org", recipient="ball@bällchen.example")
    octets = octets_of(compose(mail, Answer("Yes.", None)))
    assert "\r\nTo: jö@example.org\r\n".encode() in octets  # RFC 6532
    reply = answered(mail)
    assert (reply["To"], reply["From"]) == ("jö@example.org", "ball@bällchen.example")
    assert reply["Message-ID"].isascii()


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_mail_adds_a_field_to_the_reply(text: str) -> None:
    octets = text.encode(errors="surrogatepass")
    twice = b"=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3D0d=3D0aBcc=3Ax=40y=3F=3D?="
    names = (b"Subject", b"Message-ID", b"References", b"In-Reply-To")
    for value in (octets, b"<" + octets + b"@x>", twice, b"<" + twice + b"@x>"):
        content = b"".join(name + b": " + value + b"\r\n" for name in names)
        for subject in (None, text):
            mail = mail_of(content + b"\r\n")
            reply = answered(mail, text, subject)
            assert {*reply} <= {*FIELDS}
            assert len([*reply]) == len({*reply})
            # Nor does anybody find one who decodes it.
            for name in FIELDS[:-3]:
                assert not {"\r", "\n"} & {*str(reply[name] or "")}


def test_a_long_thread_loses_its_oldest_and_each_line_fits() -> None:
    ids = [f"<{number}.{'x' * 100}@example.org>" for number in range(40)]
    content = with_fields("References: " + "\r\n ".join(ids), "Subject: " + "ö" * 3000)
    octets = octets_of(compose(mail_of(content), Answer("x" * 5000, None)))
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    (line,) = (line for line in octets.split(b"\r\n") if line.startswith(b"References: "))
    assert len(line) < 900
    found = line.decode().split()[1:]
    assert found[-1] == "<1@example.org>"
    read = [each for each in ids if f" {each}" in f" {' '.join(ids)}"[:4096]]
    assert found[:-1] == read[-len(found) + 1 :]
    assert len(found) > 3


def test_it_goes_to_the_sender_once_asked_for_and_allowed() -> None:
    mail = mail_of()
    asked: list[str] = []
    with smarthost() as box:
        replies = {"smarthost": box.where, "host_name": HOST}
        assert send(mail, replies, yes) == ""
        mail.reply("Yes.")
        assert "lately" in send(mail, replies, lambda address: bool(asked.append(address)))
        assert box.mails == []
        assert send(mail, replies, yes) == "replied to joe@example.org"
    assert asked == ["joe@example.org"]
    (taken,) = box.mails
    assert taken.rcpt_tos == ["joe@example.org"]
    assert taken.content == octets_of(compose(mail, Answer("Yes.", None)))


def test_who_may_not_be_replied_to_is_not_even_asked_for() -> None:
    mail = mail_of(sender="")
    mail.reply("Yes.")
    said = send(mail, {"smarthost": "", "host_name": HOST}, lambda _: pytest.fail("it asks"))
    assert said == "no reply: its reverse-path is null"


@pytest.mark.parametrize("where", ["", "no host"])
def test_without_a_smarthost_it_is_given_up(where: str) -> None:
    mail = mail_of()
    mail.reply("Yes.")
    with pytest.raises(GiveUpError, match="smarthost"):
        send(mail, {"smarthost": where, "host_name": HOST}, yes)


# ---- what a runner makes of it -----------------------------------------------------------------


class Returning(Handler):
    """Replies, notes, and ends as it is told."""

    def __init__(self, end: Result | Exception | str) -> None:
        self._end = end

    def handle(self, mail: Mail) -> Result:
        """Do so."""
        mail.annotate("n", "v")
        mail.reply("Yes.")
        if isinstance(self._end, Exception):
            raise self._end
        return self._end  # type: ignore[return-value]


def handled(end: Result | Exception | str, box: Postbox, may: bool = True) -> dict[str, Any]:
    """What a runner says of a mail, to a dispatcher that allows a reply, or does not."""
    ours, theirs = (Wire(each) for each in socket.socketpair())
    task = {"smarthost": box.where, "host_name": HOST}
    with ThreadPoolExecutor(1) as other:

        def act() -> None:
            theirs.say(_handled(Returning(end), mail_of(), task, theirs))

        acting = other.submit(act)
        frame, _ = ours.hear()
        if "ask" in frame:
            assert frame == {"ask": "may_reply", "address": "joe@example.org"}
            ours.say({"may": may})
            frame, _ = ours.hear()
        acting.result()
    ours.close()
    theirs.close()
    return frame


def test_a_runner_sends_the_reply_and_says_so() -> None:
    with smarthost() as box:
        done = {"done": True, "notes": [["n", "v"]], "reply": "replied to joe@example.org"}
        assert handled(None, box) == done | {"discard": False}
        assert handled(DISCARD, box) == done | {"discard": True}
        assert len(box.mails) == 2
        assert "lately" in handled(None, box, may=False)["reply"]
        assert len(box.mails) == 2


def test_a_runner_replies_to_nothing_that_is_not_done() -> None:
    with smarthost() as box:
        assert handled(Later(60), box) == {"later": 60.0}
        for nonsense in ("text", Later(-1.0), Later(float("nan")), Later("1")):  # type: ignore[arg-type]
            frame = handled(nonsense, box)
            assert frame["failed"].startswith("it returned ")
            assert frame["again"] is False
        frame = handled(RetryError("a\nb\udcff", 5), box)
        assert frame == {"failed": "a b", "again": True, "after": 5.0}
        assert handled(ValueError("x"), box) == {"failed": "ValueError: x", "again": True}
    assert box.mails == []


def test_what_the_smarthost_says_decides_over_the_whole_delivery() -> None:
    with smarthost(RCPT="450 4.2.1 later") as box:
        frame = handled(DISCARD, box)
        assert (frame["again"], "450 4.2.1 later" in frame["failed"]) == (True, True)
        box.refuse["RCPT"] = "550 5.1.1 never"
        frame = handled(DISCARD, box)
        assert (frame["again"], "550 5.1.1 never" in frame["failed"]) == (False, True)
