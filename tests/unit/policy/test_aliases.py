"""Whose mailboxes the alias file gives the mail for an address to, and what it is refused for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.policy import aliases as module
from gsmtpd.policy.aliases import Aliases, Found, read_aliases
from gsmtpd.policy.lists import ListError
from gsmtpd.smtp.address import Mailbox

LIMIT = 1000
STAYS = "write in one of them where the mail stays"

Read = Callable[..., Aliases]
Refused = Callable[..., tuple[str, ...]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str, limit: int = LIMIT) -> Aliases:
        path = tmp_path / "aliases"
        path.write_text(text, "utf-8", newline="")
        return read_aliases(str(path), limit)

    return read


@pytest.fixture
def refused(read: Read, tmp_path: Path) -> Refused:
    """The problems of a file, "line: text"."""

    def refused(text: str, limit: int = LIMIT) -> tuple[str, ...]:
        with pytest.raises(ListError) as caught:
            read(text, limit)
        return tuple(each.removeprefix(f"{tmp_path}/aliases:") for each in caught.value.problems)

    return refused


def targets(found: Found | None) -> str | None:
    return None if found is None else ", ".join(map(str, found.targets))


FILE = """\ufeff# who has what
ann@x.example: Ann@x.example, Bob,
\tCarl@Y.example   # of the other house

# between the lines
  , dora
