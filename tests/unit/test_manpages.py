"""Are the manual pages true of the program, complete, and clean?

The pages have regular forms for what is checked here: an item for each option, key, column and
so on. `items` and `blocks` find them; tests/functional/test_manpage_examples.py runs the blocks.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import itertools
import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from configobj import ConfigObj  # type: ignore[import-untyped]

from gsmtpd import cli, config, ctl, master
from gsmtpd.config_file import MANY, Place, check_name
from gsmtpd.config_file import settings as spec_places
from gsmtpd.faultlab import cli as faultlab
from gsmtpd.faultlab.check import VIOLATIONS
from gsmtpd.maillog import MailLog, json_line
from gsmtpd.message.row import COLUMNS, Message, RowMaker
from gsmtpd.policy import names
from gsmtpd.policy.aliases import read_aliases
from gsmtpd.policy.lists import read_list
from gsmtpd.server.port_owner import Process
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.smtp.refusal import About, Refusal
from gsmtpd.smtp.reply import Reply
from gsmtpd.storage import sqlite
from gsmtpd.storage.schema import statements
from tests.servers import ROOT, find_program

MAN = ROOT / "man"
PAGES = ["gsmtpd.8", "gsmtpctl.8", "gsmtpd-faultlab.8", "gsmtpd.conf.5", "gsmtpd-schema.5"]
DATE = ".Dd November 22, 2026"
SHIPPED = ROOT / "etc" / "gsmtpd.conf"
SPEC: Any = ConfigObj(str(config.SPEC), interpolation=False, list_values=False, _inspec=True)
ELSES = ("[Service]", "[Timer]", "[mysqld]")  # what other programs' files begin with
ESCAPES = {
    "\\e": "\\", "\\-": "-", "\\&": "", "\\(aq": "'", "\\(dq": '"', "\\(ga": "`", "\\(ha": "^",
    "\\(:u": "ü",
}  # fmt: skip


# --- reading a page -----------------------------------------------------------------------------


class Item(NamedTuple):
    """An item of a list. head: what stands behind .It, macros and all. body: up to the next."""

    section: str
    subsection: str
    head: str
    body: str


class Block(NamedTuple):
    """A literal block, as the reader sees it."""

    section: str
    subsection: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def plain(text: str) -> str:
    """`text` without roff's escapes. Raises KeyError for one that is not in use here."""
    return re.sub(r"\\(\(..|.)", lambda match: ESCAPES[match[0]], text)


def source(page: str) -> str:
    return (MAN / page).read_text("utf-8")


def placed(page: str) -> Iterator[tuple[str, str, str]]:
    """Each line with the section and the subsection it is in."""
    section = subsection = ""
    for line in source(page).replace("\\\n", "").splitlines():  # a long line may go on
        if line.startswith(".Sh "):
            section, subsection = line[4:], ""
        elif line.startswith(".Ss "):
            subsection = line[4:]
        yield section, subsection, line


def items(page: str, section: str) -> list[Item]:
    """The items in a section of a page."""
    found: list[Item] = []
    for where, subsection, line in placed(page):
        if where == section and line.startswith(".It"):
            found.append(Item(section, subsection, plain(line[4:]), ""))
        elif found and line.startswith((".Sh ", ".Ss ")):
            found[-1] = found[-1]._replace(body=found[-1].body + "\n.El\n")
        elif found and where == section:
            found[-1] = found[-1]._replace(body=found[-1].body + plain(line) + "\n")
    return found


@cache
def blocks(page: str) -> list[Block]:
    """The literal blocks of a page."""
    found: list[Block] = []
    inside = False
    for section, subsection, line in placed(page):
        if line.startswith(".Bd "):
            inside = True
            found.append(Block(section, subsection, ""))
        elif line == ".Ed":
            inside = False
        elif inside:
            found[-1] = found[-1]._replace(text=found[-1].text + plain(line) + "\n")
    return found


def block(page: str, subsection: str, begins: str) -> str:
    """The one block below the heading that begins so."""
    (found,) = (b.text for b in blocks(page) if b.subsection == subsection and
                b.text.startswith(begins))  # fmt: skip
    return found


