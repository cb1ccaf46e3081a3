"""How does a text become an SQL literal that MySQL and MariaDB read back as it was?

Two characters end or bend a quoted literal, the quote and the backslash; both are escaped, and
every other one, NUL included, stands for itself. That holds while NO_BACKSLASH_ESCAPES is off and
the connection speaks utf8mb4, in which no byte of a longer character is below 0x80;
`mysql_connection.connect_to` sees to both.
"""

from __future__ import annotations


def text_literal(value: str) -> str:
    """`value` as a quoted literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
