"""How does a value become an SQL literal that MySQL and MariaDB read back byte for byte?

Backslash escapes instead of hexadecimal: half the bytes to send and to parse. Two characters end
or bend a quoted literal, the quote and the backslash; both are escaped, and every other byte,
NUL included, stands for itself. That holds while NO_BACKSLASH_ESCAPES is off and the connection
speaks utf8mb4, in which no byte of a longer character is below 0x80; `mysql.connect` sees to both.
"""

from __future__ import annotations


def text_literal(value: str) -> str:
    """`value` as a quoted literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def bytes_literal(value: bytes) -> bytes:
    """`value` as a quoted literal of no character set."""
    return b"_binary'" + value.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
