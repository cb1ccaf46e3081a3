"""May this client mail this recipient, and into which mailboxes does that go? Decided here alone.

`Policy` is what the lists say and never changes; what they cannot say is asked for with `Ask`. So
the same recipient, lists and answers always give the same decision, for a client as for gsmtpctl.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from gsmtpd.policy.addresses import AddressSet
from gsmtpd.policy.aliases import Aliases, Found
from gsmtpd.policy.domains import DomainSet
from gsmtpd.policy.names import a_labels
from gsmtpd.policy.networks import NetworkSet
from gsmtpd.policy.questions import Ask, Kind, Question
from gsmtpd.smtp import reply
from gsmtpd.smtp.address import Mailbox
from gsmtpd.smtp.reply import Reply


class Unknown(Enum):
    """What becomes of mail for an address of ours that nobody has."""

    REJECT = "reject"
    DISCARD = "discard"
    DEFER = "defer"


class Rule(Enum):
    """What can decide, as the configuration names it."""

    ALLOW = "[clients] allow"
    DENY = "[clients] deny"
    DNSBL = "[clients] dnsbl"
    DOMAINS = "[domains] accept"
    DOMAIN_QUERY = "[domains] query"
    ALIASES = "[recipients] aliases"
    ALWAYS = "[recipients] always_accept"
    RECIPIENTS = "[recipients] accept"
    RECIPIENT_QUERY = "[recipients] query"
    UNKNOWN = "[recipients] unknown"
    PLUS_TAGS = "[recipients] plus_tags"

    @property
    def place(self) -> tuple[str, str]:
        """The section and the key."""
        section, key = self.value.split()
        return section[1:-1], key


class Reason(NamedTuple):
    """A step on the way to a decision. item: of the rule's list; "" where it says no, or has none.

    line: in the rule's file, where that is known already.
    """

    rule: Rule
    says: str
    item: str = ""
    line: int = 0


class Decision(NamedTuple):
    """The reply to RCPT. mailboxes: those that take the mail, if not the recipient's own alone.

    () for mailboxes: the mail is thrown away. reasons: all of them from `explain` only.
    """

    reply: Reply
    mailboxes: tuple[Mailbox, ...] | None = None
    reasons: tuple[Reason, ...] = ()


_TAKEN = Decision(reply.RECIPIENT_OK)
_UNKNOWN = {
    Unknown.REJECT: Decision(reply.NO_SUCH_USER),
    Unknown.DISCARD: Decision(reply.RECIPIENT_OK, ()),
    Unknown.DEFER: Decision(reply.USER_NOT_YET),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may receive, from whom. own_domain: where a domainless postmaster is.

    asks_domains, asks_recipients, asks_clients: whether what the lists do not know is asked for.
    has_recipients: whether `recipients` counts, though it may be empty. always: local parts in
    lower case.
    """

    domains: DomainSet
    own_domain: str = "localhost"
    asks_domains: bool = False
    recipients: AddressSet = field(default_factory=lambda: AddressSet(()))
    has_recipients: bool = False
    asks_recipients: bool = False
    unknown: Unknown = Unknown.REJECT
    plus_tags: bool = False
    aliases: Aliases | None = None
    always: frozenset[str] = frozenset({"postmaster", "abuse"})
    allow: NetworkSet = field(default_factory=lambda: NetworkSet(()))
    deny: NetworkSet = field(default_factory=lambda: NetworkSet(()))
    asks_clients: bool = False
    by_domain_alone: bool = field(init=False)

    def __post_init__(self) -> None:
        more = self.plus_tags, self.aliases, self.deny, self.asks_clients
        object.__setattr__(self, "by_domain_alone", self.knows_all and not any(more))

    @property
    def knows_all(self) -> bool:
        """Whether every address of a served domain is known."""
        return not self.has_recipients and not self.asks_recipients

    def denies(self, client_ip: str) -> str:
        """The network for which a client is sent away as it connects, "" if it is not."""
        if not self.deny or self.allow.match(client_ip):
            return ""
        return self.deny.match(client_ip)

    def client_question(self, client_ip: str) -> Question | None:
        """What will be asked of a client, so that it can be asked early."""
        if not self.asks_clients or self.allow.match(client_ip):
            return None
        return Question(Kind.CLIENT, client_ip)


def decide(policy: Policy, recipient: Mailbox, client_ip: str, ask: Ask) -> Decision:
    """What RCPT for `recipient` is answered with. Raises Unanswered, then ask and decide again."""
    domain = recipient.domain
    if policy.by_domain_alone and domain.isascii() and policy.domains.match(domain):
        return _TAKEN
    return _Case(policy, recipient, client_ip, ask, None).decide()


def explain(policy: Policy, recipient: Mailbox, client_ip: str, ask: Ask) -> Decision:
    """As `decide`, with every reason. Raises Unanswered."""
    reasons: list[Reason] = []
    decision = _Case(policy, recipient, client_ip, ask, reasons).decide()
    return decision._replace(reasons=tuple(reasons))


