"""Does each message of the corpus become the row and the attachments that are written beside it?

`tests/messages/NAME.eml` is a message as received, `NAME.json` what it must become with
`decode = body`; its "mailer" says whose habit the message shows. What is expected was written by
hand from the text that went into the message, never taken from this parser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gsmtpd.message.row import Decode, Message, RowMaker
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope

CORPUS = Path(__file__).resolve().parents[2] / "messages"
NAMES = sorted(path.stem for path in CORPUS.glob("*.json"))
COLUMNS = (
    "from_",  # "from" is a word of Python
    "subject",
    "reply_to",
    "sender",
    "message_id",
    "content_type",
    "charset",
    "body",
    "has_attach",
)
ATTACHMENT = ("filename", "content_type", "size", "sha256")
ENVELOPE = Envelope(
    "client.example.org", True, Mailbox("bounce", "example.org"), (Mailbox("u", "example.com"),)
)
MAKER = RowMaker("mx.example.com", decode=Decode.BODY)


def expected(name: str) -> dict[str, Any]:
    """What the message `name` must become, and whose habit it is."""
    found: dict[str, Any] = json.loads((CORPUS / f"{name}.json").read_text("utf-8"))
    return found


def made(content: bytes) -> dict[str, Any]:
    """What `content` becomes, under the names of the .json files."""
    message = Message("0123456789abcdef" * 2, ENVELOPE, content, "192.0.2.1", 1_700_000_000.9)
    reading = MAKER.read(message)
    row = next(iter(MAKER.rows(message, reading)))
    values = {column.rstrip("_"): getattr(row, column) for column in COLUMNS}
    values["attachments"] = [
        {field: getattr(each, field) for field in ATTACHMENT} for each in reading.body.attachments
    ]
    return values


@pytest.mark.parametrize("name", NAMES)
def test_message(name: str) -> None:
    wanted = expected(name)
    assert wanted.pop("mailer")
    assert made((CORPUS / f"{name}.eml").read_bytes()) == wanted


def test_there_are_messages() -> None:
    assert len(NAMES) >= 150


def test_every_message_has_its_expectation() -> None:
    assert sorted(path.stem for path in CORPUS.glob("*.eml")) == NAMES


def test_line_ends_are_those_of_smtp() -> None:
    """Git left the octets alone (.gitattributes): a checkout with LF would test something else."""
    content = (CORPUS / "charset-us-ascii-7bit.eml").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") > 0
