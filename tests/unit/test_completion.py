"""Does bash complete what the commands take, no more and no less?"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Sequence

import pytest

from gsmtpd import cli, ctl
from gsmtpd.ctl_tail import RESULTS
from gsmtpd.faultlab import cli as faultlab
from gsmtpd.mailfiles import FORMATS
from tests.servers import ROOT

FILE = ROOT / "debian/gsmtpd.bash-completion"
OFFERED = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"_${1//-/_}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(*words: str) -> set[str]:
    """What bash offers in place of the last word."""
    command = ["bash", "-uc", OFFERED, "bash", str(FILE), *words]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {*said.split()}


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def verbs(
    parser: Callable[[], argparse.ArgumentParser] = ctl.parser,
) -> dict[str, argparse.ArgumentParser]:
    [choices] = [action.choices for action in parser()._actions if action.dest == "verb"]
    assert isinstance(choices, dict)
    return choices


def test_gsmtpd() -> None:
    assert offered("gsmtpd", "") == options(cli.parser())
    assert offered("gsmtpd", "-v", "--in") == {"--inetd"}


def test_gsmtpctl() -> None:
    assert offered("gsmtpctl", "") == options(ctl.parser()) | {*verbs()}
    assert offered("gsmtpctl", "-c", "x", "st") == {"status", "stop"}


def test_the_commands_of_a_command() -> None:
    (inner,) = (a.choices for a in verbs()["outbox"]._actions if a.dest == "outbox_verb")
    assert isinstance(inner, dict)
    assert offered("gsmtpctl", "outbox", "") == options(verbs()["outbox"]) | {*inner}
    for verb, parser in inner.items():
        assert offered("gsmtpctl", "outbox", verb, "") == options(parser)


@pytest.mark.parametrize("verb", [verb for verb in verbs() if verb != "outbox"])
def test_a_command_of_gsmtpctl(verb: str) -> None:
    assert offered("gsmtpctl", verb, "") == options(verbs()[verb])
    assert offered("gsmtpctl", "-c", "status", verb, "--help", "") == options(verbs()[verb])


def test_the_fault_lab() -> None:
    known = verbs(faultlab.parser)
    assert offered("gsmtpd-faultlab", "") == options(faultlab.parser()) | {*known}
    for verb, parser in known.items():
        assert offered("gsmtpd-faultlab", verb, "") == options(parser)


def test_the_values_of_the_fault_labs_options() -> None:
    """Those that are files are completed, the others are yours to say."""
    files = {"-c", "--ledgers", "--sqlite", "--home", "--markdown"}
    for verb, parser in verbs(faultlab.parser).items():
        for action in parser._actions:
            for option in action.option_strings if action.nargs != 0 else ():
                got = offered("gsmtpd-faultlab", verb, option, f"{ROOT}/etc/gsmtpd.c")
                is_file = option in files or (verb, option) == ("run", "--json")
                assert bool(got) == is_file, (verb, option)


@pytest.mark.parametrize(
    "words",
    [
        ("gsmtpd", "-c"),
        ("gsmtpd", "-v", "-l"),
        ("gsmtpctl", "-c"),
        ("gsmtpctl", "show", "1", "--attachment", "1", "-o"),
        ("gsmtpctl", "export", "--since", "1d"),
        ("gsmtpctl", "import", "a.eml"),
        ("gsmtpctl", "feed", "--to", "b@example.com"),
    ],
)
def test_a_file(words: Sequence[str]) -> None:
    assert offered(*words, f"{ROOT}/etc/gsmtpd.c") == {f"{ROOT}/etc/gsmtpd.conf"}


def test_a_number_is_yours_to_say() -> None:
    export = [("gsmtpctl", "export", option) for option in ("--to", "--since", "--id")]
    show = ("gsmtpctl", "show", "1", "--attachment")
    check = ("gsmtpctl", "check-address", "--client")
    feed = [("gsmtpctl", "feed", option) for option in ("--to", "--from", "--client")]
    for words in (("gsmtpd", "-p"), ("gsmtpctl", "list", "-n"), show, check, *export, *feed):
        assert offered(*words, "") == set()


def test_a_result() -> None:
    assert offered("gsmtpctl", "tail", "--result", "") == {*RESULTS}


def test_a_format() -> None:
    assert offered("gsmtpctl", "export", "--format", "") == {*FORMATS}
