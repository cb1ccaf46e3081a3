"""Is what somebody sends in order to stop us stored whole, after bounded work?

Without a clock: asserted is what the work grows with. Octets that are decoded, parts that are
looked at, memory that is taken. `scripts/bench-content --hostile` has the milliseconds.
"""

from __future__ import annotations

import tracemalloc
from hashlib import sha256
from typing import Any

import pytest

from gsmtpd.message import body as body_module
from gsmtpd.message import mime
from gsmtpd.message.body import MAX_NAME, MAX_TEXT, read_body
from gsmtpd.message.mime import MAX_DEPTH, MAX_PARTS
from gsmtpd.message.row import WIDTHS, Message, Row, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from tests import hostile

ENVELOPE = Envelope(
    "client.example.org", True, Mailbox("joe", "example.org"), (Mailbox("u", "example.com"),)
)
MAKER = RowMaker("mx.example.com", spam_score_header="X-Spam-Status")
MEMORY = 5  # times the message; its octets, decoded, and once more while that is done


class Work:
    """What has been done, counted where it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = 0  # octets made text
        self.undone = 0  # octets of undone transfer encodings
        self.texts = 0
        self.looked_at = 0  # parts, and multiparts
        self._count(monkeypatch, body_module, "decode", self._text)
        self._count(monkeypatch, body_module, "payload", self._payload)
        self._count(monkeypatch, mime._Search, "_part", self._part)

    @staticmethod
    def _count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, counted: Any) -> None:
        inner = getattr(owner, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            result = inner(*arguments, **named)
            counted(arguments, result)
            return result

        monkeypatch.setattr(owner, name, counting)

    def _text(self, arguments: Any, _result: Any) -> None:
        self.texts += 1
        self.decoded += len(arguments[0])

    def _payload(self, _arguments: Any, result: Any) -> None:
        self.undone += len(result)

    def _part(self, _arguments: Any, _result: Any) -> None:
        self.looked_at += 1


def check(row: Row, content: bytes) -> None:
    """The mail is there, and what was read of it fits and is clean."""
    assert row.mail.endswith(content)
    assert row.size == len(content)
    assert row.content_hash == sha256(content).hexdigest()
    row.body.encode()
    assert "\0" not in row.body
    assert "\r" not in row.body
    # HTML may say more characters in text than it has, but not many more.
    assert len(row.body) <= 4 * MAX_TEXT
    for column, width in WIDTHS.items():
        value = getattr(row, f"{column}_" if column == "from" else column)
        assert len(value) <= width
        assert value.isprintable() or value == ""
    assert row.has_attach <= MAX_PARTS


@pytest.mark.parametrize("name", hostile.names())
def test_stored_whole_after_bounded_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = hostile.message(name)
    message = Message("0123456789abcdef" * 2, ENVELOPE, content, "192.0.2.1", 1_700_000_000.9)
    work = Work(monkeypatch)
    tracemalloc.start()
    try:
        reading = MAKER.read(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(next(iter(MAKER.rows(message, reading))), content)
    assert peak < MEMORY * max(len(content), 2_000_000)
    # The message, and a few that are within.
    assert work.looked_at <= 5 * MAX_PARTS
    assert work.texts <= 16
    assert work.decoded <= 16 * MAX_TEXT
    # Attachments once, texts, and messages for a text in them.
    assert work.undone <= 2 * len(content) + 16 * MAX_TEXT
    for each in reading.body.attachments:
        assert len(each.filename) <= MAX_NAME
        assert each.filename.isprintable()


def test_what_was_hostile_is_understood_as_far_as_it_goes() -> None:
    """The limits end the work, not the reading: what comes before them is found."""
    assert read_body(hostile.message("many parts")).text == "a"
    names = [each.filename for each in read_body(hostile.message("many attachments")).attachments]
    assert names == [str(number) for number in range(len(names))]
    assert MAX_PARTS - 2 <= len(names) <= MAX_PARTS
    (deep,) = read_body(hostile.message("multiparts 2000 deep")).attachments
    assert deep.content_type == "multipart/mixed"
    (section,) = read_body(hostile.message("sections of a name")).attachments
    assert set(section.filename) == {"a"}


def test_lookalikes_are_counted() -> None:
    """One more than is counted, and the delimiter behind is not found."""
    for count, found in ((mime.MAX_LOOKALIKES, 1), (mime.MAX_LOOKALIKES + 1, 0)):
        content = hostile.MULTIPART + b"--B\r\n\r\n" + b"--Bx\r\n" * count
        content += b"--B\r\nContent-Type: a/b\r\n\r\n--B--\r\n"
        assert len(read_body(content).attachments) == found


@pytest.mark.parametrize("size", [1_000_000, 4_000_000])
def test_a_search_is_not_begun_again_for_each_multipart(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However deep: the octets that are searched are a few times the message."""
    searched = 0
    split = mime._Search._split

    def counting(self: mime._Search, part: mime.Part) -> Any:
        nonlocal searched
        searched += part.end - part.start
        return split(self, part)

    monkeypatch.setattr(mime._Search, "_split", counting)
    content = b"\r\n" + hostile.flood(b"A line of text.\r\n", size)
    for depth in range(MAX_DEPTH):
        field = b"Content-Type: multipart/mixed; boundary=b%dx\r\n\r\n" % depth
        content = field + b"--b%dx\r\n" % depth + content
    mime.read_parts(content)
    assert searched < 5 * len(content)


@pytest.mark.parametrize("unit", [b"a=1; ", b'a="', b"a*0=", b";", b"=", b'"', b"\\", b"a "])
@pytest.mark.parametrize("field", [b"Content-Type: a/b; ", b"Content-Disposition: attachment; "])
def test_floods_of_parameters_end(unit: bytes, field: bytes) -> None:
    # In the square of 10 MB this test would take days.
    part = b"--B\r\n" + field + hostile.flood(unit, 1_000_000) + b"\r\n\r\na\r\n"
    read_body(hostile.MULTIPART + part * 5 + b"--B--\r\n")
