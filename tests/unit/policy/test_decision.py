"""Is a recipient decided as the parts of a policy say: what is asked, what is said, and why?

How settings work together is in test_combinations.py, what always holds in test_policy_fuzz.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configobj import ConfigObj  # type: ignore[import-untyped]

from gsmtpd import config
from gsmtpd.policy.addresses import AddressSet
from gsmtpd.policy.aliases import Aliases, read_aliases
from gsmtpd.policy.decision import Decision, Policy, Reason, Rule, Unknown, decide, explain
from gsmtpd.policy.domains import DomainSet
from gsmtpd.policy.networks import NetworkSet
from gsmtpd.policy.questions import Answer, Kind, Question, Unanswered
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox, parse_path

CLIENT = "192.0.2.7"
ANN = Mailbox("ann", "x.example")
HERE = NetworkSet(["192.0.2.0/24"])
REASON = "zen.example.org: spam"

Read = Callable[[str], Aliases]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> Aliases:
        path = tmp_path / "aliases"
        path.write_text(text, "utf-8")
        return read_aliases(str(path), 1000)

    return read


def policy(**changes: Any) -> Policy:
    """Who serves x.example."""
    changes.setdefault("domains", DomainSet(["x.example"]))
    return Policy(own_domain="mx.example", **changes)


class Asked:
    """Answers, and keeps what it was asked. said: by what is asked about; "" for all else."""

    def __init__(self, **said: Answer) -> None:
        self.questions: list[Question] = []
        self._said = {about.replace("_", "."): answer for about, answer in said.items()}

    def __call__(self, question: Question) -> Answer:
        self.questions.append(question)
        return self._said.get(question.about, "")


def nobody(question: Question) -> Answer:
    """Whom nothing may be asked."""
    raise AssertionError(question)


def mailbox(text: str) -> Mailbox:
    found = parse_path(f"<{text}>")
    assert found is not None
    return found


def decided(own: Policy, text: str = "ann@x.example", ask: Any = nobody) -> Decision:
    return decide(own, mailbox(text), CLIENT, ask)


def why(own: Policy, text: str = "ann@x.example", ask: Any = nobody) -> list[Reason]:
    return [*explain(own, mailbox(text), CLIENT, ask).reasons]


# From whom


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("192.0.2.1", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.0/24"),
        ("192.0.2.9", ""),
        ("198.51.100.1", ""),
        ("2001:db8::1", "2001:db8::/32"),
        ("2001:db8:1::1", ""),
        ("", ""),
    ],
)
def test_who_is_sent_away(ip: str, network: str) -> None:
    allow = NetworkSet(["192.0.2.9", "2001:db8:1::/48"])
    own = policy(allow=allow, deny=NetworkSet(["192.0.2.0/24", "2001:db8::/32"]))
    assert own.denies(ip) == network
    assert policy(allow=allow).denies(ip) == ""
    said = decide(own, ANN, ip, nobody).reply
    assert said == (reply.CLIENT_DENIED if network else reply.RECIPIENT_OK)


def test_whom_blocklists_are_asked_for() -> None:
    assert policy().client_question(CLIENT) is None
    asking = policy(asks_clients=True)
    assert asking.client_question(CLIENT) == Question(Kind.CLIENT, CLIENT)
    assert policy(asks_clients=True, allow=HERE).client_question(CLIENT) is None
    # What is asked early is what the decision needs.
    asked = Asked()
    decided(asking, ask=asked)
    assert asked.questions == [asking.client_question(CLIENT)]


def test_a_listed_client_hears_which_list_has_it() -> None:
    asked = Asked(**{CLIENT: REASON})
    said = decided(policy(asks_clients=True), ask=asked).reply
    assert str(said) == f"550 5.7.1 Your address {CLIENT} is listed by {REASON}"


# What is asked


def all_asking(**changes: Any) -> Policy:
    """Whose lists are empty."""
    return policy(
        domains=DomainSet(()), asks_domains=True, asks_recipients=True, asks_clients=True, **changes
    )


def test_what_is_asked_in_which_order() -> None:
    asked = Asked(x_example="yes")
    assert decided(all_asking(), "Ann@X.example", asked).reply == reply.NO_SUCH_USER
    assert asked.questions == [
        (Kind.DOMAIN, "x.example"),
        (Kind.CLIENT, CLIENT),
        (Kind.RECIPIENT, "ann@x.example"),
    ]


@pytest.mark.parametrize(
    ("text", "domain", "address"),
    [
        ("Ann@X.EXAMPLE", "x.example", "ann@x.example"),
        ("Ann@B\u00dcCHER.example", "xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
        ("ann@[192.0.2.1]", "[192.0.2.1]", "ann@[192.0.2.1]"),
        ("ann@[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]", "ann@[ipv6:2001:db8::1]"),
        ('"A b"@x.example', "x.example", '"a b"@x.example'),
        ("\u00dc@x.example", "x.example", "\u00fc@x.example"),
        ("ann+Tag@x.example", "x.example", "ann@x.example"),
    ],
)
def test_in_which_form_it_is_asked(text: str, domain: str, address: str) -> None:
    asked = Asked(**{domain: "yes"})
    decided(all_asking(plus_tags=True), text, asked)
    assert [each.about for each in asked.questions] == [domain, CLIENT, address]


@pytest.mark.parametrize("known", ["ann@x.example", "@x.example", "ann"])
def test_what_lists_know_is_not_asked(known: str) -> None:
    own = policy(
        asks_domains=True, asks_recipients=True, has_recipients=True, recipients=AddressSet([known])
    )
    assert decided(own) == Decision(reply.RECIPIENT_OK)


def test_nothing_more_is_asked_once_it_is_decided() -> None:
    asked = Asked()
    assert decided(all_asking(), ask=asked).reply == reply.NOT_SERVED
    assert decided(all_asking(deny=HERE), ask=asked).reply == reply.CLIENT_DENIED
    assert [each.kind for each in asked.questions] == [Kind.DOMAIN]
    asked = Asked(x_example="yes", **{CLIENT: REASON})
    assert decided(all_asking(), ask=asked).reply.code == 550
    assert [each.kind for each in asked.questions] == [Kind.DOMAIN, Kind.CLIENT]


def test_what_is_not_known_yet_is_told() -> None:
    def ask(question: Question) -> Answer:
        raise Unanswered(question)

    for how in (decide, explain):
        with pytest.raises(Unanswered) as caught:
            how(policy(asks_recipients=True), ANN, CLIENT, ask)
        assert caught.value.question == Question(Kind.RECIPIENT, "ann@x.example")


def test_the_short_way_is_for_domains_alone(read: Read) -> None:
    assert policy().by_domain_alone
    assert policy(unknown=Unknown.DEFER, always=frozenset(), allow=HERE).by_domain_alone
    more: list[dict[str, Any]] = [
        {"has_recipients": True},
        {"asks_recipients": True},
        {"plus_tags": True},
        {"aliases": read("ann: bob\n")},
        {"deny": HERE},
        {"asks_clients": True},
    ]
    assert not any(policy(**changes).by_domain_alone for changes in more)


# The postmaster without a domain


@pytest.mark.parametrize(
    ("changes", "said", "mailboxes"),
    [
        ({}, reply.RECIPIENT_OK, None),
        ({"has_recipients": True}, reply.RECIPIENT_OK, None),
        ({"always": frozenset()}, reply.NOT_SERVED, None),
        ({"always": frozenset(), "domains": DomainSet(["mx.example"])}, reply.RECIPIENT_OK, None),
        ({"always": frozenset(), "domains": DomainSet(["*"])}, reply.RECIPIENT_OK, None),
        ({"deny": HERE}, reply.CLIENT_DENIED, None),
        ({"asks_domains": True}, reply.RECIPIENT_OK, None),
        ({"asks_clients": True}, reply.RECIPIENT_OK, None),
    ],
)
def test_postmaster(changes: dict[str, Any], said: reply.Reply, mailboxes: Any) -> None:
    assert decided(policy(**changes), "Postmaster") == Decision(said, mailboxes)


def test_an_alias_of_the_postmaster(read: Read) -> None:
    found = decided(policy(aliases=read("postmaster: Ann, bob@x.example\n")), "postmaster")
    assert found.mailboxes == (Mailbox("Ann", "mx.example"), Mailbox("bob", "x.example"))


# Tags


@pytest.mark.parametrize(
    ("local", "kept"),
    [
        ("Ann", None),
        ("Ann+Tag", "Ann"),
        ("Ann+a+b", "Ann"),
        ("Ann+", "Ann"),
        ("+tag", None),
        ("+", None),
        ('"Ann+a b"', None),
        ('"Ann+tag"', "Ann"),  # the quotes say nothing
        ("\u00dc+x", "\u00dc"),
    ],
)
def test_tags(local: str, kept: str | None) -> None:
    found = decided(policy(plus_tags=True), f"{local}@x.example").mailboxes
    assert found == (None if kept is None else (Mailbox(kept, "x.example"),))
    assert decided(policy(), f"{local}@x.example").mailboxes is None


def test_an_alias_with_its_tag_comes_first(read: Read) -> None:
    own = policy(plus_tags=True, aliases=read("ann+x@x.example: bob\nann: carl\n"))
    for tag, target in (("+x", "bob"), ("+y", "carl"), ("", "carl")):
        assert decided(own, f"Ann{tag}@x.example").mailboxes == (Mailbox(target, "x.example"),)


# Targets of aliases


def of_query(
    read: Read, unknown: Unknown, text: str = "ann: bob, c@y.example, d@z.example\n"
) -> Any:
    """A policy whose domains are asked for, but x.example is known."""
    return policy(asks_domains=True, has_recipients=True, unknown=unknown, aliases=read(text))


@pytest.mark.parametrize("unknown", Unknown)
def test_a_target_whose_domain_is_not_served_gets_nothing(read: Read, unknown: Unknown) -> None:
    asked = Asked(z_example="yes")
    found = decided(of_query(read, unknown), ask=asked)
    assert found.reply == reply.RECIPIENT_OK
    assert found.mailboxes == (Mailbox("bob", "x.example"), Mailbox("d", "z.example"))
    assert [each.about for each in asked.questions] == ["y.example", "z.example"]


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        (Unknown.REJECT, Decision(reply.NO_SUCH_USER)),
        (Unknown.DISCARD, Decision(reply.RECIPIENT_OK, ())),
        (Unknown.DEFER, Decision(reply.USER_NOT_YET)),
    ],
)
def test_an_alias_whose_targets_are_all_gone_is_unknown(
    read: Read, unknown: Unknown, expected: Decision
) -> None:
    own = of_query(read, unknown, "ann: c@y.example, d@z.example\n@x.example: c@y.example\n")
    assert decided(own, ask=Asked()) == expected
    assert decided(own, "eve@x.example", Asked()) == expected


@pytest.mark.parametrize("unknown", Unknown)
def test_a_target_that_cannot_be_looked_up_defers_the_mail(read: Read, unknown: Unknown) -> None:
    asked = Asked(y_example=None, z_example="yes")
    assert decided(of_query(read, unknown), ask=asked) == Decision(reply.LOOKUP_TROUBLE)
    # Who does not answer is not asked for the next one, too.
    assert [each.about for each in asked.questions] == ["y.example"]


# Why


def test_every_rule_is_a_setting() -> None:
    spec: Any = ConfigObj(str(config.SPEC), interpolation=False, list_values=False, _inspec=True)
    for rule in Rule:
        section, key = rule.place
        assert key in spec[section]


def test_all_that_was_looked_at_is_told(read: Read) -> None:
    own = policy(
        asks_recipients=True,
        has_recipients=True,
        allow=HERE,
        unknown=Unknown.DEFER,
        aliases=read("# first\nbob: ann\n"),
    )
    assert why(own, ask=Asked()) == [
        Reason(Rule.ALLOW, "the client is allowed", "192.0.2.0/24"),
        Reason(Rule.DOMAINS, "x.example is served", "x.example"),
        Reason(Rule.RECIPIENT_QUERY, "ann@x.example is not known"),
        Reason(Rule.UNKNOWN, "defer"),
    ]
    assert why(own, "bob@x.example")[2:] == [
        Reason(Rule.ALIASES, "stored for ann@x.example", "bob", 2)
    ]


@pytest.mark.parametrize(
    ("changes", "text", "rules"),
    [
        ({"deny": HERE}, "ann@x.example", [Rule.DENY]),
        ({}, "ann@y.example", [Rule.DOMAINS]),
        ({"asks_domains": True}, "ann@y.example", [Rule.DOMAIN_QUERY]),
        ({}, "ann@x.example", [Rule.DOMAINS, Rule.RECIPIENTS]),
        ({"has_recipients": True}, "ann@x.example", [Rule.DOMAINS, Rule.RECIPIENTS, Rule.UNKNOWN]),
        ({}, "Postmaster", [Rule.ALWAYS, Rule.ALWAYS]),
        ({"asks_clients": True}, "abuse@x.example", [Rule.DOMAINS, Rule.DNSBL, Rule.ALWAYS]),
        ({"asks_clients": True}, "ann@x.example", [Rule.DOMAINS, Rule.DNSBL, Rule.RECIPIENTS]),
        ({"plus_tags": True}, "a+x@x.example", [Rule.DOMAINS, Rule.RECIPIENTS, Rule.PLUS_TAGS]),
    ],
)
def test_which_rules_are_told(changes: dict[str, Any], text: str, rules: list[Rule]) -> None:
    found = why(policy(**changes), text, Asked())
    assert [reason.rule for reason in found] == rules
    assert all(reason.says and reason.says.isprintable() for reason in found)


def test_nobody_can_say_is_told_from_no() -> None:
    own = all_asking()
    up = why(own, ask=Asked(x_example="yes"))
    down = why(own, ask=Asked(x_example=None))
    half = why(own, ask=Asked(x_example="yes", **{"ann@x.example": None, CLIENT: None}))
    assert len({*up} & {*down}) == 0
    assert [reason.rule for reason in half] == [reason.rule for reason in up[:3]]
    assert up[0] == half[0] and up[1] != half[1] and up[2] != half[2]
    assert up[-1].rule is Rule.UNKNOWN