sales: bob, eve@y.example\r
bob: Robert
bob@y.example: b.y
@x.example: sales
@y.example: Nobody
"a, b: #c"@x.example: "x y", "n\\o"@y.example
"a#": ann
u@[IPv6:2001:DB8::1]: v@[192.0.2.1]
info@m\u00fcller.example: \u00fcser
"""


@pytest.mark.parametrize(
    ("local", "domain", "expected", "line"),
    [
        ("ann", "x.example", "Ann@x.example, Robert@x.example, Carl@y.example, dora@x.example", 2),
        ("ann", "y.example", None, 0),
        ("bob", "x.example", "Robert@x.example", 8),
        ("bob", "y.example", "b.y@y.example", 9),
        ("sales", "z.example", "Robert@z.example, eve@y.example", 7),
        ("sales", "y.example", "b.y@y.example, eve@y.example", 7),
        ("robert", "x.example", None, 0),
        ('"a, b: #c"', "x.example", '"x y"@x.example, no@y.example', 12),
        ('"a#"', "q.example", None, 0),
        ("a#", "q.example", "ann@q.example", 13),
        ("a#", "x.example", "Ann@x.example, Robert@x.example, Carl@y.example, dora@x.example", 13),
        ("u", "[IPv6:2001:db8::1]", "v@[192.0.2.1]", 14),
        ("info", "xn--mller-kva.example", "\u00fcser@xn--mller-kva.example", 15),
        ("bob", "", "Robert", 8),
    ],
)
def test_exact(read: Read, local: str, domain: str, expected: str | None, line: int) -> None:
    found = read(FILE).exact(local, domain)
    assert targets(found) == expected
    assert found is None or found.line == line


def test_a_catch_all_is_for_its_domain_alone(read: Read) -> None:
    aliases = read(FILE)
    assert targets(aliases.catch_all("x.example")) == "Robert@x.example, eve@y.example"
    assert aliases.catch_all("a.x.example") is None
    assert aliases.catch_all("z.example") is None
    found = aliases.catch_all("y.example")
    assert found == Found((Mailbox("Nobody", "y.example"),), "@y.example", 11)


def test_a_target_is_never_caught_by_a_catch_all(read: Read) -> None:
    aliases = read("@x.example: boss\ninfo@x.example: nobody\nboss: chief@y.example\n")
    assert targets(aliases.exact("info", "x.example")) == "nobody@x.example"
    assert targets(aliases.catch_all("x.example")) == "chief@y.example"


def test_left_is_canonical(read: Read) -> None:
    aliases = read('"Ann"@X.Example: a\nBOB: b\n@X.example: c\n')
    found = (
        aliases.exact("ann", "x.example"),
        aliases.exact("bob", "q.example"),
        aliases.catch_all("x.example"),
    )
    assert [each and each.left for each in found] == ["ann@x.example", "bob", "@x.example"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@x.example: a@x.example, b@x.example", "a@x.example, b@x.example"),
        ("a: b, A", "b@x.example, A@x.example"),
        ("a: a@x.example, b", "a@x.example, b@x.example"),
        ("a: b, c\nb: d\nc: d", "d@x.example"),
        ("a: b, c\nb: c, B\nc: d, C", "d@x.example, C@x.example, B@x.example"),
        ("a: b\nb: c\nc: d\nd@x.example: e\nd: f", "e@x.example"),
        ("a: a@x.example", "a@x.example"),  # of all domains to one
        ("a@x.example: a\n@x.example: b", "a@x.example"),  # not caught, though the rest is
        ("a: b\na@x.example: A", "A@x.example"),
        ("a: a\n@x.example: b", "a@x.example"),
    ],
)
def test_each_mailbox_once_in_order_and_own_copies(read: Read, text: str, expected: str) -> None:
    assert targets(read(text).exact("a", "x.example")) == expected


def test_one_copy_where_two_targets_are_the_same_in_the_domain_asked_for(read: Read) -> None:
    aliases = read("all: bob, Bob@x.example, ann\n")
    assert targets(aliases.exact("all", "x.example")) == "bob@x.example, ann@x.example"
    assert targets(aliases.exact("all", "y.example")) == (
        "bob@y.example, Bob@x.example, ann@y.example"
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('a: "|/usr/bin/filter -x"', "runs no commands here; write the address that"),
        ("a: |filter", "runs no commands here"),
        ("a: /dev/null", "writes no files here"),
        ('a: "/var/mail/a b"', "writes no files here"),
        ("a: :include:/etc/list", "reads no other file for it"),
        ("a: \\a", '"\\a": a backslash means nothing here; write a'),
        (
            "a b@x.example",
            '"a b@x.example" has no colon behind the address; write "a: b@x.example"',
        ),
        ("a", '"a" has no colon behind the address'),
        ('"a: b', '""a: b" has quotes that are not closed'),
        ("a:", '"a:" names no target'),
        ("a: b c", '"b c" is not one address; write commas'),
        ("a b: c", '"a b" is not one address; write commas between targets, and a line for each'),
        ("a: b,", "nothing between two commas, or behind one"),
        ("a: b,,c", "nothing between two commas"),
        (": b", "no address before the colon"),
        ("a: @x.example", '"@x.example" names a whole domain as a target; write one of its'),
        ("*@x.example: a", "write @x.example for all of a domain"),
        ("*: a", "write @example.com for all of a domain"),
        ("/a: b", '"/a" is not an address'),
        ("a@192.0.2.1: b", "write [192.0.2.1]"),
        ("a: <b@x.example>", '"<b@x.example>" is not an address'),
        ("a: b@*.x.example", '"*.x.example" is not one domain'),
        ("@*.x.example: b", '"*.x.example" is not one domain'),
        (f"{'a' * 65}: b", "is not a local part"),
        ("a: b\x1b", '"b\\x1b" is not a local part'),
        (" a: b", "begins with white space, but continues no line before"),
    ],
)
def test_refused_with_what_to_write(refused: Refused, line: str, problem: str) -> None:
    found = refused(f"# first\n{line}\nlast: one\n")
    assert len(found) == 1
    assert found[0].startswith("2: ")
    assert problem in found[0]
    assert "; write " in found[0] or "; leave " in found[0]


def test_all_that_is_wrong_is_said_at_once(refused: Refused) -> None:
    lefts = "".join(f"a{i}: /dev/null\n" for i in range(300))
    assert [each[:2] for each in refused("a:\nb: c\nd: e,\n")] == ["1:", "3:"]
    found = refused(lefts)
    assert found[0].startswith("1: ")
    assert found[-1] == "and 90 more"  # nobody looks further than that


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a@x.example: b\nc: d\n\nA@X.example: c\n", "a@x.example"),
        ("c: b\n@m\u00fcller.example: d\n# 3\n@xn--mller-kva.example: e\n", ""),
        ('a.b: c\nc: d\n\n"a.b": e\n', "a.b"),
    ],
)
def test_the_same_left_twice(refused: Refused, text: str, name: str) -> None:
    (found,) = refused(text)
    assert found.startswith("4: ")
    assert f'{name}" is there twice, on line {2 if not name else 1} as well; write' in found


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("a: b\nb: a\n", "1: a loop: a -> b -> a (lines 1, 2); write "),
        ("a: b\nb: c\nc: x, b\n", "2: a loop: b -> c -> b (lines 2, 3); write "),
        (
            "a: b@y.example\nb: a@x.example\n",
            "1: a loop: a -> b@y.example -> a@x.example (lines 1, 2); write ",
        ),
        (
            "b: a\na@x.example: b\n",
            "2: a loop: a@x.example -> b@x.example -> a@x.example (lines 1, 2); write ",
        ),
        ("a: b\nb: a\na@x.example: c\n", "1: a loop: a -> b -> a (lines 1, 2); write "),
        (
            "a: b\nb: a, c\nc@x.example: d\n",  # in x.example, and in all others: once
            "1: a loop: a -> b -> a (lines 1, 2); write ",
        ),
        ("i: s\ns: i@x.example\n", "1: a loop: i -> s -> i@x.example (lines 1, 2); write "),
        ("a: a\n", '1: "a" is a loop that does nothing, as it names only itself; leave '),
        ("a@x.example: A, a@X.example\n", '1: "a@x.example" is a loop that does nothing'),
        ("@y.example: b\na@x.example: a\n", '2: "a@x.example" is a loop that does nothing'),
    ],
)
def test_a_loop_is_named_with_its_lines(refused: Refused, text: str, loop: str) -> None:
    (found,) = refused(text)
    assert found.startswith(loop)


def test_a_long_loop_is_not_named_in_full(refused: Refused) -> None:
    (found,) = refused("".join(f"a{i}: a{(i + 1) % 10_000}\n" for i in range(10_000)))
    assert "a0 -> a1 -> a2 -> a3 -> ... -> a9997 -> a9998 -> a9999 -> a0 (lines 1, 2," in found
    assert len(found) < 300


def test_not_all_of_many_loops_are_looked_for(refused: Refused) -> None:
    found = refused("".join(f"a{i}: b{i}\nb{i}: a{i}\n" for i in range(300)))
    assert found[0] == f"1: a loop: a0 -> b0 -> a0 (lines 1, 2); {STAYS}"
    assert found[-1] == "and 90 more"
    assert refused("".join(f"a{i}: a{i}\n" for i in range(300)))[-1] == "and 90 more"


def test_a_full_entry_ends_a_loop_in_its_domain_only(read: Read, refused: Refused) -> None:
    assert refused("a: b\nb: a\nb@x.example: c\n")
    aliases = read("a: b\nb@x.example: a@y.example\n")
    assert targets(aliases.exact("a", "x.example")) == "b@y.example"
    assert targets(aliases.exact("a", "y.example")) == "b@y.example"


# Too many


def test_the_limit_counts_mailboxes(read: Read, refused: Refused) -> None:
    text = "all: a, b, more\nmore: b, c, A\n"
    assert targets(read(text, 3).exact("all", "x.example")) == (
        "a@x.example, b@x.example, c@x.example"
    )
    assert refused(text, 2) == ('2: "more" leads to 3 mailboxes; write 2 or less',)


def test_the_limit_holds_where_only_one_domain_has_more(read: Read, refused: Refused) -> None:
    text = "all: team\nteam: a, b\nteam@x.example: a, b, c\nb@y.example: d, e\n"
    assert len(read(text, 3)) == 4
    assert refused(text, 2) == (
        '2: "team@y.example" leads to 3 mailboxes; write 2 or less',
        '3: "team@x.example" leads to 3 mailboxes; write 2 or less',
    )


def test_diamonds_and_long_chains_are_walked_once(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    steps = module._Follow._steps

    def counted(self: module._Follow, name: str) -> list[module._Step]:
        looked.append(name)
        return steps(self, name)

    monkeypatch.setattr(module._Follow, "_steps", counted)
    size = 10_000
    aliases = read("".join(f"a{i}: a{i + 1}, b{i}\nb{i}: a{i + 1}\n" for i in range(size)))
    assert len(looked) == len(set(looked)) == 2 * size
    assert targets(aliases.exact("a0", "x.example")) == f"a{size}@x.example"


# Where they lead


def test_targets_outside(read: Read, tmp_path: Path) -> None:
    aliases = read(
        "a: b, c@y.example, d@x.example\ne@z.example: f, g\n@x.example: h@[192.0.2.1], i\n"
    )
    asked: list[str] = []

    def is_served(domain: str) -> bool:
        asked.append(domain)
        return domain == "x.example"

    right = "is not in a served domain; gsmtpd forwards no mail: name an address of a served domain"
    assert aliases.outside(is_served) == [
        f'{tmp_path}/aliases:1: "c@y.example" {right}',
        f'{tmp_path}/aliases:2: "f@z.example" {right}',
        f'{tmp_path}/aliases:2: "g@z.example" {right}',
        f'{tmp_path}/aliases:3: "h@[192.0.2.1]" {right}',
    ]
    assert sorted(asked) == ["[192.0.2.1]", "x.example", "y.example", "z.example"]
    assert len(read("".join(f"a{i}: b@y.example\n" for i in range(300))).outside(is_served)) == 100


def test_none(read: Read) -> None:
    assert not Aliases.NONE
    assert Aliases.NONE.exact("a", "x.example") is None
    assert Aliases.NONE.catch_all("x.example") is None
    assert Aliases.NONE.outside(lambda domain: False) == []
    assert not read("# nothing\n\n")
    assert len(read("a: b\n@x.example: c\na@x.example: b\n")) == 3


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ListError, match="no such file"):
        read_aliases(str(tmp_path / "none"), LIMIT)


# Held against a walk that takes each address by itself

LOCALS = ["a", "b", "c", "d"]
DOMAINS = ["x.example", "y.example"]
ADDRESSES = [*LOCALS, *(f"{local}@{domain}" for local in LOCALS for domain in DOMAINS)]
FILES = st.dictionaries(
    st.sampled_from(LOCALS) | st.sampled_from([*ADDRESSES, *(f"@{each}" for each in DOMAINS)]),
    st.lists(st.sampled_from(LOCALS) | st.sampled_from(ADDRESSES), min_size=1, max_size=3),
    max_size=9,
)
ANYWHERE = "other.example"
Graph = dict[str, list[str]]


class Looped(Exception):
    """An address leads back to itself."""


def every_address(file: Graph) -> Graph:
    """What each address leads to at once, domain by domain."""
    graph = {}
    for domain in (*DOMAINS, ANYWHERE):
        for local in LOCALS:
            right = file.get(f"{local}@{domain}") or file.get(local)
            if right:
                graph[f"{local}@{domain}"] = [in_domain(each, domain) for each in right]
    return graph


def in_domain(target: str, domain: str) -> str:
    return target if "@" in target else f"{target}@{domain}"


def walk(graph: Graph, address: str, above: tuple[str, ...] = ()) -> list[str]:
    if address in above:
        raise Looped
    ends: list[str] = []
    for target in graph.get(address, [address]):
        own = target == address
        ends += [target] if own else walk(graph, target, (*above, address))
    return list(dict.fromkeys(ends))


def is_pointless(file: Graph) -> bool:
    for left, right in file.items():
        local, _, domain = left.partition("@")
        if {in_domain(each, domain or ANYWHERE) for each in right} != {
            in_domain(left, ANYWHERE) if local else ""
        }:
            continue
        if domain and not {local, f"@{domain}"} & file.keys():
            return True
        if not domain and not any(each[0] == "@" for each in file):
            return True
    return False


@settings(max_examples=1000, deadline=None)
@given(FILES, st.integers(1, 4))
def test_the_same_as_walking_from_each_address(file: Graph, limit: int) -> None:
    graph = every_address(file)
    looped, expected = False, dict[str, list[str]]()
    for address in graph:
        try:
            expected[address] = walk(graph, address)
        except Looped:
            looped = True
    catch_alls = {left[1:]: right for left, right in file.items() if left[0] == "@"}
    with tempfile.NamedTemporaryFile("w") as text:
        text.writelines(f"{left}: {', '.join(right)}\n" for left, right in file.items())
        text.flush()
        try:
            aliases = read_aliases(text.name, limit)
        except ListError as error:
            if looped:
                assert "loop" in str(error)
            elif "does nothing" in str(error):
                assert is_pointless(file)
            else:
                assert f"write {limit} or less" in str(error)
                lengths = [len(ends) for ends in expected.values()]
                for domain, right in catch_alls.items():
                    graph["catch-all"] = [in_domain(each, domain) for each in right]
                    lengths.append(len(walk(graph, "catch-all")))
                assert max(lengths) > limit
            return
    assert not looped
    assert not is_pointless(file)
    for domain in (*DOMAINS, ANYWHERE):
        for local in LOCALS:
            found = aliases.exact(local, domain)
            address = f"{local}@{domain}"
            assert (found and list(map(str, found.targets))) == expected.get(address)
            assert found is None or found.left == (address if address in file else local)
            assert found is None or len(found.targets) <= limit
    for domain in (*DOMAINS, ANYWHERE):
        found = aliases.catch_all(domain)
        assert (found is None) == (domain not in catch_alls)
        if found:
            graph["catch-all"] = [in_domain(each, domain) for each in catch_alls[domain]]
            assert list(map(str, found.targets)) == walk(graph, "catch-all")


@given(st.text(max_size=60) | st.text('ab"@:,\\[]# \n|/.x', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with tempfile.NamedTemporaryFile("wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        try:
            aliases = read_aliases(file.name, LIMIT)
        except ListError as error:
            assert error.problems
            assert all(each.isprintable() for each in error.problems)
        else:
            assert aliases.outside(lambda domain: True) == []
