"""What do the lists of the configuration come to, with those that stand in files of their own?

The files are read at the start, where a mistake is an error, and again when they have changed,
where it is logged and what was known stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gsmtpd.complaints import Complaints
from gsmtpd.policy import names
from gsmtpd.policy.addresses import AddressSet
from gsmtpd.policy.aliases import Aliases, read_aliases
from gsmtpd.policy.decision import Policy, Reason, Rule, Unknown
from gsmtpd.policy.domains import DomainSet
from gsmtpd.policy.lists import ListError, Watch, line_of, read_list
from gsmtpd.policy.networks import NetworkSet
from gsmtpd.wording import printable

LOOK = 1.0  # seconds between two looks whether a file has changed

PARSERS: dict[Rule, Callable[[str], str]] = {
    Rule.DOMAINS: names.domain_pattern,
    Rule.RECIPIENTS: names.address_item,
    Rule.ALLOW: names.network,
    Rule.DENY: names.network,
}


@dataclass(frozen=True, slots=True)
class Lists:
    """What the configuration says of who may receive, from whom.

    domains, recipients, allow, deny: items as gsmtpd.policy.names has them, and "@/path" of a file
    of such. aliases: the path of a file, "" for none. most_copies: that one address may come to.
    For the rest see Policy.
    """

    domains: tuple[str, ...]
    own_domain: str = "localhost"
    asks_domains: bool = False
    recipients: tuple[str, ...] = ()
    asks_recipients: bool = False
    unknown: Unknown = Unknown.REJECT
    plus_tags: bool = False
    aliases: str = ""
    most_copies: int = 1000
    always: tuple[str, ...] = ("postmaster", "abuse")
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    asks_clients: bool = False

    def of(self, rule: Rule) -> tuple[str, ...]:
        """The items of one list."""
        return {
            Rule.DOMAINS: self.domains,
            Rule.RECIPIENTS: self.recipients,
            Rule.ALLOW: self.allow,
            Rule.DENY: self.deny,
        }.get(rule, ())

    @property
    def paths(self) -> list[str]:
        """The files."""
        found = [path for rule in PARSERS for path in _files(self.of(rule))]
        return [*dict.fromkeys([*found, self.aliases] if self.aliases else found)]


def _files(items: Sequence[str]) -> list[str]:
    return [item[1:] for item in items if item.startswith("@/")]


class PolicyFiles:
    """Keeps a Policy that is as `lists` and their files say.

    current: the policy by now; never changed, but replaced. Raises ListError with all problems.
    """

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._watch = Watch(lists.paths)
        self._wrong: ListError | None = None
        self.current = self._make()

    @property
    def paths(self) -> list[str]:
        """The files."""
        return self._lists.paths

    def refresh(self) -> bool:
        """Read the files again if one has changed. Raises ListError; then `current` stays.

        What is wrong is said at each call until it is mended. False where a file is other than it
        was read, and has to be the same at another look.
        """
        if self._watch.changed():
            watch = Watch(self._lists.paths)
            try:
                self.current = self._make()
                self._wrong = None
            except ListError as error:
                self._wrong = error
            self._watch = watch
        if self._wrong is not None:
            raise self._wrong
        if missing := self._watch.missing():
            raise ListError([f"{printable(path)}: the file is gone" for path in missing])
        return self._watch.is_unchanged

    def _make(self) -> Policy:
        lists = self._lists
        problems: list[str] = []
        found = {rule: self._items(rule, problems) for rule in PARSERS}
        aliases: Aliases | None = None
        if lists.aliases:
            try:
                aliases = read_aliases(lists.aliases, lists.most_copies)
            except ListError as error:
                problems += error.problems
        domains = DomainSet(found[Rule.DOMAINS])
        if aliases and not problems and not lists.asks_domains:
            problems += aliases.outside(lambda domain: bool(domains.match(domain)))
        if problems:
            raise ListError(problems)
        return Policy(
            domains=domains,
            own_domain=lists.own_domain,
            asks_domains=lists.asks_domains,
            recipients=AddressSet(found[Rule.RECIPIENTS]),
            has_recipients=bool(lists.recipients),
            asks_recipients=lists.asks_recipients,
            unknown=lists.unknown,
            plus_tags=lists.plus_tags,
            aliases=aliases,
            always=frozenset(lists.always),
            allow=NetworkSet(found[Rule.ALLOW]),
            deny=NetworkSet(found[Rule.DENY]),
            asks_clients=lists.asks_clients,
        )

    def _items(self, rule: Rule, problems: list[str]) -> list[str]:
        made: list[str] = []
        for item in self._lists.of(rule):
            if not item.startswith("@/"):
                made.append(item)
                continue
            try:
                made += read_list(item[1:], PARSERS[rule])
            except ListError as error:
                problems += error.problems
        return made

    def source(self, reason: Reason) -> tuple[str, int]:
        """The file and the line that an item of a list stands in; "" for the configuration's own.

        Raises ListError.
        """
        if reason.rule is Rule.ALIASES:
            return self._lists.aliases, reason.line
        items = self._lists.of(reason.rule)
        if reason.item and reason.item not in items:
            for path in _files(items):
                if line := line_of(path, PARSERS[reason.rule], reason.item):
                    return path, line
        return "", 0


class PolicyUpkeep:
    """A chore: has `files` taken over when they change."""

    name = "lists"

    def __init__(self, files: PolicyFiles) -> None:
        self._files = files
        self._complaints = Complaints(self.name)

    def step(self) -> float:
        """Look at the files; seconds until the next look."""
        try:
            if self._files.refresh():
                self._complaints.over()
        except ListError as error:
            wrong = "; ".join(error.problems)
            self._complaints.say(f"{wrong}; what was read before stays in force")
        return LOOK

    def close(self) -> None:
        """Nothing is held."""
