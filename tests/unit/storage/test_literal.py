"""Is a value a literal that ends where it should? The MySQL tests ask a real server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.storage.literal import text_literal


def read(literal: bytes) -> bytes:
    """The value of the quoted `literal`, as MySQL reads the escapes that are used here."""
    assert literal[:1] == b"'"
    value, at = b"", 1
    while literal[at : at + 1] != b"'":
        if literal[at : at + 1] == b"\\":
            at += 1
            assert literal[at : at + 1] in (b"\\", b"'")
        value += literal[at : at + 1]
        at += 1
        assert at < len(literal)
    assert at == len(literal) - 1  # nothing stands behind the closing quote
    return value


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("", "''"),
        ("a", "'a'"),
        ("it's", r"'it\'s'"),
        ("a\\", r"'a\\'"),
        ("\\'", r"'\\\''"),
        ("'; DROP TABLE new_mail; --", r"'\'; DROP TABLE new_mail; --'"),
        ('"\x00\n\r\x1a%_', "'\"\x00\n\r\x1a%_'"),
        ("ü用\U0001f600", "'ü用\U0001f600'"),
    ],
)
def test_text(value: str, literal: str) -> None:
    assert text_literal(value) == literal


pieces = st.lists(st.sampled_from(["'", "\\", "\x00", "a", "ü", '"', "\\'"]), max_size=12).map(
    "".join
)


@given(st.one_of(pieces, st.text()))
def test_text_is_read_back(value: str) -> None:
    encoded = value.encode("utf-8", "surrogatepass")
    assert read(text_literal(value).encode("utf-8", "surrogatepass")) == encoded
