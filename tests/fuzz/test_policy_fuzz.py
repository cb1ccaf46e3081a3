"""Whatever is configured and answered: no relaying, no loss, and nothing depends on mere order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gsmtpd.message.row import Message, Row, RowMaker
from gsmtpd.policy.decision import Decision, Policy, Rule, Unknown, decide, explain
from gsmtpd.policy.files import Lists, PolicyFiles
from gsmtpd.policy.lists import ListError
from gsmtpd.policy.names import a_labels
from gsmtpd.policy.questions import Answer, Kind, Question, Unanswered
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox, parse_path
from gsmtpd.smtp.events import Event, MessageReceived
from gsmtpd.smtp.reply import Reply
from gsmtpd.smtp.rules import Rules
from gsmtpd.smtp.session import Session

OWN = "mx.example.com"
DOMAINS = ["x.example", "a.x.example", "y.example", "xn--bcher-kva.example", "[IPv6:2001:db8::1]"]
PATTERNS = [*DOMAINS, "*.x.example", ".x.example", "*.a.x.example", ".example", OWN]
LOCALS = ["ann", "bob", "carl", "postmaster", "abuse", '"a b"']
TAGGED = ["ann+x", "bob+x+y", "carl+", "Abuse+x", "+x"]
NETWORKS = ["192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "10.0.0.0/8"]
CLIENTS = ["192.0.2.7", "192.0.2.8", "10.1.1.1", "2001:db8::9", "203.0.113.5"]


def within(locals_: Sequence[str]) -> list[str]:
    """These local parts in all domains."""
    return [f"{local}@{domain}" for local in locals_ for domain in DOMAINS]


EVERYBODY = within([""])
LEFTS = ["ann", "bob", "carl", "postmaster", *within(["ann", "abuse"]), *EVERYBODY]
TARGETS = ["Mia", "noa", "Postmaster", "ann", *within(["Bob", "x+y"])]
ADDRESSES = [*LOCALS, *within(LOCALS[:3]), *EVERYBODY]
ANSWERS: list[Answer] = ["yes", "yes", "", None]


@dataclass(frozen=True)
class Written:
    """What an administrator writes: `lists` without its files; those are in `files`, by name.

    aliases: the lines of the alias file.
    """

    lists: Lists
    files: dict[str, list[str]]
    aliases: list[str]

    def make(self, folder: Path) -> Policy:
        """What it comes to. Raises ListError."""
        changes: dict[str, Any] = {}
        for name, items in self.files.items():
            path = folder / name
            path.write_text("".join(f"{item}\n" for item in items), "utf-8")
            changes[name] = (*getattr(self.lists, name), f"@{path}")
        if self.aliases:
            (folder / "aliases").write_text("".join(f"{line}\n" for line in self.aliases), "utf-8")
            changes["aliases"] = str(folder / "aliases")
        return PolicyFiles(replace(self.lists, **changes)).current


def some(items: Sequence[str], most: int = 4) -> st.SearchStrategy[tuple[str, ...]]:
    """A list of some of them."""
    return st.lists(st.sampled_from(items), max_size=most, unique=True).map(tuple)


seldom = st.sampled_from([False, False, True])
lists = st.builds(
    Lists,
    domains=some([*PATTERNS, "*"]),
    own_domain=st.just(OWN),
    asks_domains=st.booleans(),
    recipients=st.just(()) | some(ADDRESSES, 8),
    asks_recipients=seldom,
    unknown=st.sampled_from(Unknown),
    plus_tags=st.booleans(),
    always=st.sampled_from([("postmaster", "abuse"), ("postmaster", "abuse"), ("abuse",), ()]),
    allow=st.just(()) | some(NETWORKS, 1),
    deny=st.just(()) | some(NETWORKS, 1),
    asks_clients=seldom,
)
alias_lines = st.dictionaries(
    st.sampled_from(LEFTS),
    st.lists(st.sampled_from(TARGETS), min_size=1, max_size=4).map(", ".join),
    min_size=1,
    max_size=6,
).map(lambda entries: [f"{left}: {targets}" for left, targets in entries.items()])
in_files = st.fixed_dictionaries(
    {},
    optional={
        "domains": some(PATTERNS).map(list),
        "recipients": some(ADDRESSES).map(list),
        "deny": st.just([]) | some(NETWORKS, 1).map(list),
    },
)
written = st.builds(Written, lists, in_files, st.just([]) | alias_lines | alias_lines)
recipients = st.just("Postmaster") | st.builds(
    "{}@{}".format,
    st.sampled_from([*LOCALS, *TAGGED]),
    st.sampled_from([*DOMAINS, "b\u00fccher.example", "other.test", OWN]),
)


@st.composite
def asked(draw: st.DrawFn) -> tuple[Written, str]:
    """What is written, and a recipient; often one of whom something is written."""
    own = draw(written)
    lefts = [line.partition(": ")[0] for line in own.aliases]
    named = [*lefts, *own.lists.recipients, *own.files.get("recipients", ())]
    if not named or draw(seldom):
        return own, draw(recipients)
    local, at, domain = draw(st.sampled_from(named)).rpartition("@")
    if not at:
        local, domain = domain, draw(st.sampled_from(DOMAINS))
    return own, f"{local or 'eve'}@{domain}"


clients = st.sampled_from(CLIENTS)
answers = st.integers(0, 1 << 32)

Make = Callable[[Written], Policy]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a Policy of what is written; a file of aliases that is refused makes no example."""
    folder = tmp_path_factory.mktemp("lists")

    def make(written: Written) -> Policy:
        try:
            return written.make(folder)
        except ListError:
            assume(False)
            raise

    return make


