"""Whose mailboxes does mail for an address go into, by the alias file?

A line is `left: target, target`; one that begins with white space continues the line before, as in
aliases(5). `left` is "user@example.com", "user" (in every served domain) or "@example.com" (what
else nobody has there). A target is "user@example.com", or "user" in the domain that was asked for.
Targets that are aliases themselves are followed to the end when the file is read; a catch-all
never names a target. An address among its own targets is a mailbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import ClassVar, NamedTuple

from gsmtpd.policy import names
from gsmtpd.policy.lists import ListError, lines
from gsmtpd.smtp.address import MAX_LOCAL_PART, Mailbox, canonical_local_part
from gsmtpd.wording import printable, shown

MAX_PROBLEMS = 100  # of one file that are looked for
_ENDS = 4  # addresses of a loop, and lines, that are named of either end of many
_Problems = list[tuple[int, str]]  # line, text
_SPACE = " \t\r"
# Quotes that are not closed give a token of one quote.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|\[[^][]*+\]|[^",:\[]++|.', re.DOTALL)
# What nearly every address is: of its parts only the domain needs another look, once.
_ORDINARY = re.compile(r"([A-Za-z0-9_=\-]++(?:\.[A-Za-z0-9_=\-]++)*+)(?:@([^@ \t]++))?")
_domain = lru_cache(maxsize=1024)(names.domain)
# What other servers do with mail, and gsmtpd does not.
_FOREIGN = {
    "|": "a command, and gsmtpd keeps mail: it runs no commands here",
    "/": "a file, and gsmtpd keeps mail: it writes no files here",
    ":include:": "a list elsewhere, and gsmtpd reads no other file for it",
}


class Found(NamedTuple):
    """What an alias says of an address. targets: the mailboxes, each once, in the file's order.

    left: the canonical text of the entry. line: where it begins in the file.
    """

    targets: tuple[Mailbox, ...]
    left: str
    line: int


class _Entry(NamedTuple):
    """A line of the file. domain: "" for every domain. local: "" for a catch-all.

    targets: as they are written; the domain is "" where none is.
    """

    left: str
    local: str
    domain: str
    targets: tuple[Mailbox, ...]
    line: int


class Aliases:
    """What stands for what; nothing is followed here any more."""

    NONE: ClassVar[Aliases]

    def __init__(self, path: str, entries: Iterable[_Entry], found: dict[str, Found]) -> None:
        self._path = path
        self._entries = tuple(entries)
        self._found = found

    def __len__(self) -> int:
        return len(self._entries)

    def exact(self, local: str, domain: str) -> Found | None:
        """The alias of just this address: of it in full, else of its local part.

        local, domain: in lower case, the domain as A-labels or an address literal.
        """
        found = self._found.get(f"{local}@{domain}")
        if found is None and (found := self._found.get(local)):
            found = found._replace(targets=_within(domain, found.targets))
        return found

    def catch_all(self, domain: str) -> Found | None:
        """Who has the mail for all addresses of `domain` that nobody else has."""
        return self._found.get(f"@{domain}")

    def outside(self, is_served: Callable[[str], bool]) -> list[str]:
        """A problem, "path:line: text", for each target in a domain that is not served."""
        served, path = cache(is_served), printable(self._path)
        right = "gsmtpd forwards no mail: name an address of a served domain"
        problems = (
            f"{path}:{entry.line}: {shown(str(target))} is not in a served domain; {right}"
            for entry in self._entries
            for target in _within(entry.domain, entry.targets)
            if target.domain and not served(target.domain)
        )
        return list(islice(problems, MAX_PROBLEMS))


Aliases.NONE = Aliases("", (), {})


def read_aliases(path: str, limit: int) -> Aliases:
    """The aliases in the file `path`. limit: to how many mailboxes an address may lead.

    Raises ListError with all that is wrong.
    """
    problems: _Problems = []
    entries: dict[str, _Entry] = {}
    for line, text in _unfolded(path, problems):
        try:
            entry = _entry(line, text)
            if earlier := entries.get(entry.left):
                wrong = f"{shown(entry.left)} is there twice, on line {earlier.line} as well"
                raise ValueError(f"{wrong}; write all its targets behind one")
            entries[entry.left] = entry
        except ValueError as error:
            problems.append((line, str(error)))
            if len(problems) >= MAX_PROBLEMS:
                break
    _refuse(path, problems)
    found = _Follow(entries, limit, problems).all()
    _refuse(path, problems)
    return Aliases(path, entries.values(), found)


def _refuse(path: str, problems: _Problems) -> None:
    if problems:
        raise ListError(f"{printable(path)}:{line}: {text}" for line, text in sorted(problems))


def _within(domain: str, mailboxes: Iterable[Mailbox]) -> tuple[Mailbox, ...]:
    """`mailboxes`, each once, with `domain` for those that have none."""
    found: dict[tuple[str, str], Mailbox] = {}
    for mailbox in mailboxes:
        local, own = mailbox
        found.setdefault((local.lower(), own or domain), mailbox if own else Mailbox(local, domain))
    return tuple(found.values())


# The file


def _unfolded(path: str, problems: _Problems) -> Iterator[tuple[int, str]]:
    """The lines with those that continue them, each with the number of its first."""
    first, parts = 0, list[str]()
    for line, text in lines(path):
        if text[0] not in _SPACE:
            if parts:
                yield first, " ".join(parts)
            first, parts = line, [text]
        elif parts:
            parts.append(text.strip(_SPACE))
        elif not first:
            first, wrong = line, "begins with white space, but continues no line before"
            problems.append((line, f"{wrong}; write the address where the line starts"))
    if parts:
        yield first, " ".join(parts)


def _entry(line: int, text: str) -> _Entry:
    left, targets = _split(text)
    if targets == [""]:
        raise ValueError(f"{shown(text)} names no target; write an address behind the colon")
    local, domain = _left(left)
    item = f"{local}@{domain}" if domain else local
    return _Entry(item, local, domain, tuple(map(_target, targets)), line)


def _split(text: str) -> tuple[str, list[str]]:
    """What is before the first colon, and what the commas behind it part."""
    if '"' not in text and "[" not in text:
        left, colon, rest = text.partition(":")
        items = [left, *rest.split(",")] if colon else [text]
    else:
        items = [""]
        for token in _TOKEN.findall(text):
            if token == '"':
                raise ValueError(f"{shown(text)} has quotes that are not closed; write both")
            if token == "," and len(items) > 1 or token == ":" and len(items) == 1:
                items.append("")
            else:
                items[-1] += token
    if len(items) == 1:
        words = text.split(None, 1) if '"' not in text else []
        right = shown(": ".join(words)) if words[1:] else "user@example.com: target, target"
        raise ValueError(f"{shown(text)} has no colon behind the address; write {right}")
    left, *targets = (item.strip(_SPACE) for item in items)
    return left, targets


def _left(text: str) -> tuple[str, str]:
    """The local part, in lower case, and the domain of the text before a colon."""
    if ordinary := _ordinary(text):
        return ordinary.local.lower(), ordinary.domain
    if not text:
        raise ValueError("there is no address before the colon; write one like user@example.com")
    if text[0] in "/|\\":
        raise ValueError(f"{shown(text)} is not an address; write one like user@example.com")
    return _parts(names.address_item(text))


def _target(text: str) -> Mailbox:
    """The mailbox that a target names, its local part as it is written, the domain "" if none."""
    if ordinary := _ordinary(text):
        return ordinary
    if not text:
        raise ValueError("there is nothing between two commas, or behind one; write one comma less")
    inner = text.strip('" ') if text[-1] == '"' else text
    for start, what in _FOREIGN.items():
        if inner[: len(start)].lower() == start:
            raise ValueError(f"{shown(text)} is {what}; write the address that keeps the mail")
    if text[0] == "\\":
        right = printable(text[1:]) or "user"
        raise ValueError(f"{shown(text)}: a backslash means nothing here; write {right}")
    item = names.address_item(text)
    local, domain = _parts(item)
    if not local:
        right = f"one of its addresses, e.g. user{item}"
        raise ValueError(f"{shown(text)} names a whole domain as a target; write {right}")
    return Mailbox(canonical_local_part(text.rpartition("@")[0] if domain else text), domain)


def _ordinary(text: str) -> Mailbox | None:
    match = _ORDINARY.fullmatch(text)
    if match is None or len(match[1]) > MAX_LOCAL_PART:
        if '"' not in text and len(text.split()) > 1 and text[0] not in _FOREIGN:
            right = "commas between targets, and a line for each address that has some"
            raise ValueError(f"{shown(text)} is not one address; write {right}")
        return None
    return Mailbox(match[1], _domain(match[2]) if match[2] else "")


def _parts(item: str) -> tuple[str, str]:
    """The local part and the domain of what `address_item` gives, "" where it has none."""
    local, at, domain = item.rpartition("@")
    return (local, domain) if at and item[-1] != '"' else (item, "")


# What leads where


class _Step(NamedTuple):
    """From a node to one of its targets. node: the one that stands for it, None for a mailbox."""

    target: Mailbox
    node: str | None


@dataclass(slots=True)
class _Stop:
    """A node on the way from the first, and how many of its steps were taken."""

    name: str
    steps: list[_Step]
    taken: int = 0


class _Follow:
    """Follows all aliases, each once.

    A node is an entry within a domain. Its name is the address; or the local part alone, for an
    entry of every domain, in all domains but those where a full entry is in its way, or where it
    names itself: there it has a node of its own.
    """

    def __init__(self, entries: dict[str, _Entry], limit: int, problems: _Problems) -> None:
        self._entries = entries
        self._limit = limit
        self._problems = problems
        self._nodes = {left: (entry, entry.domain) for left, entry in entries.items()}
        self._locals = {entry.local for entry in entries.values()}
        self._add_domains()
        self._ends: dict[str, tuple[Mailbox, ...]] = {}
        self._too_many: set[str] = set()
        self._in_loops: set[int] = set()  # lines of loops that were said

    def all(self) -> dict[str, Found]:
        """What `Aliases` knows, by the names of the nodes."""
        self._find_pointless()
        for name in self._nodes:
            if name not in self._ends and len(self._problems) < MAX_PROBLEMS:
                self._walk(name, self._steps(name))
        return {
            name: Found(ends, entry.left, entry.line)
            for name, ends in self._ends.items()
            for entry, _ in (self._nodes[name],)
        }

    def _add_domains(self) -> None:
        """Make the nodes of local parts in domains where they lead elsewhere than in others."""
        users: dict[str, list[_Entry]] = {}
        own: list[tuple[_Entry, str]] = []
        for entry in self._entries.values():
            for local, domain in () if entry.domain else entry.targets:
                if not domain:
                    users.setdefault(local.lower(), []).append(entry)
                elif local.lower() == entry.local:
                    own.append((entry, domain))
        for full in self._entries.values():
            waiting = [full.local] if full.local and full.domain else []
            while waiting:
                for entry in users.get(waiting.pop(), ()):
                    name = f"{entry.local}@{full.domain}"
                    if name not in self._nodes:
                        self._nodes[name] = entry, full.domain
                        waiting.append(entry.local)
        for entry, domain in own:
            self._nodes.setdefault(f"{entry.local}@{domain}", (entry, domain))

    def _find_pointless(self) -> None:
        for left, local, domain, targets, line in self._entries.values():
            own = all(to.local.lower() == local and to.domain in ("", domain) for to in targets)
            # It may take the address out of an entry for more than this address.
            more = local in self._entries or f"@{domain}" in self._entries
            if own and not (more if domain else "" in self._locals):
                wrong = f"{shown(left)} is a loop that does nothing, as it names only itself"
                self._say(line, f"{wrong}; leave the line out")

    def _say(self, line: int, text: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append((line, text))

    def _steps(self, name: str) -> list[_Step]:
        nodes, locals_ = self._nodes, self._locals
        (entry, within), steps = nodes[name], list[_Step]()
        for target in entry.targets:
            local = target.local.lower()
            if not target.domain and within:
                target = Mailbox(target.local, within)
            node = None
            if local in locals_:
                full = str(Mailbox(local, target.domain))
                node = full if full in nodes else local if local in nodes else None
            steps.append(_Step(target, node if node != name else None))
        return steps

    def _walk(self, name: str, steps: list[_Step]) -> None:
        """Find the ends of the node and of all it leads to; no call for each, a chain is long."""
        if len(steps) == 1 and steps[0].node is None:
            self._ends[name] = (steps[0].target,)
            return
        way = [_Stop(name, steps)]
        depth = {name: 0}
        while way:
            here = way[-1]
            if here.taken == len(here.steps):
                self._ends[here.name] = self._end(here)
                del depth[way.pop().name]
                continue
            node = here.steps[here.taken].node
            here.taken += 1
            if node in depth:
                self._say_loop(way, depth[node])
            elif node is not None and node not in self._ends:
                depth[node] = len(way)
                way.append(_Stop(node, self._steps(node)))

    def _end(self, stop: _Stop) -> tuple[Mailbox, ...]:
        """The mailboxes that the steps lead to; () where there are too many, or only loops."""
        if not self._too_many.isdisjoint(node for _, node in stop.steps if node is not None):
            self._too_many.add(stop.name)
            return ()
        target, node = stop.steps[0]  # a chain shares one tuple
        if len(stop.steps) == 1 and node and (self._nodes[node][1] or not target.domain):
            return self._ends.get(node, ())
        ends: dict[tuple[str, str], Mailbox] = {}
        for target, node in stop.steps:
            for end in (target,) if node is None else self._ends.get(node, ()):
                own = end if end.domain else Mailbox(end.local, target.domain)
                ends.setdefault((end.local.lower(), own.domain), own)
        if len(ends) > self._limit:
            self._too_many.add(stop.name)
            wrong = f"{shown(stop.name)} leads to {len(ends)} mailboxes"
            self._say(self._nodes[stop.name][0].line, f"{wrong}; write {self._limit} or less")
            return ()
        return tuple(ends.values())

    def _say_loop(self, way: list[_Stop], start: int) -> None:
        first = self._nodes[way[start].name][0].line
        if first in self._in_loops:
            return
        at = {self._nodes[stop.name][0].line for stop in way[start:]}
        self._in_loops |= at
        steps = [stop.steps[stop.taken - 1] for stop in way[start:]]
        chain = [way[start].name, *(f"{Mailbox(to.local.lower(), to.domain)}" for to, _ in steps)]
        loop = " -> ".join(map(printable, _shortened(chain)))
        of_lines = ", ".join(_shortened(list(map(str, sorted(at)))))
        where = f"(lines {of_lines}); write in one of them where the mail stays"
        self._say(first, f"a loop: {loop} {where}")


def _shortened(items: list[str]) -> list[str]:
    return items if len(items) <= 2 * _ENDS else [*items[:_ENDS], "...", *items[-_ENDS:]]
