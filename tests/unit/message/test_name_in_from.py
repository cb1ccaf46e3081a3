"""Under what name does somebody write?"""

from __future__ import annotations

import pytest

from gsmtpd.message.names import MAX_NAME, name_of

ADDRESS = "ann@example.org"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("Ann Lee <ann@example.org>", "Ann Lee"),
        ('"Lee, Ann" <ann@example.org>', "Lee, Ann"),
        ('"Ann \\"the\\" Lee" <ann@example.org>, Bob <bob@example.org>', 'Ann "the" Lee'),
        ("ann@example.org (Ann Lee)", "Ann Lee"),
        ("Jörg <ann@example.org>", "Jörg"),
        ("Bank <service@bank.example> <ann@example.org>", "Bank <service@bank.example>"),
        ("<ann@example.org>", ""),
        ("ann@example.org", ""),
        ("ann@example.org, Bob <bob@example.org>", ""),
        ("Bob <bob@example.org>", ""),
        ('"" <ann@example.org>', ""),
        ('" <ann@example.org>', '"'),
        ("", ""),
    ],
)
def test_the_name(field: str, name: str) -> None:
    assert name_of(field, ADDRESS) == name


def test_without_an_address_there_is_no_name() -> None:
    assert name_of("Ann <>", "") == ""


def test_a_long_name_is_cut() -> None:
    found = name_of(f"{'x' * 5000} <{ADDRESS}>", ADDRESS)
    assert len(found) == MAX_NAME
    assert found.endswith("x…")
