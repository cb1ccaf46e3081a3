"""Is a row's compressed mail the zlib stream of its octets, and deflated once for all rows?"""

from __future__ import annotations

import zlib
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.message import packing
from gsmtpd.message.packing import Packed
from gsmtpd.message.row import FASTEST, Decode, Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope

RECIPIENTS = tuple(Mailbox(f"user{number}", "example.com") for number in range(20))
ENVELOPE = Envelope("client.example.org", True, Mailbox("joe", "example.org"), RECIPIENTS)
TEXT = b"Subject: a\r\nContent-Type: text/plain\r\n\r\n" + b"A line of text.\r\n" * 2000
MESSAGE = Message("0123456789abcdef" * 2, ENVELOPE, TEXT, "192.0.2.1", 1_700_000_000.9)

octets = st.one_of(
    st.binary(max_size=500),
    st.builds(lambda unit, times: unit * times, st.binary(max_size=20), st.integers(0, 20_000)),
)


@settings(max_examples=300, deadline=None)
@given(octets, octets, st.integers(1, 9))
def test_it_unpacks_to_front_and_content(front: bytes, content: bytes, level: int) -> None:
    stream = Packed(content, level).behind(front)
    unpack = zlib.decompressobj()
    assert unpack.decompress(stream) + unpack.flush() == front + content
    assert unpack.eof  # so the checksum was right
    assert unpack.unused_data == b""


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("content", [b"", b"\xff" * 65_521, b"\xff" * 200_000, bytes(70_000)])
@pytest.mark.parametrize("front", [b"", b"\0", b"\xff" * 65_522])
def test_the_checksum_at_its_modulus(front: bytes, content: bytes, level: int) -> None:
    assert zlib.decompress(Packed(content, level).behind(front)) == front + content


def test_one_is_behind_many_fronts() -> None:
    packed = Packed(TEXT, 6)
    fronts = [b"Delivered-To: %d\r\n" % number for number in range(100)]
    streams = [packed.behind(front) for front in fronts]
    assert [zlib.decompress(stream) for stream in streams] == [front + TEXT for front in fronts]


@pytest.mark.parametrize("level", [1, 6, 9])
def test_it_is_about_as_small_as_zlib_makes_it(level: int) -> None:
    front = b"Delivered-To: user@example.com\r\n" * 8
    alone = len(zlib.compress(front + TEXT, level))
    assert len(Packed(TEXT, level).behind(front)) < alone + 120


def test_a_higher_level_is_smaller() -> None:
    text = b"".join(b"%d %d %x\r\n" % (n, n * n, n * n * n) for n in range(5000))
    assert len(Packed(text, 9)) < len(Packed(text, 1))


def test_rows_share_one_deflate() -> None:
    maker = RowMaker("mx.example.com", decode=Decode.OFF, compress=6)
    fed = 0
    compressobj = zlib.compressobj

    class Counting:
        """A compressor that counts what is put into it."""

        def __init__(self, *arguments: int) -> None:
            self._inner = compressobj(*arguments)
            self.flush = self._inner.flush

        def compress(self, data: bytes) -> bytes:
            nonlocal fed
            fed += len(data)
            return self._inner.compress(data)

    with patch.object(packing, "compressobj", Counting):
        rows = list(maker.rows(MESSAGE))
    assert len(rows) == len(RECIPIENTS)
    for row in rows:
        assert zlib.decompress(row.mail).endswith(TEXT)
    # The message once, and for each row its trace fields.
    assert len(TEXT) < fed < len(TEXT) + len(rows) * 500


# ---- what the rows have ------------------------------------------------------------------------

HTML = b"Subject: a\r\nContent-Type: text/plain; charset=utf-8\r\nX-Score: 5.5\r\n\r\ntext\r\n"
LEVELS = [None, 1, 6, 9]
HELD = ["", "redis", "memcached"]


def plain_mails() -> list[bytes]:
    """`mail` of all rows, as it is without compression."""
    return [row.mail for row in RowMaker("mx.example.com").rows(MESSAGE._replace(content=HTML))]


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("decode", [*Decode])
def test_every_combination(decode: Decode, level: int | None, held: str) -> None:
    maker = RowMaker("mx.example.com", None, decode, level, "X-Score")
    message = MESSAGE._replace(content=HTML)
    rows = list(maker.rows(message, maker.read(message), held))
    assert [row.recipient for row in rows] == [str(mailbox) for mailbox in RECIPIENTS]
    for row, plain in zip(rows, plain_mails(), strict=True):
        assert row.mail_encoding == (held or ("zlib" if level else ""))
        if held:
            assert row.mail == b""
        else:
            assert (zlib.decompress(row.mail) if level else row.mail) == plain
        old = {"zlib": "gzencode"}.get(row.mail_encoding, row.mail_encoding)
        assert row.body == ("text\n" if decode is Decode.BODY else old)
        assert row.charset == ("" if decode is Decode.OFF else "utf-8")
        assert row.subject == ("" if decode is Decode.OFF else "a")
        assert row.from_ == "joe@example.org"  # the reverse-path
        assert (row.size, row.spam_score, row.has_attach) == (len(HTML), 5.5, 0)


@pytest.mark.parametrize("decode", [*Decode])
def test_without_a_reading_rows_are_the_same(decode: Decode) -> None:
    maker = RowMaker("mx.example.com", None, decode, FASTEST)
    assert list(maker.rows(MESSAGE)) == list(maker.rows(MESSAGE, maker.read(MESSAGE)))


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_body_store_holds_is_the_mail_without_its_recipient(level: int | None) -> None:
    maker = RowMaker("mx.example.com", compress=level)
    message = MESSAGE._replace(content=HTML)
    shared = zlib.decompress(maker.shared(message, maker.read(message)))
    for recipient, mail in zip(maker.recipients(message), plain_mails(), strict=True):
        assert b"Delivered-To: %b\r\n" % recipient.encode() + shared == mail
