"""gsmtpd.config_handlers: which handlers there are, whose mail is theirs, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gsmtpd import cli, config
from gsmtpd.config import Config, ConfigError, HandlersConfig
from gsmtpd.config_handlers import is_secret
from gsmtpd.config_types import HandlerConfig
from gsmtpd.policy.names import address_pattern
from gsmtpd.privileges import PrivilegeError
from tests.unit.test_config import SHIPPED

Loader = Callable[..., Config]
Refuser = Callable[..., tuple[str, ...]]

BALL = "[handlers]\n[[ball]]\nmatch = ball@example.com\nclass = magic8ball\n"
MADE = HandlerConfig("ball", ("ball@example.com",), "magic8ball", "", None, None, None, ())
HUNTER = "hunter2-never-shown"


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    def load_text(text: str, environ: Mapping[str, str] = {}) -> Config:
        (tmp_path / "gsmtpd.conf").write_text(text, "utf-8")
        return config.load(str(tmp_path / "gsmtpd.conf"), environ=environ)

    return load_text


@pytest.fixture
def refused(load: Loader, tmp_path: Path) -> Refuser:
    """The problems with a text, the name of the file cut to "FILE"."""

    def problems(text: str, environ: Mapping[str, str] = {}) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        return tuple(p.replace(f"{tmp_path}/gsmtpd.conf", "FILE") for p in caught.value.problems)

    return problems


# What is taken


def test_none_at_all(load: Loader) -> None:
    assert load("").handlers == HandlersConfig("", "", 30.0, 512 << 20, 2, 12, 10.0, ())


def test_one(load: Loader) -> None:
    loaded = load(BALL)
    assert loaded.handlers.each == (MADE,)
    assert loaded.warnings == loaded.secret_files == ()


def test_all_there_is(load: Loader) -> None:
    loaded = load(
        "[handlers]\ndirectory = /srv/handlers\nsmarthost = Mail.Example.COM\ntime_limit = 1m\n"
        "tries = 3\npause = 500ms\nprocesses = 64\nmemory_limit = 1G\n"
        "[[z]]\nmatch = Joe@Example.COM, sales-*, @*.example.net, joe@example.com\n"
        "class = our_module.Class\nsmarthost = [2001:DB8::1]:2525\ntime_limit = 100ms\n"
        'memory_limit = 64M\nprocesses = 1\nurl = https://a.example/?a=1&b="2"\ntext = a, b\n'
        "[[8-Ball_]]\nmatch = *\nclass = to-a-printer\n"
    )
    assert loaded.handlers == HandlersConfig(
        "/srv/handlers", "mail.example.com", 60.0, 1 << 30, 64, 3, 0.5,
        (
            HandlerConfig(
                "z", ("joe@example.com", "sales-*", "@*.example.net"), "our_module.Class",
                "[2001:db8::1]:2525", 0.1, 64 << 20, 1,
                (("url", 'https://a.example/?a=1&b="2"'), ("text", "a, b")),
            ),
            HandlerConfig("8-Ball_", ("*",), "to-a-printer", "", None, None, None, ()),
        ),
    )  # fmt: skip
    assert load(config.dump(loaded)) == loaded


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("plain words", "plain words"), ("a, b", "a, b"), ("'a # b'", "a # b"), ("a # b", "a"),
        ('"it\'s"', "it's"), ("'say \"hi\"'", 'say "hi"'), ('" spaced "', " spaced "), ("", ""),
        ("'''two\nlines'''", "two\nlines"), ('"""\'"\'"""', "'\"'"), ("%(x)s $y", "%(x)s $y"),
        ("ünï €", "ünï €"), ("a=b", "a=b"), ("[x]", "[x]"), ('""', ""), ("it's", "it's"),
    ],
)  # fmt: skip
def test_a_setting_is_text(load: Loader, written: str, value: str) -> None:
    loaded = load(f"{BALL}text = {written}\nnext = 1\n")
    assert loaded.handlers.each[0].settings == (("text", value), ("next", "1"))
    assert load(config.dump(loaded)) == loaded