def options(text: str) -> set[str]:
    """The options in mdoc: "Fl c Ar file" is -c, "Fl Fl raw" is --raw, "Fl nv" is -n and -v."""
    found: set[str] = set()
    dashes = ""
    for word in re.sub(r"\bFl Fl\b", "Fl2", text).split():
        if word.lstrip(".") in ("Fl", "Fl2"):
            dashes = "--" if word.endswith("2") else "-"
        elif word.lstrip(".") in ("Ar", "Ic", "Op", "Oo", "Oc", "Nm"):
            dashes = ""
        elif dashes and word not in (",", "|"):
            found |= {dashes + part for part in ([word] if dashes == "--" else word)}
    return found


# --- options, exit codes, signals ---------------------------------------------------------------


def flags(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """The options of a parser, and whether each has an argument."""
    return {flag: action.nargs != 0 for action in parser._actions for flag in action.option_strings}


def commands(
    parser: Callable[[], argparse.ArgumentParser] = ctl.parser,
) -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of gsmtpctl's commands, or of another's; "a b" for a command of a command."""
    found: dict[str, argparse.ArgumentParser] = {}

    def gather(parser: argparse.ArgumentParser, *names: str) -> None:
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not nested:
            found[" ".join(names)] = parser
        for name, inner in nested[0].choices.items() if nested else ():
            gather(inner, *names, name)

    gather(parser())
    return found


def command_of(text: str) -> str:
    """The command that a form of mdoc begins with, and the command of that."""
    words = itertools.takewhile(lambda word: word.strip(".").islower(), text.split())
    return " ".join(words)


def described(page: str) -> dict[str, bool]:
    """The options that a page describes, and whether each has an argument."""
    return {
        flag: " Ar " in item.head
        for item in items(page, "DESCRIPTION")
        if item.head.startswith("Fl ")
        for flag in options(item.head)
    }


def synopsis(page: str) -> str:
    return "\n".join(line for section, _, line in placed(page) if section == "SYNOPSIS")


@pytest.mark.parametrize(("page", "parser"), [("gsmtpd.8", cli.parser), ("gsmtpctl.8", ctl.parser)])
def test_each_option_is_described(page: str, parser: Callable[[], argparse.ArgumentParser]) -> None:
    assert described(page) == flags(parser())


def test_the_synopsis_of_gsmtpd_has_each_option() -> None:
    assert options(synopsis("gsmtpd.8")) == set(flags(cli.parser()))


def arguments(parser: argparse.ArgumentParser) -> set[str]:
    """What may stand behind a command but help: its options, and ARGUMENT if it has one."""
    positional = {"ARGUMENT" for action in parser._actions if not action.option_strings}
    return set(flags(parser)) - {"-h", "--help"} | positional


def positional(text: str) -> set[str]:
    """ARGUMENT if there is an Ar that belongs to no option."""
    return {"ARGUMENT"} if "Ar " in re.sub(r"Fl (?:Fl )?\S+ Ar ", "", text) else set()


@pytest.mark.parametrize(
    ("page", "program"), [("gsmtpctl.8", ctl.parser), ("gsmtpd-faultlab.8", faultlab.parser)]
)
def test_each_command_is_described(
    page: str, program: Callable[[], argparse.ArgumentParser]
) -> None:
    heads = [i.head for i in items(page, "DESCRIPTION") if i.head.startswith("Ic ")]
    found = {command_of(head[3:]): options(head) | positional(head) for head in heads}
    assert found == {verb: arguments(parser) for verb, parser in commands(program).items()}
    for verb, parser in commands(program).items():
        (head,) = (head for head in heads if command_of(head[3:]) == verb)
        for flag, has_argument in flags(parser).items():
            if has_argument:
                name = flag.removeprefix("-").removeprefix("-")
                assert f"{'Fl ' * (len(flag) - len(name))}{name} Ar " in head


def test_the_synopsis_of_gsmtpctl_has_each_command() -> None:
    forms = synopsis("gsmtpctl.8").split("\n.Nm\n")[1:]
    found = {}
    for form in forms[:-1]:
        assert form.startswith(".Op Fl c Ar file\n.Ic ")
        _, _, rest = form.partition(".Ic ")
        found[command_of(rest)] = options(rest) | positional(rest)
    assert found == {verb: arguments(parser) for verb, parser in commands().items()}
    assert options(forms[-1]) | {"-c"} == set(flags(ctl.parser()))


def test_the_synopsis_of_the_fault_lab_has_each_command() -> None:
    *forms, last = synopsis("gsmtpd-faultlab.8").split("\n.Nm\n")[1:]
    found = {}
    for form in forms:
        verb, _, rest = form.removeprefix(".Ic ").partition("\n")
        found[verb] = options(rest) | positional(rest)
    assert found == {verb: arguments(parser) for verb, parser in commands(faultlab.parser).items()}
    assert options(last) == set(flags(faultlab.parser()))


def test_each_option_of_the_fault_labs_run_is_described() -> None:
    run = commands(faultlab.parser)["run"]
    known = flags(faultlab.parser()) | flags(run)
    assert described("gsmtpd-faultlab.8") == known


def test_each_violation_is_described() -> None:
    heads = {i.head.removeprefix("Sy ") for i in items("gsmtpd-faultlab.8", "FIGURES")}
    named = {text.partition(":")[0] for text in VIOLATIONS.values()}
    assert named == {head for head in heads if head.isupper()}


@pytest.mark.parametrize(
    ("page", "others"), [("gsmtpd.8", {70}), ("gsmtpctl.8", {1, 65, 66, 75, 130})]
)
def test_each_exit_code_is_there(page: str, others: set[int]) -> None:
    codes = {value for name, value in vars(cli).items() if name.startswith("EX_")}
    assert {int(item.head) for item in items(page, "EXIT STATUS")} == codes | others


def test_each_signal_is_there() -> None:
    found = [re.fullmatch(r"Dv (SIG\w+) Ta (.*)", i.head) for i in items("gsmtpd.8", "SIGNALS")]
    does = {match[1]: match[2] for match in found if match}
    taken = {number.name for number in master._SIGNALS} - {"SIGCHLD"}  # that is its own
    assert len(found) == len(does)
    assert set(does) == taken
    stop = {number.name for number in master.worker.STOP_SIGNALS}
    assert {name for name, text in does.items() if text == "Stop."} == stop


# --- replies, logs, messages --------------------------------------------------------------------


def test_the_replies_are_said_by_the_program() -> None:
    known = {f"{r.code} {r.enhanced}" for r in vars(reply).values() if isinstance(r, Reply)}
    heads = [item.head for item in items("gsmtpd.8", "REPLIES")]
    assert set(heads) <= known
    assert heads == sorted(heads)
    for seldom in ("421 4.3.0", "451 4.3.0"):
        assert seldom in known


def logged() -> list[dict[str, Any]]:
    """A line of the mail log of each kind, with all the fields it may have."""
    written: list[str] = []
    log = MailLog(written.append, json_line)
    sender, recipient = Mailbox("a", "example.org"), Mailbox("b", "example.com")
    envelope = Envelope("client.example", True, sender, (recipient,), False, "7BIT")
    message = Message("1a", envelope, b"x\r\n", "192.0.2.1", 0.0)
    log.message(message, reply.queued("1a"), 0.1)
    log.message(message, reply.STORAGE_TROUBLE, 0.1)
    log.spooled(message, reply.queued("1a"), 0.1)
    log.duplicate(message, "1b", reply.queued("1b"), 0.1)
    log.stored_unheard(message, 0.1)
    log.discarded(message, reply.queued("1a"), 0.1)
    log.refused("192.0.2.1", Refusal(reply.NOT_SERVED, False, "x", About("<>", (recipient,), 1)))
    log.closed("192.0.2.1", "x", reply.TIMED_OUT)
    log.dropped("192.0.2.1", "x", "TLS: no shared cipher")
    log.flush()
    return [json.loads(line) for line in "".join(written).splitlines()]


def test_the_mail_log_is_described() -> None:
    heads = [item.head for item in items("gsmtpd.8", "LOGS")]
    results = {head[3:] for head in heads if head.startswith("Li ")}
    fields = {head[3:] for head in heads if head.startswith("Ic ")}
    assert results == {line["result"] for line in logged()}
    assert fields == {field for line in logged() for field in line} - {"result"}


@cache
def said() -> str:
    """All texts in the program; what is put into them at run time is NUL."""
    found: list[str] = []
    for path in (ROOT / "gsmtpd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                found.append("".join(map(str, parts)))
    return "\n".join(found)


@pytest.mark.parametrize("page", ["gsmtpd.8", "gsmtpctl.8", "gsmtpd-faultlab.8"])
def test_the_messages_are_said_by_the_program(page: str) -> None:
    heads = [item.head for item in items(page, "DIAGNOSTICS")]
    assert len(heads) > 5
    for head in heads:
        parts = [part.strip(" :") for part in head.removeprefix("Sy ").split("...")]
        assert max(map(len, parts)) > 7, head
        for part in parts:
            assert part in said(), head


def test_who_has_the_port_is_said_as_it_is_shown() -> None:
    shown = [b.text for b in blocks("gsmtpd.8") if b.text.startswith("cannot listen on")]
    seen, unseen = (text.replace("\n  ", " ").rstrip("\n") for text in shown)
    postfix = Process(1234, "master", "/usr/lib/postfix/sbin/master", "postfix@-.service")
    where, cure = "cannot listen on 0.0.0.0:25:", "; stop it, or use -p PORT"
    assert seen == f"{where} {postfix} listens there{cure}"
    how = "see which, as root: ss -ltnp 'sport = :25'"
    assert unseen == f"{where} a program of the user root listens there ({how}){cure}"
    for part in (
        "; stop it, or ",
        "use -p PORT",
        " listens there",
        " (see which, as root: ss -ltnp 'sport = :",
        where[:-11],
    ):
        assert part in said(), part


# --- the package --------------------------------------------------------------------------------


def test_the_unit_is_described() -> None:
    unit = (ROOT / "debian" / "gsmtpd.service").read_text("utf-8")
    page = plain(source("gsmtpd.8"))
    for setting in ("RestartSec=5", "ProtectSystem=strict"):
        assert f"\n{setting}\n" in unit
        assert f".Pq Ql {setting} " in page
    assert "\nRestartPreventExitStatus=2 77 78\n" in unit
    assert "not after status 2, 77 or 78" in page
    limit = re.search(r"\nLimitNOFILE=(\d+)\n", unit)
    assert limit
    assert f"the systemd unit has {limit[1]}," in plain(source("gsmtpd.conf.5"))


def test_the_words_of_the_init_script() -> None:
    usage = re.search(r"Usage: \$0 \{(.*)\}", (ROOT / "debian" / "gsmtpd.init").read_text("utf-8"))
    sentence = re.search(r"^knows (.*?)\.$", source("gsmtpd.8"), re.M | re.S)
    assert usage
    assert sentence
    assert re.split(r",\s|\sand\s", sentence[1]) == usage[1].split("|")


def test_no_line_is_of_level_debug() -> None:
    """As is said of -v."""
    assert "This version has no line of that level" in plain(source("gsmtpd.8"))
    for path in (ROOT / "gsmtpd").rglob("*.py"):
        assert ".debug(" not in path.read_text("utf-8")


def test_the_mistakes_in_the_example_are_reported_so(tmp_path: Path) -> None:
    file = tmp_path / "gsmtpd.conf"
    file.write_text("\n" * 4 + "[limits]\nmax_sise = 1M\ntimeout = never\n")
    with pytest.raises(config.ConfigError) as caught:
        config.load(str(file), environ={})
    shown = block("gsmtpd.conf.5", "Mistakes", "gsmtpd: ").replace("\n  ", " ").splitlines()
    problems = [p.replace(str(file), "/etc/gsmtpd.conf") for p in caught.value.problems]
    assert shown == [f"gsmtpd: {problem}" for problem in problems]


# --- gsmtpd.conf(5) -----------------------------------------------------------------------------

KINDS = {
    "number": "number", "auto_number": "number", "size": "size", "duration": "time",
    "choice": "word", "path": "path", "optional_path": "path", "socket_path": "path",
    "address_list": "list", "mysql_host_list": "list", "text": "name",
    "optional_text": "name", "host_name": "name", "table_name": "name", "secret": "text",
    "optional_domain": "domain", "optional_number": "number", "optional_duration": "time",
    "status_address_list": "list", "keep_list": "list",
    "field_name": "name", "body_address": "address", "yes_no": "word",
    "domain_pattern_list": "list", "address_pattern_list": "list", "local_part_list": "list",
    "network_list": "list", "dnsbl_list": "list", "resolver": "address", "query": "statement",
    "peer_list": "list", "path_or_no": "path", "smarthost": "host", "function_name": "name",
    "match_list": "list", "class_name": "name", "own_size": "size", "own_number": "number",
}  # fmt: skip


def at(place: Place) -> str:
    """The check of a key."""
    tree = SPEC
    for name in place.sections:
        tree = tree[name]
    check: str = tree[place.key]
    return check


def default_of(check: str) -> str:
    """The default of a check, as the file would have it."""
    match = re.search(r'default=("?)(.*)\1\)$', check)
    assert match
    return match[2]


def heading(place: Place) -> str:
    """The subsection of the page that a key stands in."""
    names = ["name" if name == MANY else name for name in place.sections]
    return " ".join(f"{'[' * n}{name}{']' * n}" for n, name in enumerate(names, 1))


def keys() -> dict[tuple[str, str], Item]:
    """The keys of the page, by their heading and name."""
    found = items("gsmtpd.conf.5", "SECTIONS")
    named = {(item.subsection, item.head.split()[1]): item for item in found}
    assert len(named) == len(found)
    return named


def text_of(place: Place) -> str:
    return keys()[heading(place), place.key].body


def test_the_keys_are_those_of_the_configuration_in_its_order() -> None:
    shipped = ConfigObj(str(SHIPPED), interpolation=False, list_values=False)
    places = [
        Place(tuple(MANY if s == "mx" else s for s in p.sections), p.key)
        for p in spec_places(shipped)
    ]
    shown = [(heading(place), place.key) for place in places]
    found = [*keys()]
    assert set(found) == {(heading(place), place.key) for place in spec_places(SPEC)}
    # Those of a name in these are in a comment of the file that is shipped.
    commented = ("[tls] [[name]]", "[handlers] [[name]]")
    assert shown == [key for key in found if key[0] not in commented]


@pytest.mark.parametrize("place", [*spec_places(SPEC)], ids=str)
def test_each_key_has_its_type_and_default(place: Place) -> None:
    check = at(place)
    item = keys()[heading(place), place.key]
    assert item.head == f"Ic {place.key} = Ar {KINDS[check_name(check)]}"
    default = default_of(check)
    wanted = f"Default:\n.Ql {default} ." if default else "Default: empty."
    assert item.body.startswith(f"{wanted}\n")
    assert item.body.count("Default:") == 1


@pytest.mark.parametrize("place", [*spec_places(SPEC)], ids=str)
def test_each_key_has_its_limits(place: Place) -> None:
    check = at(place)
    limits = [part.strip() for part in check.partition("(")[2].split("default=")[0].split(",")]
    limits = [limit for limit in limits if limit]
    if check_name(check) == "yes_no":
        limits = ["yes", "no"]
    if check_name(check) in ("choice", "yes_no"):
        assert {word for word in limits if f".Ql {word}" in text_of(place)} == set(limits)
    elif len(limits) == 2:
        assert f" {limits[0]} to {limits[1]}" in text_of(place)
    elif limits:
        assert f" {limits[0]} or more" in text_of(place)
    words = {"auto_number": "auto", "optional_number": "no", "keep_list": "forever"}
    if word := words.get(check_name(check)):
        assert f".Ql {word}" in text_of(place)
    may_be_empty = check_name(check) in ("optional_path", "socket_path") or not default_of(check)
    if may_be_empty and not place.key.startswith("password"):
        assert "Empty:" in text_of(place)


def test_what_needs_a_restart() -> None:
    loaded = config.load(str(SHIPPED), environ={})
    fixed: set[str] = set()
    for field in dataclasses.fields(loaded.server):
        other = dataclasses.replace(loaded.server, **{field.name: "another"})
        changed = dataclasses.replace(loaded, server=other)
        fixed |= {field.name} if master._fixed(changed) != master._fixed(loaded) else set()
    assert fixed
    found = {name for (_, name), item in keys().items() if "needs a restart" in item.body}
    assert found == fixed
    section = [line for _, sub, line in placed("gsmtpd.conf.5") if sub == "What needs a restart"]
    assert {line.split()[1] for line in section if line.startswith(".Ic ")} == {*fixed, "[server]"}


def is_ours(one: Block) -> bool:
    return one.lines[0].strip("[]") in SPEC.sections and one.lines[0].startswith("[")


CONFIGS = [(page, one) for page in PAGES for one in blocks(page) if is_ours(one)]


def test_configurations_are_found() -> None:
    for page in PAGES:
        for one in blocks(page):
            assert is_ours(one) or not one.text.startswith("[") or one.lines[0] in ELSES
    assert len(CONFIGS) >= 7


@pytest.mark.parametrize(
    ("page", "one"), CONFIGS, ids=[f"{page}-{one.subsection}" for page, one in CONFIGS]
)
def test_each_configuration_in_the_examples_is_good(
    page: str, one: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "mx.example.com")
    secret, file = tmp_path / "password", tmp_path / "gsmtpd.conf"
    secret.write_text("a password\n")
    file.write_text(one.text.replace("/etc/gsmtpd.password", str(secret)))
    loaded = config.load(str(file), environ={})
    assert loaded.warnings == ()
    assert loaded != config.load(os.devnull, environ={})


def test_the_variables_in_the_example_are_good() -> None:
    text = block("gsmtpd.8", "", "GSMTPD_")
    pairs = [word.partition("=") for word in shlex.split(text)]
    environ = {name: value for name, _, value in pairs}
    assert len(environ) == len(text.splitlines())
    loaded = config.load(os.devnull, environ=environ)
    assert loaded.limits.max_size == 20 << 20
    assert [host.host for host in loaded.store.mysql.hosts] == [
        "db1.example.com",
        "db2.example.com",
    ]
    assert loaded.domains.accept == ("example.com", "example.net")


def test_the_list_over_lines_is_what_it_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "gsmtpd.conf"
    file.write_text(block("gsmtpd.conf.5", "Many domains", "[server]"))
    assert config.load(str(file), environ={}).domains.accept == (
        "example.com", "mail.example.com", "example.net", "example.org",
        "xn--bcher-kva.example", "[192.0.2.1]",
    )  # fmt: skip


def written(path: Path, page: str, subsection: str, begins: str) -> str:
    """The file at `path`, with what the page has there."""
    path.write_text(block(page, subsection, begins), "utf-8")
    return str(path)


def test_the_kinds_of_items_are_good() -> None:
    """The first word of each line of the blocks in [domains] accept and [recipients] accept."""
    kinds = {"[domains]": names.domain_pattern, "[recipients]": names.address_item}
    for subsection, parse in kinds.items():
        (one,) = (b for b in blocks("gsmtpd.conf.5") if b.subsection == subsection)
        words = [line.split()[0] for line in one.lines]
        assert words.pop().startswith("@/etc/gsmtpd/")
        assert [parse(word) for word in words] == words


def test_the_lists_in_files_are_good(tmp_path: Path) -> None:
    page = "gsmtpd.conf.5"
    domains = written(tmp_path / "domains", page, "Many domains", "# One on each line")
    assert read_list(domains, names.domain_pattern) == [
        "example.com", "*.example.net", "xn--bcher-kva.example",
    ]  # fmt: skip
    deny = written(tmp_path / "deny", page, "Networks and blocklists", "198.")
    assert read_list(deny, names.network) == ["198.51.100.0/24", "203.0.113.7"]


def test_the_aliases_are_what_is_said_of_them(tmp_path: Path) -> None:
    aliases = read_aliases(written(tmp_path / "a", "gsmtpd.conf.5", "", "sales@"), 1000)
    joe, ann = Mailbox("joe", "example.com"), Mailbox("ann", "example.com")
    served = {"example.com", "example.net"}
    assert aliases.outside(served.__contains__) == []
    found = {
        address: aliases.exact(*address.split("@"))
        for address in ("info@example.org", "team@example.com", "else@example.net")
    }
    assert {address: one and one.targets for address, one in found.items()} == {
        "info@example.org": (Mailbox("joe", "example.org"),),
        "team@example.com": (joe, ann),
        "else@example.net": None,
    }
    catch_all = aliases.catch_all("example.net")
    assert catch_all
    assert catch_all.targets == (joe,)


def test_the_query_finds_what_is_in_its_table(tmp_path: Path) -> None:
    page, heading, file = "gsmtpd.conf.5", "Only addresses in a table", tmp_path / "gsmtpd.conf"
    sql = config.load(written(file, page, heading, "[domains]"), environ={}).recipients.query
    path = str(tmp_path / "mail.db")
    sqlite.make(path)
    connection = sqlite3.connect(path)
    connection.executescript(block(page, heading, "CREATE TABLE gm2_address"))
    connection.close()
    store = sqlite.SQLiteStore(path, RowMaker("mx.example.com"))
    finds = store.query(sql)
    assert [finds(f"{user}@example.com") for user in ("you", "nobody")] == [True, False]
    store.close()


def test_the_check_of_an_address_is_said_as_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("GSMTPD_")]:
        monkeypatch.delenv(name)
    (tmp_path / "gsmtpd").mkdir()
    page, heading, conf = "gsmtpd.conf.5", "A few people", tmp_path / "gsmtpd.conf"
    conf.write_text(block(page, heading, "[domains]").replace("/etc/", f"{tmp_path}/"))
    written(tmp_path / "gsmtpd/aliases", page, heading, "info@")
    assert ctl.main(["-c", str(conf), "check-address", "sales@example.com"]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "/etc")
    assert block("gsmtpctl.8", "", "sales@").replace("\n    ", " ") == said


# --- gsmtpd-schema(5) ---------------------------------------------------------------------------


Columns = dict[str, list[tuple[str, str]]]
"""Table → its columns with their types, in their order."""


def schema_page(kind: str) -> Columns:
    """What the page says of the tables in MySQL or SQLite."""
    found: Columns = {}
    for item in items("gsmtpd-schema.5", "TABLES"):
        match = re.match(r"MySQL ([^.]+?)(?:, SQLite (\w+))?\.\n.", item.body)
        assert match, item
        if said := match[1 if kind == "MySQL" else 2]:
            columns = found.setdefault(item.subsection, [])
            columns.append((item.head.removeprefix("Va "), said))
    return found


def made_in_mysql() -> dict[str, str]:
    """The statement that makes each table in MySQL."""
    made = {}
    for sql in statements("mysql"):
        if match := re.search(r"^CREATE TABLE IF NOT EXISTS `(\w+)`", sql, re.MULTILINE):
            made[match[1]] = sql
    return made


def test_the_columns_in_mysql() -> None:
    wanted: Columns = {}
    for name, sql in made_in_mysql().items():
        made = re.findall(r"^  `(\w+)` (.+?)(?: CHARACTER SET (\w+))? NOT NULL", sql, re.MULTILINE)
        assert "NULL" not in sql.replace("NOT NULL", "")
        wanted[name] = [(column, f"{kind} {charset}".strip()) for column, kind, charset in made]
    assert schema_page("MySQL") == wanted
    assert {name for name, _ in wanted["new_mail"]} == {*COLUMNS, "mail_id"}


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    for statement in statements("sqlite"):
        connection.execute(statement)
    yield connection
    connection.close()


def names_in(connection: sqlite3.Connection, kind: str) -> set[str]:
    """The tables or the views that are there."""
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = ?", (kind,))
    return {name for (name,) in found if not name.startswith("sqlite_")}


def test_the_columns_in_sqlite(empty: sqlite3.Connection) -> None:
    sql = "SELECT name, type FROM pragma_table_info(?)"
    made = {name: empty.execute(sql, (name,)).fetchall() for name in names_in(empty, "table")}
    assert schema_page("SQLite") == made


@pytest.mark.parametrize("table", ["new_mail", "mail_attachment", "gm2_setting", "gm2_received"])
def test_the_keys_of_the_tables(table: str, empty: sqlite3.Connection) -> None:
    text = "".join(line + "\n" for _, sub, line in placed("gsmtpd-schema.5") if sub == table)
    sentences = re.findall(r"^(?:The primary key is|Another key is on|Keys are on)\n"
                           r"((?:\.Va .*\n|and\n)+)", text, re.MULTILINE)  # fmt: skip
    found = [name for one in sentences for name in re.findall(r"(?:\.Va|,) (\w+)", one)]
    for item in items("gsmtpd-schema.5", "TABLES"):
        if item.subsection == table and "The primary key.\n" in item.body:
            found.insert(0, item.head.removeprefix("Va "))
    keys = re.findall(
        r"^  (?:PRIMARY )?KEY (?:`\w+` )?\((.+?)\),?$", made_in_mysql()[table], re.MULTILINE
    )
    assert found == [name for key in keys for name in re.findall(r"`(\w+)`", key)]
    indexed = empty.execute(
        "SELECT i.name FROM pragma_index_list(?) AS l, pragma_index_info(l.name) AS i", (table,)
    )
    assert {name for (name,) in indexed} <= {*found}


def views_of_the_page() -> dict[str, list[str]]:
    """View → its columns, in their order."""
    found: dict[str, list[str]] = {}
    for item in items("gsmtpd-schema.5", "VIEWS"):
        found.setdefault(item.subsection, []).extend(re.findall(r"\w+", item.head[3:]))
    return found


def test_the_columns_of_the_views(empty: sqlite3.Connection) -> None:
    """As SQLite has them; tests/functional/test_manpage_examples.py asks MariaDB."""
    sql = "SELECT name FROM pragma_table_info(?)"
    made = {
        view: [name for (name,) in empty.execute(sql, (view,))] for view in names_in(empty, "view")
    }
    assert views_of_the_page() == made


# --- are they clean -----------------------------------------------------------------------------


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program(command[0]), *command[1:]],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANROFFSEQ": ""} | environ,
        timeout=60,
    )


def test_these_are_all_pages() -> None:
    assert sorted(path.name for path in MAN.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_man_has_no_warnings(page: str) -> None:
    done = run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(MAN / page))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_no_warnings(page: str) -> None:
    done = run("mandoc", "-T", "lint", "-W", "warning", str(MAN / page))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_the_name_can_be_found(page: str) -> None:
    done = run("lexgrog", str(MAN / page))
    assert done.returncode == 0
    assert f'"{page.rpartition(".")[0]} - ' in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wider_than_a_terminal(page: str) -> None:
    done = run("man", "-E", "UTF-8", "-l", "-Tutf8", str(MAN / page), MANPAGER="cat", PAGER="cat")
    text = re.sub(r".\x08|\x1b\[[\d;]*m", "", done.stdout)
    assert len(text.splitlines()) > 100
    # Debian 13 indents examples by up to 3 more, see tests/package.
    assert [line for line in text.splitlines() if len(line.expandtabs()) > 80] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_source_is_tidy(page: str) -> None:
    lines = source(page).splitlines()
    assert DATE in lines
    assert source(page).endswith("\n")
    assert [line for line in lines if line != line.rstrip() or len(line) >= 100] == []
    # What is copied from a page must be what was meant: groff makes hyphens and quotes of these.
    for text in re.findall(r"^\.Bd .*?^\.Ed$", source(page), re.M | re.S):
        inner = "\n".join(text.splitlines()[1:-1])
        assert not re.search(r"""(?<!\\)[-]|['`^~]""", inner), inner


@pytest.mark.parametrize("page", PAGES)
def test_references_lead_somewhere(page: str) -> None:
    titles = {title for section, sub, _ in placed(page) for title in (section, sub)}
    for name in re.findall(r"^\.Sx (.*?)(?: [.,;:)])?$", source(page), re.MULTILINE):
        assert name in titles
    for name, number in re.findall(r"^\.Xr (gsmtp[\w.-]*) (\d)", source(page), re.MULTILINE):
        assert f"{name}.{number}" in PAGES