def mailbox(text: str) -> Mailbox:
    """The mailbox of a recipient as it is written in RCPT."""
    found = parse_path(f"<{text}>")
    assert found is not None
    return found


def asker(said: int) -> Callable[[Question], Answer]:
    """Always the same answer to the same question; others for each number."""

    def ask(question: Question) -> Answer:
        about = f"{said} {question.kind} {question.about}"
        return ANSWERS[crc32(about.encode()) % len(ANSWERS)]

    return ask


def serves(policy: Written, domain: str, ask: Callable[[Question], Answer]) -> Answer:
    """Whether a domain in A-labels is served, looked at one by one."""
    for pattern in (*policy.lists.domains, *policy.files.get("domains", ())):
        named = domain == pattern or pattern == "*"
        if pattern[0] in ".*" and pattern != "*" and domain[0] != "[":
            named = domain.endswith(pattern.lstrip("*")) or domain == pattern.removeprefix(".")
        if named:
            return "yes"
    return ask(Question(Kind.DOMAIN, domain.lower())) if policy.lists.asks_domains else ""


examples = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


@examples
@given(asked(), clients, answers)
def test_deciding_ends_and_asks_nothing_twice(
    make: Make, case: tuple[Written, str], client: str, said: int
) -> None:
    written, text = case
    policy, ask = make(written), asker(said)
    known: dict[Question, Answer] = {}

    def known_by_now(question: Question) -> Answer:
        if question not in known:
            raise Unanswered(question)
        return known[question]

    def when_known(how: Callable[..., Decision]) -> Decision:
        while True:
            try:
                return how(policy, mailbox(text), client, known_by_now)
            except Unanswered as unanswered:
                question = unanswered.question
                assert question not in known
                assert question.about == question.about.lower()
                assert question.about.isascii()
                known[question] = ask(question)
                # Its domain, its client, itself, and the domains of targets.
                assert len(known) <= 3 + len(DOMAINS)

    decided = when_known(decide)
    asked = len(known)
    explained = when_known(explain)
    assert len(known) == asked
    assert decided == (explained.reply, explained.mailboxes, ())
    assert explained.reasons


@settings(examples, max_examples=1000)
@given(asked(), clients, answers)
def test_nothing_is_relayed(make: Make, case: tuple[Written, str], client: str, said: int) -> None:
    written, text = case
    policy, ask, recipient = make(written), asker(said), mailbox(text)
    decision = decide(policy, recipient, client, ask)
    is_bare = recipient.domain == "" and "postmaster" in written.lists.always
    domain = a_labels(recipient.domain) or OWN
    if not decision.reply.positive:
        assert decision.reply.code in (451, 550, 554)
        assert decision.mailboxes is None
        return
    assert is_bare or serves(written, domain, ask) == "yes"
    for each in decision.mailboxes or ():
        if each.domain not in ("", recipient.domain, domain):
            assert serves(written, each.domain, ask) == "yes"


@examples
@given(asked(), clients, answers)
def test_what_nobody_can_say_now_decides_nothing(
    make: Make, case: tuple[Written, str], client: str, said: int
) -> None:
    """Neither for good nor for bad; only a blocklist that does not answer has none listed."""
    written, text = case
    policy, ask, recipient = make(written), asker(said), mailbox(text)
    decision = decide(policy, recipient, client, ask)
    if decision.reply == reply.LOOKUP_TROUBLE:
        return
    for answer in ("yes", ""):

        def later(question: Question, answer: Answer = answer) -> Answer:
            found = ask(question)
            if found is None:
                return "" if question.kind is Kind.CLIENT else answer
            return found

        assert decide(policy, recipient, client, later) == decision


def naively_in(network: str, client: str) -> bool:
    """For the networks and clients of this file."""
    starts = {"192.0.2.0/24": "192.0.2.", "2001:db8::/32": "2001:db8:", "10.0.0.0/8": "10."}
    return client == network or client.startswith(starts.get(network, "-"))


def denied(written: Written, client: str) -> bool:
    """Whether `deny` has a client and `allow` has not."""
    deny = (*written.lists.deny, *written.files.get("deny", ()))
    allowed = any(naively_in(network, client) for network in written.lists.allow)
    return not allowed and any(naively_in(network, client) for network in deny)


@examples
@given(written, st.sampled_from(["postmaster", "abuse", "Postmaster+x"]), st.sampled_from(
    ["", *DOMAINS]), clients, answers)  # fmt: skip
