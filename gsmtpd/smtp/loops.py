"""Does a message go round in circles? Each host that passes it on adds a Received field."""

from __future__ import annotations

import re

MAX_RECEIVED = 100  # Received fields, RFC 5321 section 6.3
_HEADER_READ = 65536  # octets of a header that are looked at
# A header may be empty, and its lines may end with LF alone.
_END_OF_HEADER = re.compile(rb"\A\r?\n|\n\r?\n")


def is_looping(content: bytes) -> bool:
    """Whether a message has so many Received fields that it must be in a loop."""
    return _received_fields(content) >= MAX_RECEIVED


def _received_fields(content: bytes) -> int:
    end = content.find(b"\r\n\r\n", 0, _HEADER_READ)
    header = content[: end if end >= 0 else _HEADER_READ]
    if header.count(b"\n") < MAX_RECEIVED - 1:
        return 0
    end_of_header = _END_OF_HEADER.search(header)
    if end_of_header is not None:
        header = header[: end_of_header.start()]
    return (b"\n" + header.lower()).count(b"\nreceived:")