SETTINGS = st.text(
    st.one_of(
        st.sampled_from("\"'#,= \n\t\\[]%$ab"), st.characters(exclude_categories=["Cc", "Cs"])
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SETTINGS, max_size=3))
@example(["'\"", "\"'", "'", '"', "''", "#", ",", " ", "a ", "\n", "'\n", '"\n', "'''", '"""'])
@example(["\n'", '\n"', "\"\n'", "'\n\"", "a\"b'", "a'b\"", "'''\"", '"""\''])
def test_what_is_dumped_loads_equal(load: Loader, values: list[str]) -> None:
    """Whatever a file can have."""
    values = [value for value in values if not ("'''" in value and '"""' in value)]
    named = tuple((f"key{number}", value) for number, value in enumerate(values))
    loaded = load(BALL)
    changed = replace(loaded.handlers, each=(replace(MADE, settings=named),))
    loaded = replace(loaded, handlers=changed)
    assert load(config.dump(loaded)).handlers.each[0].settings == named


# What is refused

FILE = "cannot stand here; write addresses and patterns, e.g. sales-*@example.com"
PATTERN = (
    "is not a pattern of addresses; write one like info-*@example.com, sales* or @*.example.com"
)


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ("a*b*c*d*", '"a*b*c*d*" has too many *; write 3 at most'),
        ("a b", '"a b" is not a local part; write user'),
        ("a b*", f'"a b*" {PATTERN}'),
        ("@", '"" is not a domain name; write one like mail.example.com'),
        ("joe@", '"" is not a domain name; write one like mail.example.com'),
        ("*@", f'"*@" {PATTERN}'),
        ("ü*@example.com", f'"ü*@example.com" {PATTERN}'),
        ("a@*.1", f'"a@*.1" {PATTERN}'),
        ("a@b@c.example", '"a@b@c.example" is not an address; write one like user@example.com'),
        ("@/etc/list", f'"@/etc/list" is a file, which {FILE}'),
        ("/etc/list", f'"/etc/list" is a file, which {FILE}'),
        ("""'''"a b"@x.example'''""", f'"\"a b\"@x.example" is in quotes, which {FILE}'),
        ("fine@example.com, a..b@c.example",
         '"a..b@c.example" is not an address; write one like user@example.com'),
    ],
)  # fmt: skip
def test_a_match_that_is_refused(refused: Refuser, match: str, said: str) -> None:
    text = f"[handlers]\n[[b]]\nmatch = {match}\nclass = x\n"
    assert refused(text) == (f"FILE:3: [handlers] [[b]] match: {said}",)


@pytest.mark.parametrize(
    "name", ["a b", "1x", "a..b", ".a", "a.", "a:b", "a.b-c", "../x", "ä", "a/b"]
)
def test_a_class_that_is_refused(refused: Refuser, name: str) -> None:
    said = f'"{name}" is not a class; write e.g. magic8ball or module.Class'
    text = f"[handlers]\n[[b]]\nmatch = b@example.com\nclass = {name}\n"
    assert refused(text) == (f"FILE:4: [handlers] [[b]] class: {said}",)


@pytest.mark.parametrize("name", ["a b", "-x", "_x", "ä", "x" * 65, "a.b", "a,b", "a/b"])
def test_a_name_that_is_refused(refused: Refuser, name: str) -> None:
    said = "is not a name for a handler; write up to 64 letters, digits, - and _ only"
    assert refused(BALL.replace("ball]]", f"{name}]]")) == (
        f"FILE:2: [handlers] [[{name}]]: {said}",
    )


@pytest.mark.parametrize("other", ["Ball", "BALL"])
def test_names_that_are_alike(refused: Refuser, other: str) -> None:
    second = BALL.removeprefix("[handlers]\n").replace("[[ball]]", f"[[{other}]]")
    said = "is [[ball]] but for capitals, - and _; write another name"
    assert refused(BALL + second) == (f"FILE:5: [handlers] [[{other}]]: {said}",)


def test_what_is_missing(refused: Refuser) -> None:
    assert refused("[handlers]\n[[a]]\n") == (
        "FILE:2: [handlers] [[a]]: has no match; write one, as match = 8ball@example.com",
        "FILE:2: [handlers] [[a]]: has no class; write one, as class = magic8ball",
    )