def test_the_postmaster_is_there(
    make: Make, written: Written, local: str, domain: str, client: str, said: int
) -> None:
    """Whatever is known of recipients, and whatever a blocklist says."""
    policy, ask = make(written), asker(said)
    recipient = mailbox(f"{local}@{domain}") if domain else mailbox("postmaster")
    is_served = serves(written, domain, ask) == "yes" if domain else True
    decision = decide(policy, recipient, client, ask)
    base = recipient.local.lower().partition("+")[0]
    assume(base in written.lists.always)
    assume(written.lists.plus_tags or "+" not in recipient.local)
    if denied(written, client):
        assert decision.reply.code == 554
    elif not is_served:
        assert not decision.reply.positive
    else:
        led = [reason for reason in explain(policy, recipient, client, ask).reasons
               if reason.rule is Rule.ALIASES]  # fmt: skip
        lefts = {line.partition(": ")[0] for line in written.aliases}
        assert bool(led) == bool(lefts & {base, f"{base}@{domain or OWN}"})
        if not led:
            assert decision.reply.code == 250
            assert decision.mailboxes != ()


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[Written, Written]:
    """The same, with all items of lists, and lines of files, in another order and twice."""
    one = draw(written)

    def other(items: Sequence[str]) -> list[str]:
        more = draw(st.lists(st.sampled_from([*items]), max_size=3)) if items else []
        return draw(st.permutations([*items, *more]))

    names = ("domains", "recipients", "allow", "deny", "always")
    changed: dict[str, Any] = {name: tuple(other(getattr(one.lists, name))) for name in names}
    files = {name: other(items) for name, items in one.files.items()}
    aliases = draw(st.permutations(one.aliases))
    return one, Written(replace(one.lists, **changed), files, aliases)


@examples
@given(shuffled(), recipients, clients, answers)
def test_the_order_of_items_means_nothing(
    make: Make, two: tuple[Written, Written], text: str, client: str, said: int
) -> None:
    one, other = (explain(make(each), mailbox(text), client, asker(said)) for each in two)
    assert (one.reply, one.mailboxes) == (other.reply, other.mailboxes)
    assert [reason._replace(line=0) for reason in one.reasons] == [
        reason._replace(line=0) for reason in other.reasons
    ]


@examples
@given(asked(), clients, answers)
def test_case_means_nothing(make: Make, case: tuple[Written, str], client: str, said: int) -> None:
    written, text = case
    policy, ask = make(written), asker(said)
    lower, other = mailbox(text.lower()), mailbox(text.swapcase())
    expected = decide(policy, lower, client, ask)
    found = decide(policy, other, client, ask)
    assert found.reply == expected.reply
    if expected.mailboxes is None:
        assert found.mailboxes is None
    else:
        assert found.mailboxes is not None
        for one, each in zip(expected.mailboxes, found.mailboxes, strict=True):
            # The one of an alias as the file has it, another as the client said it.
            assert each == one or each.local in (other.local, other.local.partition("+")[0])
            assert (each.local.lower(), each.domain) == (one.local.lower(), one.domain)


# What is stored


def talk(policy: Policy, said: int, client: str, mails: list[list[str]]) -> list[Row]:
    """The rows of the `mails`, each to some recipients, of one session."""
    session = Session(Rules(OWN, max_commands=1000))
    ask, maker, rows = asker(said), RowMaker(OWN), list[Row]()

    def send(octets: bytes) -> Event | None:
        event = session.receive(octets)
        while event is not None and not isinstance(event, MessageReceived):
            decision = decide(policy, event.recipient, client, ask)
            event = session.answer(decision.reply, decision.mailboxes)
        return event

    send(b"EHLO client.example.org\r\n")
    for number, to in enumerate(mails):
        send(b"RSET\r\nMAIL FROM:<sender@example.org> SMTPUTF8\r\n")
        send("".join(f"RCPT TO:<{each}>\r\n" for each in to).encode())
        session.take_output()
        send(b"DATA\r\n")
        if session.take_output().startswith(b"354"):
            event = send(f"Subject: {number}\r\n\r\ntext\r\n.\r\n".encode())
            assert isinstance(event, MessageReceived)
            message = Message("0" * 32, event.envelope, event.content, client, 0.0)
            made = [*maker.rows(message)]
            assert len(made) == event.envelope.copies
            assert len(event.envelope.recipients) + len(event.envelope.discarded) <= len(to)
            rows += made
            session.answer(Reply(250, "2.0.0", "Ok"))
    return rows


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    written, clients, answers, st.lists(st.lists(recipients, min_size=1, max_size=5), max_size=3)
)
def test_what_is_stored_does_not_depend_on_unknown(
    make: Make, written: Written, client: str, said: int, mails: list[list[str]]
) -> None:
    """To the last octet: nobody can tell from a row whether others were thrown away."""
    policies = [make(replace(written, lists=replace(written.lists, unknown=unknown)))
                for unknown in Unknown]  # fmt: skip
    rejected, discarded, deferred = (talk(each, said, client, mails) for each in policies)
    assert rejected == discarded
    assert rejected == deferred
