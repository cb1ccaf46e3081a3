"""Is a recipient ours? Never a relay, whatever its address looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.policy.domains import DomainPolicy
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox, parse_path

ACCEPT = ["example.com", "mail.example.com", "xn--bcher-kva.example", "[127.0.0.1]", "[IPv6:::1]"]
OURS = [
    "<u@example.com>",
    "<u@EXAMPLE.COM>",
    "<u@mail.example.com>",
    "<Postmaster>",
    "<postmaster@example.com>",
    "<u%other.example@example.com>",
    "<other.example!u@example.com>",
    '<"u@other.example"@example.com>',
    "<@other.example:u@example.com>",
    "<u@[127.0.0.1]>",
    "<u@[IPv6:::1]>",
    "<u@[IPv6:0:0:0:0:0:0:0:1]>",
    "<ü@example.com>",
    # Both forms of an internationalized name
    "<u@xn--bcher-kva.example>",
    "<u@XN--BCHER-KVA.example>",
    "<u@bücher.example>",
    "<u@BÜCHER.Example>",
    "<u@bu\u0308cher.example>",
]
NOT_OURS = [
    "<u@example.org>",
    "<u@example.co>",
    "<u@example.com.org>",
    "<u@xexample.com>",
    "<u@sub.example.com>",
    "<u@com>",
    "<postmaster@example.org>",
    "<u%example.com@example.org>",
    "<example.com!u@example.org>",
    '<"u@example.com"@example.org>',
    "<@example.com:u@example.org>",
    "<u@[127.0.0.2]>",
    "<u@127.0.0.1>",
    "<u@[IPv6:::2]>",
    "<u@[IPv6:::ffff:127.0.0.1]>",
    "<u@bucher.example>",
    "<u@böcher.example>",
    "<u@bücher.example.org>",
    "<u@exаmple.com>",  # the third letter is Cyrillic
    "<u@example\u0301.com>",
    # No name at all for the codec
    "<u@\u00ad>",
    "<u@\u200b.\u200b>",
    "<u@\uff0e>",
    f"<u@{'ü' * 63}.example>",
]


@pytest.fixture(name="policy")
def make_policy() -> DomainPolicy:
    return DomainPolicy(ACCEPT)


@pytest.mark.parametrize("path", OURS)
def test_ours(policy: DomainPolicy, path: str) -> None:
    mailbox = parse_path(path)
    assert mailbox is not None
    assert policy.recipient(mailbox) == reply.RECIPIENT_OK


@pytest.mark.parametrize("path", NOT_OURS)
def test_not_ours(policy: DomainPolicy, path: str) -> None:
    mailbox = parse_path(path)
    assert mailbox is not None
    assert policy.recipient(mailbox) == reply.NOT_SERVED


def test_who_serves_nothing_takes_mail_for_the_postmaster_only() -> None:
    policy = DomainPolicy([])
    assert policy.recipient(Mailbox("postmaster", "")) == reply.RECIPIENT_OK
    assert policy.recipient(Mailbox("u", "example.com")) == reply.NOT_SERVED


@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"]), min_size=1))
def test_no_name_beyond_ascii_is_taken_by_chance(name: str) -> None:
    mailbox = parse_path(f"<u@{name}.example>")
    if mailbox is not None:
        assert DomainPolicy(ACCEPT).recipient(mailbox) == reply.NOT_SERVED