class _Case:
    """One recipient, while it is decided. reasons: where to put them; None: they are not wanted."""

    __slots__ = (
        "_always", "_ask", "_base", "_client_ip", "_domain", "_is_bare", "_local", "_policy",
        "_reasons", "_recipient",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        recipient: Mailbox,
        client_ip: str,
        ask: Ask,
        reasons: list[Reason] | None,
    ) -> None:
        self._policy = policy
        self._client_ip = client_ip
        self._ask = ask
        self._recipient = recipient
        self._is_bare = not recipient.domain  # <Postmaster>
        self._domain = a_labels(recipient.domain or policy.own_domain)
        self._local = _folded(recipient.local)
        self._base = _without_tag(self._local) if policy.plus_tags else self._local
        self._always = self._base in policy.always
        self._reasons = reasons

    def decide(self) -> Decision:
        return self._client() or self._domain_served() or self._listed() or self._mailboxes()

    def _because(
        self, rule: Rule, says: str, item: str = "", line: int = 0, about: object = ""
    ) -> None:
        if self._reasons is not None:
            self._reasons.append(Reason(rule, f"{about} {says}".lstrip(), item, line))

    # From whom

    def _client(self) -> Decision | None:
        policy = self._policy
        if allowed := policy.allow.match(self._client_ip):
            self._because(Rule.ALLOW, "the client is allowed", allowed)
        elif denied := policy.deny.match(self._client_ip):
            self._because(Rule.DENY, "the client is denied", denied)
            return Decision(reply.CLIENT_DENIED)
        return None

    def _listed(self) -> Decision | None:
        question = self._policy.client_question(self._client_ip)
        if question is None:
            return None
        if self._always:
            says = "may be written to from blocklisted addresses"
            self._because(Rule.DNSBL, says, about=self._base)
            return None
        listed = self._ask(question)
        if listed:
            self._because(Rule.DNSBL, f"the client is listed: {listed}")
            return Decision(reply.client_listed(self._client_ip, listed))
        self._because(
            Rule.DNSBL, "nobody answers" if listed is None else "no list names the client"
        )
        return None

    # For which domain

    def _domain_served(self) -> Decision | None:
        if self._is_bare and self._always:
            self._because(Rule.ALWAYS, "every server takes mail for its postmaster", "postmaster")
            return None
        served = self._is_served(self._domain)
        if served:
            return None
        return Decision(reply.LOOKUP_TROUBLE if served is None else reply.NOT_SERVED)

    def _is_served(self, domain: str) -> bool | None:
        """None where nobody can say now."""
        policy = self._policy
        if pattern := policy.domains.match(domain):
            self._because(Rule.DOMAINS, "is served", pattern, about=domain)
            return True
        if policy.asks_domains and domain.isascii():  # else it is no name
            question = Question(Kind.DOMAIN, domain.lower())  # [IPv6:...] as well
            return self._is_yes(question, Rule.DOMAIN_QUERY, "is served", "is not served")
        self._because(Rule.DOMAINS, "is not served", about=domain)
        return False

    def _is_yes(self, question: Question, rule: Rule, yes: str, no: str) -> bool | None:
        answer = self._ask(question)
        if answer is None:
            self._because(rule, "cannot be looked up now", about=question.about)
            return None
        self._because(rule, yes if answer else no, about=question.about)
        return bool(answer)

    # Into which mailboxes

    def _mailboxes(self) -> Decision:
        policy = self._policy
        if alias := self._alias():
            return self._to_targets(alias)
        if self._always:
            self._because(Rule.ALWAYS, "taken, whatever else is known", self._base)
            return self._take()
        known = self._is_known()
        if known is None:
            return Decision(reply.LOOKUP_TROUBLE)
        if known and not policy.knows_all:
            return self._take()
        if catch_all := policy.aliases and policy.aliases.catch_all(self._domain):
            return self._to_targets(catch_all)
        return self._take() if known else self._unknown()

    def _alias(self) -> Found | None:
        aliases = self._policy.aliases
        if not aliases:
            return None
        found = aliases.exact(self._local, self._domain)
        if found is None and self._base != self._local:
            found = aliases.exact(self._base, self._domain)
        return found

    def _is_known(self) -> bool | None:
        """None where nobody can say now."""
        policy = self._policy
        if policy.knows_all:
            self._because(Rule.RECIPIENTS, "every address of a served domain is known")
            return True
        if item := policy.recipients.match(self._base, self._domain):
            self._because(Rule.RECIPIENTS, "the address is known", item)
            return True
        address = f"{self._base}@{self._domain}"
        if policy.asks_recipients:
            question = Question(Kind.RECIPIENT, address.lower())
            return self._is_yes(question, Rule.RECIPIENT_QUERY, "is known", "is not known")
        self._because(Rule.RECIPIENTS, "is not known", about=address)
        return False

    def _take(self) -> Decision:
        own = self._recipient
        if self._base == self._local and own.domain.isascii():
            return _TAKEN
        # One mailbox for all spellings of its domain.
        own = own if own.domain.isascii() else own._replace(domain=self._domain)
        if self._base != self._local:
            self._because(Rule.PLUS_TAGS, "the tag is taken off")
            own = own._replace(local=_without_tag(own.local))
        return Decision(reply.RECIPIENT_OK, (own,))

    def _unknown(self) -> Decision:
        unknown = self._policy.unknown
        self._because(Rule.UNKNOWN, unknown.value)
        return _UNKNOWN[unknown]

    def _to_targets(self, alias: Found) -> Decision:
        if self._reasons is not None:
            targets = ", ".join(map(str, alias.targets))
            self._because(Rule.ALIASES, f"stored for {targets}", alias.left, alias.line)
        ours: list[Mailbox] = []
        for each in alias.targets:
            served = self._domain == each.domain or self._is_served(each.domain)
            if served is None:
                return Decision(reply.LOOKUP_TROUBLE)
            if served:
                ours.append(each)
        # Only a query can leave none: a file with a target that no list serves is refused.
        return Decision(reply.RECIPIENT_OK, tuple(ours)) if ours else self._unknown()


def _folded(local: str) -> str:
    """The local part in lower case; but a character that looks like an ASCII one is not that."""
    lower = local.lower()
    return local if lower.isascii() and not local.isascii() else lower


def _without_tag(local: str) -> str:
    """The local part without its tag (RFC 5233 section 1); a quoted one has none."""
    if local[:1] == '"':
        return local
    user, _, _ = local.partition("+")
    return user or local
