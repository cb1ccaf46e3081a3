"""What do other servers take for the end of a message? Octets that must end nothing here."""

from __future__ import annotations

FALSE_ENDS: dict[str, bytes] = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n",
    "LF.CR": b"\n.\r",
    "CR.LF": b"\r.\n",
    "CRLF.CR": b"\r\n.\r",
    "CRLF.CRCRLF": b"\r\n.\r\r\n",
    "CRCRLF.CRCRLF": b"\r\r\n.\r\r\n",
    "CRLF-NUL.CRLF": b"\r\n\x00.\r\n",
    "CRLF.NUL-CRLF": b"\r\n.\x00\r\n",
    "CRLF.space-CRLF": b"\r\n. \r\n",
    # Line ends of Python's splitlines() only.
    "VT.VT": b"\x0b.\x0b",
    "FF.FF": b"\x0c.\x0c",
    "FS.FS": b"\x1c.\x1c",
    "NEL.NEL": b"\x85.\x85",
    "LS.LS": "\u2028.\u2028".encode(),
}
END = b"\r\n.\r\n"


def unstuffed(wire: bytes) -> bytes:
    """The message that was sent as `wire`, which stands before the true final dot.

    Line by line, as RFC 5321 section 4.5.2 has it: one leading dot is removed.
    """
    return b"\r\n".join(line.removeprefix(b".") for line in wire.split(b"\r\n"))


def smuggled(recipient: str) -> bytes:
    """Commands and a message for `recipient`, as a smuggler puts them behind a false end."""
    return (
        b"MAIL FROM:<forged@example.net>\r\n"
        b"RCPT TO:<%s>\r\n"
        b"DATA\r\n"
        b"Subject: smuggled\r\n"
        b"\r\n"
        b"smuggled" % recipient.encode()
    )
