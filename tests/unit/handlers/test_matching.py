"""Are the handlers found that act on an address, and no others?"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsmtpd.handlers.matching import Matcher
from gsmtpd.policy.names import a_labels, address_pattern
from gsmtpd.smtp.address import Mailbox, parse_mailbox


def mailbox(text: str) -> Mailbox:
    """As a session makes it of what a client says."""
    found = parse_mailbox(text)
    assert found is not None, text
    return found


def matches(pattern: str, address: str) -> bool:
    """Whether a handler with that pattern acts on mail for `address`; by both ways to ask."""
    matcher = Matcher({"it": [address_pattern(pattern)]})
    box = mailbox(address)
    found = matcher(box, box)
    assert matcher.of_texts(str(box), str(box)) == found
    return found == ["it"]


@pytest.mark.parametrize(
    ("pattern", "those", "others"),
    [
        ("joe@example.com", ["joe@example.com", "JOE@Example.COM"],
         ["joe@example.net", "joey@example.com", "xjoe@example.com", "joe@example.com.org",
          "joe@sub.example.com"]),
        ("Joe@Example.COM", ["joe@example.com", "JOE@EXAMPLE.com"], ["joe@example.net"]),
        ("joe", ["joe@example.com", "Joe@example.net", "joe@[127.0.0.1]"],
         ["joe2@example.com", "a@joe.example"]),
        ("@example.com", ["a@example.com", '"a b"@EXAMPLE.com'],
         ["a@sub.example.com", "a@example.org"]),
        ("info-*@example.com", ["info-@example.com", "info-a.b@example.com", "INFO-X@EXAMPLE.COM"],
         ["info@example.com", "xinfo-a@example.com", "info-a@example.net"]),
        ("*-bot", ["a-bot@example.com", "-bot@x.example"],
         ["a-bots@example.com", "a-bo@t.example"]),
        ("@*.example.com", ["a@b.example.com", "a@b.c.example.com"],
         ["a@example.com", "a@xexample.com", "a@b.example.com.org"]),
        ("@mail*.example.com", ["a@mail.example.com", "a@mail7.example.com"],
         ["a@amail.example.com"]),
        ("a*b*c@example.com", ["abc@example.com", "aXbYc@example.com", "abcbc@example.com"],
         ["acb@example.com", "ab@c.example.com"]),
        ("a.b*@example.com", ["a.bc@example.com"], ["axbc@example.com"]),
        ("b@bücher.example", ["b@bücher.example", "b@BÜCHER.example", "b@xn--bcher-kva.example"],
         ["b@bucher.example"]),
        ("@xn--bcher-kva.example", ["b@bücher.example", "b@Bücher.Example"], ["b@buecher.example"]),
        ("jörg@example.com", ["jörg@example.com", "JÖRG@example.com"], ["jorg@example.com"]),
        ("@[127.0.0.1]", ["a@[127.0.0.1]"], ["a@[127.0.0.2]"]),
        ('"a@b"@example.com', ['"A@b"@example.com'], ["b@example.com"]),
        ("x*@example.com", ["xy@example.com"], ['"x y"@example.com']),
    ],
)  # fmt: skip
def test_a_pattern(pattern: str, those: list[str], others: list[str]) -> None:
    assert {address: matches(pattern, address) for address in [*those, *others]} == {
        **dict.fromkeys(those, True),
        **dict.fromkeys(others, False),
    }


def test_a_star_is_no_at_sign() -> None:
    """A quoted local part may hold one, and would else seem to be in another domain."""
    assert matches("*x@*.com", "ax@z.com")
    assert not matches("*x@*.com", '"x@y"@z.com')
    assert not matches("*x", '"x@y"@z.com')
    assert not matches("joe*@example.com", '"joe@example.com"@example.net')


def test_the_recipient_and_the_mailbox_of_an_alias() -> None:
    matcher = Matcher(
        {"by-name": ["sales@example.com"], "by-box": ["joe@example.com"], "no": ["x"]}
    )
    sales, joe = mailbox("sales@example.com"), mailbox("joe@example.com")
    assert matcher(sales, joe) == ["by-name", "by-box"]
    assert matcher(sales, sales) == ["by-name"]
    assert matcher(joe, joe) == ["by-box"]
    assert matcher.of_texts("sales@example.com", "joe@example.com") == ["by-name", "by-box"]


def test_one_that_matches_both_is_named_once_and_in_the_order_of_the_file() -> None:
    patterns = {name: ["@example.com", "joe*", "joe"] for name in ("z", "a", "m")}
    found = Matcher(patterns)(mailbox("joe@example.com"), mailbox("joey@example.com"))
    assert found == ["z", "a", "m"]


def test_nothing_matches_where_there_is_nothing() -> None:
    assert Matcher({})(mailbox("a@b.example"), mailbox("a@b.example")) == []
    assert Matcher({"empty": []}).of_texts("a@b.example", "a@b.example") == []


def test_columns_as_they_are_stored() -> None:
    """In them case is kept, and a domain may be in Unicode."""
    matcher = Matcher({"it": ["joe@xn--bcher-kva.example"]})
    assert matcher.of_texts("Joe@bücher.example", "other@example.com") == ["it"]
    assert matcher.of_texts("other@example.com", "JOE@BÜCHER.example") == ["it"]
    assert matcher.of_texts("", "") == []
    assert matcher.of_texts("joe", "joe") == []


def test_the_postmaster_without_a_domain() -> None:
    """His row has the name of the host; asked before that is known, his local part names him."""
    postmaster = Mailbox("Postmaster", "")
    assert Matcher({"it": ["postmaster"]})(postmaster, postmaster) == ["it"]
    assert Matcher({"it": ["@example.com"]})(postmaster, postmaster) == []


# --- against a matcher that is slow and plain -----------------------------------------------------


def glob(pattern: str, text: str) -> bool:
    """Whether `text` is what `pattern` says: "*" is any characters but "@", tried one by one."""
    if not pattern:
        return not text
    if pattern[0] != "*":
        return text[:1] == pattern[0] and glob(pattern[1:], text[1:])
    ends = text.find("@") if "@" in text else len(text)
    return any(glob(pattern[1:], text[n:]) for n in range(ends + 1))


def naive(pattern: str, box: Mailbox) -> bool:
    local, domain = box.local.lower(), a_labels(box.domain)
    if "@" not in pattern:
        return glob(pattern, local)
    if pattern[0] == "@":
        return "@" not in local and glob(pattern[1:], domain) or domain == pattern[1:]
    return glob(pattern, f"{local}@{domain}")


LETTERS = st.text("ab", min_size=1, max_size=4)
STARRED = st.text("ab*", min_size=1, max_size=4)
NAMES = st.builds("{}.{}".format, LETTERS, st.sampled_from(["aa", "ab"]))
PATTERNS = st.one_of(
    st.builds("{}@{}".format, STARRED, NAMES),
    STARRED,
    st.builds("@{}".format, NAMES),
    st.builds("@{}.aa".format, STARRED),
    st.builds("{}@{}.ab".format, STARRED, STARRED),
)
BOXES = st.builds(Mailbox, st.text("abAB", min_size=1, max_size=4), NAMES)


def is_pattern(text: str) -> bool:
    try:
        return address_pattern(text) == text
    except ValueError:
        return False


@given(st.lists(st.lists(PATTERNS.filter(is_pattern), max_size=4), max_size=4), BOXES, BOXES)
@example([["a*"], ["@*.aa"], ["*@a.aa"]], Mailbox("A", "b.aa"), Mailbox("B", "a.aa"))
def test_as_a_slow_one_does(lists: list[list[str]], recipient: Mailbox, mailbox: Mailbox) -> None:
    named = {str(number): patterns for number, patterns in enumerate(lists)}
    wanted = [
        name
        for name, patterns in named.items()
        if any(naive(pattern, box) for pattern in patterns for box in (recipient, mailbox))
    ]
    matcher = Matcher(named)
    assert matcher(recipient, mailbox) == wanted
    assert matcher.of_texts(str(recipient), str(mailbox)) == wanted
