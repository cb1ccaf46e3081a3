"""Does what docs/policy.md says of settings that come together hold, for each pair of them?

The tables of its section "What wins over what" are read and tried: each cell and each case becomes
a configuration, is loaded as the server does it, and is asked by a session.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from gsmtpd import config
from gsmtpd.app_policy import make_policy
from gsmtpd.config import Config
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.policy.decision import Decision, Policy, decide, explain
from gsmtpd.policy.lists import ListError
from gsmtpd.policy.names import a_labels
from gsmtpd.policy.questions import Answer, Kind, Question
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox, parse_path
from gsmtpd.smtp.events import Event, MessageReceived, RecipientAsked
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session

PAGE = Path(__file__).resolve().parents[3] / "docs" / "policy.md"
HEADING = "## What wins over what"
HOST_NAME = "mx.example.com"
CLIENT = "192.0.2.7"
USER, DOMAIN = "ann", "mail.example.com"
ALIASES = re.compile("A[1-9]")
IMPOSSIBLE = "-"

Table = list[list[str]]


# The page


def section() -> list[str]:
    """The lines of the section."""
    lines = PAGE.read_text("utf-8").splitlines()
    own = lines[lines.index(HEADING) + 1 :]
    return [*takewhile(lambda line: not line.startswith("## "), own)]


def tables() -> Iterator[Table]:
    """The tables of the section: rows of cells, the first of them the head."""
    table: Table = []
    for line in [*section(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(set(cell) <= {"-"} and cell for cell in cells):
                table.append(cells)
        elif table:
            yield table
            table = []


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return [each.strip() for each in re.findall("`([^`]*)`", cell)]


class Setting(NamedTuple):
    """A line of the first table. circumstance: its last column."""

    section: str
    key: str
    values: list[str]
    circumstance: str


class Case(NamedTuple):
    """A line of the last table."""

    settings: list[str]
    recipient: str
    answer: str
    stored_for: list[str]


def read_settings(table: Table) -> dict[str, Setting]:
    """The first table."""
    found = {}
    for name, where, values, circumstance in table[1:]:
        (place,) = quoted(where)
        section, key = place.split()
        found[name] = Setting(section.strip("[]"), key, quoted(values), circumstance)
    return found


def read_answers(table: Table) -> dict[str, str]:
    """How the replies begin that the words in the tables stand for."""
    found = {}
    for word, said, _ in table[1:]:
        first, _, last = word.partition(" to A")
        names = [f"A{i}" for i in range(1, int(last) + 1)] if last else [first]
        found.update(dict.fromkeys(names, "".join(quoted(said))))
    return found


_FIRST, _SECOND, *_MATRICES, _LAST = tables()
SETTINGS = read_settings(_FIRST)
ANSWERS = read_answers(_SECOND)
CELLS = [
    (line[0], column, cell)
    for head, *lines in _MATRICES
    for line in lines
    for column, cell in zip(head[1:], line[1:], strict=True)
    if cell
]
CASES = [
    Case(settings.split(), "".join(quoted(recipient)), answer, quoted(stored_for))
    for settings, recipient, answer, stored_for, _ in _LAST[1:]
]


# What is configured


class ConflictError(Exception):
    """Two settings cannot be at once."""


@dataclass
class Scene:
    """What some settings come to. user, domain: what USER and DOMAIN stand for."""

    user: str = USER
    domain: str = DOMAIN
    tag: str = ""
    before: int = 0  # recipients that were taken already
    keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    answers: dict[Kind, Answer] = field(default_factory=dict)

    @property
    def recipient(self) -> str:
        return f"{self.user}{self.tag}@{self.domain}"

    def put(self, key: tuple[str, str], *values: str) -> None:
        """Set a key; a list may be set by several."""
        found = self.keys.setdefault(key, [])
        is_list = key[1] in ("accept", "allow", "deny", "aliases", "dnsbl")
        if found and not is_list and found != [*values]:
            raise ConflictError
        self.keys[key] = [*dict.fromkeys([*found, *values])]

    def say(self, kind: Kind, answer: Answer) -> None:
        """What is answered to all questions of a kind."""
        if self.answers.setdefault(kind, answer) != answer:
            raise ConflictError

    def filled(self, text: str) -> str:
        return text.replace("USER", self.user).replace("DOMAIN", self.domain)


KINDS = {
    ("domains", "query"): Kind.DOMAIN,
    ("recipients", "query"): Kind.RECIPIENT,
    ("clients", "dnsbl"): Kind.CLIENT,
}
SAID: dict[str, Answer] = {
    "it finds a row": "yes",
    "it finds no row": "",
    "the database is down": None,
    "the client is listed": "zen.example.org: spam",
    "nobody answers": None,
}


def scene_of(names: list[str]) -> Scene:
    """What the settings of these names come to."""
    scene = Scene()
    settings = [SETTINGS[name] for name in names]
    for setting in settings:
        value = "".join(quoted(setting.circumstance))
        match setting.circumstance.split("`")[0].strip():
            case "DOMAIN is":
                scene.domain = value
            case "USER is":
                scene.user = value
            case "the address is":
                scene.tag = value.removeprefix("USER").removesuffix("@DOMAIN")
    for setting in settings:
        _add(scene, setting)
    if not any(setting.section == "domains" and setting.key != "primary_domain"
               for setting in settings):  # fmt: skip
        scene.put(("domains", "accept"), DOMAIN)
    return scene


def _add(scene: Scene, setting: Setting) -> None:
    place = (setting.section, setting.key)
    circumstance, values = setting.circumstance, [scene.filled(each) for each in setting.values]
    words = "".join(map(scene.filled, quoted(circumstance)))
    match circumstance.split("`")[0].strip():
        case "the file holds":
            values = [f"@/file{len(scene.files)}"]
            scene.files.append(words)
        case "only":
            scene.put(("recipients", "accept"), words)
        case "99 recipients were taken before":
            scene.before = 99
        case said if said in SAID:
            scene.say(KINDS[place], SAID[said])
        case said:
            assert said in ("", "DOMAIN is", "USER is", "the address is"), said
    scene.put(place, *values)


def load(scene: Scene, folder: Path) -> Config:
    """The configuration of a server that is set so."""
    texts: dict[str, list[str]] = {"server": [f"host_name = {HOST_NAME}"]}
    for (name, key), values in scene.keys.items():
        for i, text in enumerate(scene.files):
            (folder / f"file{i}").write_text(f"{text}\n", "utf-8")
        if key == "aliases":
            (folder / "aliases").write_text("".join(f"{each}\n" for each in values), "utf-8")
            values = [f"{folder}/aliases"]
        said = ", ".join(values).replace("@/", f"@{folder}/")
        texts.setdefault(name, []).append(f"{key} = {said}")
    conf = folder / "gsmtpd.conf"
    lines = [line for name, own in texts.items() for line in (f"[{name}]", *own)]
    conf.write_text("\n".join(lines) + "\n", "utf-8")
    return config.load(str(conf), environ={})


# What is answered


class Outcome(NamedTuple):
    """The last thing a client hears to RCPT, and `to` of the rows of its message."""

    said: str
    stored_for: list[str]


def outcome(scene: Scene, text: str, folder: Path) -> Outcome:
    """What becomes of mail for the address `text` in a session. Raises ConflictError."""
    loaded = load(scene, folder)
    try:
        policy = make_policy(loaded).current
    except ListError as error:
        assert all("is there twice" in problem for problem in error.problems)
        raise ConflictError from error
    recipient = parse_path(f"<{text}>")
    assert recipient is not None
    decision = decided(policy, recipient, scene)
    return talked(loaded, scene, recipient, decision)


def decided(policy: Policy, recipient: Mailbox, scene: Scene) -> Decision:
    """The decision, explained or not."""

    def ask(question: Question) -> Answer:
        return scene.answers[question.kind]

    explained = explain(policy, recipient, CLIENT, ask)
    assert explained.reasons
    short = decide(policy, recipient, CLIENT, ask)
    assert (short.reply, short.mailboxes) == (explained.reply, explained.mailboxes)
    return short


def talked(loaded: Config, scene: Scene, recipient: Mailbox, decision: Decision) -> Outcome:
    """What a session with that decision comes to."""
    session = Session(Rules(HOST_NAME, max_recipients=loaded.limits.max_recipients))
    session.receive(b"EHLO client.example.org\r\nMAIL FROM:<> SMTPUTF8\r\n")
    for i in range(scene.before):
        session.receive(f"RCPT TO:<before{i}@{DOMAIN}>\r\n".encode())
        session.answer(reply.RECIPIENT_OK)
    session.take_output()
    asked = session.receive(f"RCPT TO:<{recipient}>\r\n".encode())
    assert asked == RecipientAsked(recipient)
    session.answer(decision.reply, decision.mailboxes)
    said = session.take_output().decode().rstrip("\r\n")
    event: Event | None = None
    session.receive(b"DATA\r\n")
    if session.state.name == "DATA":
        event = session.receive(b"text\r\n.\r\n")
    return Outcome(said, stored(loaded, event, recipient))


def stored(loaded: Config, event: Event | None, recipient: Mailbox) -> list[str]:
    """The column `to` of the rows of `recipient`."""
    if not isinstance(event, MessageReceived):
        return []
    maker = RowMaker(HOST_NAME, loaded.domains.primary_domain)
    message = Message("0" * 32, event.envelope, event.content, CLIENT, 0.0)
    own = str(recipient) if recipient.domain else f"{recipient}@{HOST_NAME}"
    return [row.to for row in maker.rows(message) if row.recipient == own]


def mailboxes_of(scene: Scene, answer: str, primary: str) -> list[str]:
    """`to` of the rows that an answer to `scene.recipient` stands for."""
    if ANSWERS[answer] != str(reply.RECIPIENT_OK) or answer == "drop":
        return []
    users, domain = [scene.user], primary or a_labels(scene.domain)
    if ALIASES.fullmatch(answer):
        # The last of them: a chain ends there.
        targets = scene.filled(SETTINGS[answer].values[-1]).partition(":")[2]
        users = [user.strip() for user in targets.split(",")]
    return [f"{user}@{domain}" for user in users]


# The tests


def test_the_page_has_every_pair_of_settings_once() -> None:
    found = [frozenset((line, column)) for line, column, _ in CELLS]
    wanted = [frozenset(pair) for pair in combinations_with_replacement(SETTINGS, 2)]
    assert len(found) == len(set(found))
    assert set(found) == set(wanted)
    assert len(CASES) > 50


def test_the_page_has_every_reply_that_decides() -> None:
    said = {*ANSWERS.values()} - {""}
    canned = [reply.RECIPIENT_OK, reply.NO_SUCH_USER, reply.USER_NOT_YET, reply.NOT_SERVED,
              reply.LOOKUP_TROUBLE, reply.CLIENT_DENIED, reply.TOO_MANY_RECIPIENTS,
              reply.client_listed(CLIENT, "zen.example.org")]  # fmt: skip
    for each in canned:
        (word,) = [text for text in said if str(each).startswith(text)]
        said.remove(word)
    assert not said
    assert {cell for _, _, cell in CELLS} == set(ANSWERS)


@pytest.mark.parametrize(
    ("line", "column", "answer"), CELLS, ids=[f"{line}-{column}" for line, column, _ in CELLS]
)
def test_two_settings(line: str, column: str, answer: str, tmp_path: Path) -> None:
    try:
        # The line comes last: what it says of the address counts.
        scene = scene_of([column, line])
        found = outcome(scene, scene.recipient, tmp_path)
    except ConflictError:
        assert answer == IMPOSSIBLE
        return
    assert answer != IMPOSSIBLE
    assert found.said.startswith(ANSWERS[answer])
    primary = "main.example" if "M" in (line, column) else ""
    assert found.stored_for == mailboxes_of(scene, answer, primary)


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{'-'.join(each.settings)}-{each.recipient}" for each in CASES]
)
def test_a_case(case: Case, tmp_path: Path) -> None:
    found = outcome(scene_of(case.settings), case.recipient, tmp_path)
    assert found.said.startswith(ANSWERS[case.answer])
    assert found.stored_for == case.stored_for


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=SETTINGS)
def test_the_order_of_settings_means_nothing(number: int, tmp_path: Path) -> None:
    first, *others = [*SETTINGS][number:]
    for other in others:
        both = []
        for names in ([first, other], [other, first]):
            folder = tmp_path / "-".join(names)
            folder.mkdir()
            try:
                address = scene_of([other, first]).recipient
                both.append(outcome(scene_of(names), address, folder))
            except ConflictError:
                both.append(Outcome(IMPOSSIBLE, []))
        if (first, other) != ("D6", "D7"):  # which have two addresses
            assert both[0] == both[1], other