def test_what_is_wrong_is_not_missing_too(refused: Refuser) -> None:
    assert len(refused("[handlers]\n[[a]]\nmatch = a b\nclass = 1\n")) == 2
    match, name = "GSMTPD_HANDLERS_A_MATCH", "GSMTPD_HANDLERS_A_CLASS"
    said = "has a control character, or is not UTF-8; take it out"
    assert refused("", {match: "a\x01", name: "x"}) == (f"{match}: [handlers] [[a]] match: {said}",)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("smarthost", "x:0", '"x:0" has no good port; write 1 to 65535 after the :'),
        ("smarthost", "::1",
         '"::1" is ambiguous; write an IPv6 address in brackets, e.g. [::1]:25'),
        ("time_limit", "1ms", '"1ms" is too small; write 100ms to 1d'),
        ("time_limit", "2d", '"2d" is too big; write 100ms to 1d'),
        ("memory_limit", "63M", '"63M" is too small; write 64M to 1024G'),
        ("memory_limit", "2000G", '"2000G" is too big; write 64M to 1024G'),
        ("processes", "0", '"0" is too small; write 1 to 64'),
        ("processes", "65", '"65" is too big; write 1 to 64'),
        ("processes", "auto", '"auto" is not a whole number; write 1 to 64'),
    ],
)  # fmt: skip
def test_a_limit_that_is_refused(refused: Refuser, key: str, value: str, said: str) -> None:
    """For all of them, and for one."""
    line = f"{key} = {value}\n"
    assert refused(f"[handlers]\n{line}") == (f"FILE:2: [handlers] {key}: {said}",)
    assert refused(BALL + line) == (f"FILE:5: [handlers] [[ball]] {key}: {said}",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tries = 0", 'tries: "0" is too small; write 1 to 100'),
        ("tries = 101", 'tries: "101" is too big; write 1 to 100'),
        ("pause = 7h", 'pause: "7h" is too big; write 100ms to 6h'),
        ("directory = here", 'directory: "here" is not a full path; write one that begins with /'),
        ("timelimit = 3", "timelimit: unknown key; did you mean time_limit?"),
    ],
)
def test_a_key_that_is_refused(refused: Refuser, line: str, said: str) -> None:
    assert refused(f"[handlers]\n{line}\n") == (f"FILE:2: [handlers] {said}",)


def test_a_setting_that_is_refused(refused: Refuser) -> None:
    comment = '"#" begins a comment and ends the value; put the value in quotes'
    assert refused(f"{BALL}url = a#b\n") == (
        f'FILE:5: [handlers] [[ball]] url: {comment}, or a space before "#"',
    )
    twice = "appears twice (first on line 5); keep one of them"
    assert refused(f"{BALL}url = a\nurl = b\n") == (f"FILE:6: [handlers] [[ball]] url: {twice}",)
    inner = "unknown section; none fits here"
    assert refused(f"{BALL}[[[x]]]\na = 1\n") == (f"FILE:5: [handlers] [[ball]] [[[x]]]: {inner}",)


def test_mail_that_is_not_kept_cannot_be_acted_on(load: Loader, refused: Refuser) -> None:
    nowhere = "[store]\nbackend = null\n"
    said = "act on mail that is stored, and [store] backend is null; set that to sqlite or mysql"
    assert refused(BALL + nowhere) == (f"FILE:1: [handlers]: {said}",)
    assert load(nowhere).handlers.each == ()


# Secrets


@pytest.mark.parametrize(
    ("key", "yes"),
    [
        ("secret", True), ("password", True), ("token", True), ("api_token", True),
        ("Secret", True),
        ("my-password", True), ("secret_file", False), ("password_file", False), ("tokens", False),
        ("secretary", False), ("nosecret", False), ("url", False),
    ],
)  # fmt: skip
def test_a_secret_is_never_dumped(load: Loader, key: str, yes: bool) -> None:
    assert is_secret(key) is yes
    loaded = load(f"{BALL}{key} = {HUNTER}\nother = 1\n")
    assert loaded.handlers.each[0].settings == ((key, HUNTER), ("other", "1"))
    dumped = config.dump(loaded)
    assert (HUNTER in dumped) is not yes
    assert (f"# {key} is never shown" in dumped) is yes
    assert ("other", "1") in load(dumped).handlers.each[0].settings
    assert loaded.secret_files == ((loaded.path,) if yes else ())


def test_a_secret_that_is_empty_or_a_variable_needs_no_care(load: Loader) -> None:
    assert load(f"{BALL}secret =\n").secret_files == ()
    loaded = load(f"{BALL}secret =\n", {"GSMTPD_HANDLERS_BALL_SECRET": HUNTER})
    assert loaded.handlers.each[0].settings == (("secret", HUNTER),)
    assert loaded.secret_files == ()
    assert HUNTER not in config.dump(loaded)


