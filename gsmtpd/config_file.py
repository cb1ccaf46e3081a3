"""What does the configuration file say, on which line, and is there such a setting?

It is read with configobj, which keeps no line numbers: they are found beside it, so that a Report
can name the place of whatever turns out to be wrong, here or in config.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from configobj import (  # type: ignore[import-untyped]
    ConfigObj,
    ConfigObjError,
    DuplicateError,
    NestingError,
)

from gsmtpd.config_checks import items, unquoted
from gsmtpd.wording import printable

MAX_FILE = 1 << 20  # bytes; what is larger is some other file
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # those that no value may hold
MANY = "__many__"  # configobj's word for a section of any name
TRIPLE_QUOTES = ('"""', "'''")

_NAME = r""""\s*\S.*?"|'\s*\S.*?'|[^'"\s].*?"""  # as configobj has it
_HEADER = re.compile(rf"\s*((?:\[\s*)+)({_NAME})((?:\s*\])+)\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*(".*?"|'.*?'|[^'"=].*?)\s*=\s*(.*)$""")
_MARKS = re.compile(r"\s*(?:\[\s*)+")
_MAX_PROBLEMS = 100  # a file with more of them is no configuration
_MAX_BROKEN = 20  # headers put aside to read the rest of a file: each costs another reading


class ConfigError(Exception):
    """The configuration cannot be used. problems: one line for each thing that is wrong with it."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Place(NamedTuple):
    """A key in the file, or with key "" the header of a section."""

    sections: tuple[str, ...]
    key: str = ""

    def __str__(self) -> str:
        marks = [f"{'[' * n}{name}{']' * n}" for n, name in enumerate(self.sections, 1)]
        # "password abc=" is a slip, too: what follows the first word may be a secret.
        word = self.key.split()[:1]
        key = [word[0] + " ..." if word != [self.key] else self.key] if word else []
        return printable(" ".join(marks + key))[:200]


class Report:
    """Collects what is wrong; knows the line of each place in the file.

    path: the file; lines: the first line of each place; places: the place on a line; variables:
    the places that the environment has set, with the name of the variable; incomplete: whole
    sections could not be read.
    """

    def __init__(self, file: str, lines: Sequence[str]) -> None:
        self.path = file
        self._file = printable(file)
        self._problems: list[tuple[int, str]] = []
        self._failed: set[Place] = set()
        self.warnings: list[str] = []
        self.incomplete = False
        self.variables: dict[Place, str] = {}
        self.lines: dict[Place, int] = {}
        self.places: dict[int, Place] = {}
        self._texts: dict[Place, str] = {}
        for number, place, text in _scan(lines):
            self.lines.setdefault(place, number)
            self._texts.setdefault(place, text)
            self.places[number] = place

    def text(self, place: Place) -> str:
        """The value at `place` as the file has it, with its quotes and its comment."""
        return self._texts.get(place, "")

    def problem(self, place: Place, text: str) -> None:
        """Something wrong with the value at `place`, which is in the file or the environment."""
        self._failed.add(place)
        number = 0 if place in self.variables else self.lines.get(place, 0)
        self.add(f"{self._where(place, number)}: {text}", number)

    def syntax(self, number: int, text: str) -> None:
        """Something that could not be read, on that line."""
        place = self.places.get(number)
        self.add(f"{self._file}:{number}: {f'{place}: ' if place else ''}{text}", number)

    def add(self, problem: str, number: int = 0) -> None:
        """A problem in full; its line number puts it in order, those without one come last."""
        self._problems.append((number or MAX_FILE, problem))

    def warn(self, place: Place, text: str) -> None:
        """Something that may be meant so."""
        self.warnings.append(f"{self._where(place, self.lines.get(place, 0))}: {text}")

    def named(self, *sections: str) -> Place:
        """Where the name of a [[name]] comes from: its header in the file, or else a variable."""
        header = Place(sections)
        if header in self.lines:
            return header
        return next((place for place in self.variables if place.sections == sections), header)

    def failed(self, place: Place) -> bool:
        """Whether a problem was found there."""
        return place in self._failed

    def raise_problems(self) -> None:
        """Raise ConfigError with all problems, in the order of the file, if there are any."""
        if self._problems:
            ordered = sorted(self._problems, key=lambda problem: problem[0])
            problems = [*dict.fromkeys(text for _, text in ordered)]
            more = len(problems) - _MAX_PROBLEMS
            if more > 0:
                problems[_MAX_PROBLEMS:] = [f"{self._file}: and {more} more problems"]
            raise ConfigError(*problems)

    def _where(self, place: Place, number: int) -> str:
        source = self.variables.get(place) or self._file + (f":{number}" if number else "")
        return f"{source}: {place}" if str(place) else source


