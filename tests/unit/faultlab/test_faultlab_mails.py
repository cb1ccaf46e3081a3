"""Are the mails of the fault lab made again from their seed, and are they what they should be?"""

from __future__ import annotations

import re

import pytest

from gsmtpd.faultlab.mails import MAX_RECIPIENTS, MIN_SIZE, Mails, stuffed, uid_in

TO = [f"r{n}@example.com" for n in range(16)]
MAX_SIZE = 200 * 1024


def mails(seed: int = 7, run: str = "1a2b", max_size: int = MAX_SIZE) -> Mails:
    return Mails(run, seed, 3, TO, max_size)


def test_they_are_made_again() -> None:
    first, again = mails(), mails()
    for number in (0, 5, 1, 77777):
        one, other = first.mail(number), again.mail(number)
        assert (one.uid, one.to, one.content) == (other.uid, other.to, other.content)


def test_another_seed_makes_others() -> None:
    one, other = mails(7).mail(0), mails(8).mail(0)
    assert one.uid == other.uid
    assert one.content != other.content


def test_another_run_changes_the_id_alone() -> None:
    one, other = mails(run="1a2b").mail(4), mails(run="ffff").mail(4)
    assert one.content.replace(b"1a2b", b"ffff") == other.content
    assert one.to == other.to


def test_each_is_like_no_other_and_names_itself() -> None:
    maker = mails()
    made = [maker.mail(number) for number in range(500)]
    assert len({mail.content for mail in made}) == 500
    for mail in made:
        assert uid_in(b"Received: by us\r\n" + mail.content) == mail.uid


def test_their_sizes_and_recipients() -> None:
    maker = mails()
    made = [maker.mail(number) for number in range(20_000)]
    sizes = sorted(len(mail.content) for mail in made)
    assert sizes[0] == MIN_SIZE
    assert sizes[len(sizes) // 2] < 1500
    assert any(8000 < size <= 40_000 for size in sizes)
    assert sizes[-1] == MAX_SIZE
    assert {len(mail.to) for mail in made} == {*range(1, MAX_RECIPIENTS + 1)}
    assert {to for mail in made for to in mail.to} == {*TO}
    assert all(len({*mail.to}) == len(mail.to) for mail in made)


def test_no_mail_is_larger_than_it_may_be() -> None:
    maker = mails(max_size=1000)
    assert max(len(maker.mail(number).content) for number in range(1000)) == 1000


def test_any_server_may_get_them() -> None:
    """RFC 5321 section 4.5.3.1.6: lines of 998 octets at most; bare CR, bare LF and NUL nowhere."""
    maker = mails()
    content = b"".join(maker.mail(number).content for number in range(2000))
    assert content.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
    lines = content.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert b"" in lines and any(line.startswith(b".") for line in lines)
    assert {*range(0x80, 0x100)} <= {*content}


def test_few_recipients() -> None:
    maker = Mails("1", 1, 0, ["a@example.com", "b@example.com", "a@example.com"], 1000)
    found = {maker.mail(number).to for number in range(200)}
    a, b = "a@example.com", "b@example.com"
    assert found == {(a,), (b,), (a, b), (b, a)}


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.\r\n..b\r\n\r\n", b"a\r\n..\r\n...b\r\n\r\n.\r\n"),
    ],
)
def test_stuffing(content: bytes, sent: bytes) -> None:
    assert stuffed(content) == sent


@pytest.mark.parametrize("mail", [b"", b"Message-ID: <fl.1-1-1>\r\n", b"Message-ID: <x@y>\r\n"])
def test_mail_of_others_has_no_id(mail: bytes) -> None:
    assert uid_in(mail) is None