def test_others_must_not_read_a_file_with_a_secret(load: Loader) -> None:
    user = "[server]\nuser = nobody\n"  # where root runs this
    path = load(f"{BALL}secret = {HUNTER}\n{user}").path
    os.chmod(path, 0o644)
    with pytest.raises(PrivilegeError) as caught:
        cli._load(path, None, None, False)
    assert path in str(caught.value)
    assert HUNTER not in str(caught.value)
    os.chmod(path, 0o600)
    assert cli._load(path, None, None, False).handlers.each
    load(BALL + user)
    os.chmod(path, 0o644)
    assert cli._load(path, None, None, False).handlers.each


# Variables


def test_variables(load: Loader) -> None:
    loaded = load(
        f"{BALL}api-url = a\n",
        {
            "GSMTPD_HANDLERS_TRIES": "7",
            "GSMTPD_HANDLERS_BALL_MATCH": "x@example.com, @example.net",
            "GSMTPD_HANDLERS_BALL_TIME_LIMIT": "3s",
            "GSMTPD_HANDLERS_BALL_API_URL": " b, '#' ",
        },
    )
    (made,) = loaded.handlers.each
    assert loaded.handlers.tries == 7
    assert (made.match, made.time_limit) == (("x@example.com", "@example.net"), 3.0)
    assert made.settings == (("api-url", " b, '#' "),)
    assert load(config.dump(loaded)) == loaded


def test_a_handler_by_variables_alone(load: Loader) -> None:
    match, name = "GSMTPD_HANDLERS_BALL_MATCH", "GSMTPD_HANDLERS_BALL_CLASS"
    loaded = load("", {match: "ball@example.com", name: "magic8ball"})
    assert loaded.handlers.each == (MADE,)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"GSMTPD_HANDLERS_BALL_NEW": "x"},
         "GSMTPD_HANDLERS_BALL_NEW: unknown variable; did you mean GSMTPD_HANDLERS_BALL_"),
        ({"GSMTPD_HANDLERS_TRIES": "x"},
         'GSMTPD_HANDLERS_TRIES: [handlers] tries: "x" is not a whole number; write 1 to 100'),
        ({"GSMTPD_HANDLERS_BALL_CLASS": "a b"}, "GSMTPD_HANDLERS_BALL_CLASS: [handlers] [[ball]]"
         ' class: "a b" is not a class; write e.g. magic8ball or module.Class'),
        ({"GSMTPD_HANDLERS_NEW_MATCH": "a@b.example"}, "GSMTPD_HANDLERS_NEW_MATCH: [handlers]"
         " [[new]] match: has no class; write one, as class = magic8ball"),
    ],
)  # fmt: skip
def test_variables_that_are_refused(refused: Refuser, environ: dict[str, str], said: str) -> None:
    (problem,) = refused(BALL, environ)
    assert problem.startswith(said)


# Patterns, and the shipped file


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Joe@Example.COM", "joe@example.com"), ("JOE", "joe"), ("@Bücher.example",
         "@xn--bcher-kva.example"), ("Info-*@EXAMPLE.com", "info-*@example.com"), ("*", "*"),
        ("@*", "@*"), ("*@*", "*@*"), ("a**b", "a**b"), ("@*.Example.com", "@*.example.com"),
        ("*@mail*.example.com", "*@mail*.example.com"), ("@[127.0.0.1]", "@[127.0.0.1]"),
        ('"a*b"', None), ("a*@[127.0.0.1]", "a*@[127.0.0.1]"), ("*.@x.example", None),
        (".*@x.example", None), ("*@-x.example", None), ("a*@b@c.example", None), ("*\n", None),
        ("jör*", None), ("a*b*c*d", "a*b*c*d"), ("a*b*c*d*e", None), ("", None),
    ],
)  # fmt: skip
def test_patterns(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(ValueError):
            address_pattern(text)
    else:
        assert address_pattern(text) == canonical == address_pattern(canonical)


def test_the_handler_in_the_comments_of_the_shipped_file(load: Loader) -> None:
    """Its hashes taken away, it works."""
    text: Any = SHIPPED.read_text()
    assert text.count("  #[[8ball]]") == 1
    for word in ("[[8ball]]", "match = 8ball", "class = magic8ball"):
        assert text.count(f"  #{word}") == 1
        text = text.replace(f"  #{word}", f"  {word}")
    loaded = load(text)
    assert loaded.handlers.each == (replace(MADE, name="8ball", match=("8ball@example.com",)),)
    assert loaded.warnings == ()