def _scan(lines: Sequence[str]) -> Iterator[tuple[int, Place, str]]:
    """Each header and key with its line number, by the rules of configobj, which keeps no lines."""
    sections: tuple[str, ...] = ()
    resume = 0
    for number, line in enumerate(lines, 1):
        if number <= resume or line.lstrip().startswith("#"):
            continue
        if header := _HEADER.match(line):
            sections = (*sections[: header[1].count("[") - 1], unquoted(header[2]))
            yield number, Place(sections), ""
        elif key := _KEY.match(line):
            yield number, Place(sections, unquoted(key[1])), key[2]
            resume = _last_line(lines, number, key[2])


def _last_line(lines: Sequence[str], number: int, text: str) -> int:
    """The line on which the value `text` that begins on line `number` ends."""
    quote = text[:3]
    if quote in ('"""', "'''") and quote not in text[3:]:
        ends = (n for n in range(number, len(lines)) if quote in lines[n])
        return next(ends, number - 1) + 1
    return number


def _read(path: str) -> list[str]:
    """The lines of the file. Raises ConfigError."""
    name = printable(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no such file; name another with -c") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a directory; name a file in it") from None
    except PermissionError:
        wrong = "permission denied; run as root, or give this user the right to read it"
        raise ConfigError(f"{name}: {wrong}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError(f"{name}:{number}: {wrong}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{name}: cannot be read: {printable(str(error))}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{name}: is larger than {MAX_FILE} bytes; name a configuration file")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if found := CONTROL.search(line):
            wrong = f"control character 0x{ord(found[0]):02x}; take it out"
            raise ConfigError(f"{name}:{number}: {wrong}")
    return lines


def parse(path: str) -> tuple[Any, Report]:
    """What configobj makes of the file, and a report that has its mistakes of syntax.

    A broken header would put the keys below it into the section above: they are left out, so that
    only true problems are reported.
    """
    lines = _read(path)
    original = Report(path, lines)
    broken: dict[int, Any] = {}  # what configobj says of a header, by line
    while True:
        tree, errors = _configobj(lines)
        headers = [e for e in errors if _is_header(e)]
        if not headers or len(broken) == _MAX_BROKEN:
            break
        broken[headers[0].line_number] = headers[0]
        _blank(lines, headers[0].line_number)
    report = Report(path, lines)
    report.incomplete = bool(broken)
    for error in errors:
        report.syntax(error.line_number, _syntax(error, report))
    for number, error in broken.items():
        place = original.places.get(number)
        label = f"{place}: " if place and isinstance(error, DuplicateError) else ""
        report.add(f"{printable(path)}:{number}: {label}{_syntax(error, original)}", number)
    return tree, report


def _configobj(lines: list[str]) -> tuple[Any, list[Any]]:
    # list_values=False: over a list with an open quote configobj's pattern takes twice as long for
    # each name more (18 names: 0.2 s), and it would make a list of a password with a comma.
    try:
        return ConfigObj(list(lines), interpolation=False, list_values=False), []
    except ConfigObjError as error:
        return error.config, error.errors


def _blank(lines: list[str], number: int) -> None:
    """Empty the header on line `number` and all that stands below it."""
    depth = _depth(lines[number - 1])
    lines[number - 1] = ""
    for index in range(number, len(lines)):
        if 0 < _depth(lines[index]) <= depth:
            return
        lines[index] = ""


def _depth(line: str) -> int:
    marks = _MARKS.match(line)
    return marks[0].count("[") if marks else 0


def _is_header(error: Any) -> bool:
    """Whether what configobj could not take was to be the header of a section."""
    if isinstance(error, (DuplicateError, NestingError)):
        return _depth(error.line) > 0
    return _depth(error.line) > 0 and "]" not in error.line


def _syntax(error: Any, report: Report) -> str:
    """What is wrong, and never the line itself: it may hold a password."""
    place = report.places.get(error.line_number)
    if isinstance(error, DuplicateError) and place:
        first = report.lines[place]
        elsewhere = f" (first on line {first})" if first < error.line_number else ""
        return f"appears twice{elsewhere}; keep one of them"
    if isinstance(error, NestingError):
        return "a section where none can be; write [section], and [[name]] only below its [section]"
    if place and place.key:
        return "a quote is not closed; put the whole value in quotes"
    if _is_header(error):
        return "the header of a section is not closed; write [section] or [[name]]"
    return (
        'neither "[section]" nor "key = value"; write one of them; a list over'
        ' several lines stands within """ and """'
    )


def line_of(path: str, place: Place, is_it: Callable[[str], bool]) -> int:
    """The line of the file on which an item of the list at `place` stands; 0 if nowhere.

    is_it: whether a text is that item. Raises ConfigError.
    """
    lines = _read(path)
    first = Report(path, lines).lines.get(place, 0)
    if not first:
        return 0
    key = _KEY.match(lines[first - 1])
    assert key is not None, "the report found a key there"
    last = _last_line(lines, first, key[2])
    for number in range(first, last + 1):
        text = key[2] if number == first else lines[number - 1]
        for item in items(text.replace('"""', "").replace("'''", "").split(" #")[0]):
            if is_it(item):
                return number
    return first


# Its names, held against the spec


def settings(spec: Any, sections: tuple[str, ...] = ()) -> Iterator[Place]:
    """Every key of the spec; the name of a listener is __many__. Keys of any name are left out."""
    yield from (Place(sections, key) for key in spec.scalars if key != MANY)
    for name in spec.sections:
        yield from settings(spec[name], (*sections, name))


def check_name(check: str) -> str:
    return check.partition("(")[0].strip()


def settle(tree: Any, spec: Any, report: Report) -> None:
    """Hold every name against the spec, drop those that are wrong, and unquote the values.

    configobj could not do it: get_extra_values() passes over a section [DEFAULT], and validate()
    crashes where a section stands in the place of a key.
    """
    _settle(tree, spec, (), spec, report)


def _settle(section: Any, spec: Any, sections: tuple[str, ...], top: Any, report: Report) -> None:
    for name in list(section.sections):
        inner = spec.get(name, spec.get(MANY))
        if isinstance(inner, dict):
            _settle(section[name], inner, (*sections, name), top, report)
        else:
            report.problem(Place((*sections, name)), _unknown_section(name, spec))
            del section[name]
    for key in list(section.scalars):
        place = Place(sections, key)
        found = spec.get(key, spec.get(MANY))
        if isinstance(found, str):
            check = check_name(found)
            _check_comment(place, section.inline_comments[key] or "", check, report)
            if not report.text(place).startswith(TRIPLE_QUOTES) and not check.endswith("_list"):
                section[key] = unquoted(section[key])
        else:
            report.problem(place, _unknown_key(place, spec, top))
            del section[key]


def _check_comment(place: Place, comment: str, check: str, report: Report) -> None:
    """A "#" ends a value that is not in quotes: was it meant to?"""
    text = report.text(place)
    value = text[: len(text) - len(comment)] if text.endswith(comment) else ""
    quoted = unquoted(value.strip()) != value.strip()
    if not comment or quoted:
        return
    if value and not value[-1].isspace():
        wrong = '"#" begins a comment and ends the value; put the value in quotes'
        report.problem(place, f'{wrong}, or a space before "#"')
    elif check == "secret" and comment[1:2].strip():
        report.warn(place, 'ends before "#", which begins a comment; put it in quotes to keep all')


def _unknown_section(name: str, spec: Any) -> str:
    if isinstance(spec.get(name), str):
        return f'is a key, not a section; write "{name} = ..."'
    names = list(spec.sections)
    return f"unknown section; {_instead(name, names, 'the sections here are', 'none fits here')}"


def _unknown_key(place: Place, spec: Any, top: Any) -> str:
    if isinstance(spec.get(place.key), dict):
        return "is a section, not a key; write its name in brackets on a line of its own"
    if place.key.startswith("["):
        return "unknown key; the header of a section stands on a line of its own"
    homes = [home.sections for home in settings(top) if home.key == place.key]
    if homes:
        home = Place(tuple("name" if part == MANY else part for part in homes[0]))
        return f"is not a key of this section; it belongs in {home}"
    keys = list(spec.scalars)
    return (
        f"unknown key; {_instead(place.key, keys, 'the keys here are', 'a [section] comes first')}"
    )


def _instead(name: str, names: list[str], listed: str, otherwise: str) -> str:
    """What to write in place of `name`: the nearest of `names`, or one of them, or `otherwise`."""
    names = [n for n in names if n != MANY]
    near = difflib.get_close_matches(name[:80].lower(), names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"{listed} {', '.join(names)}" if names else otherwise
