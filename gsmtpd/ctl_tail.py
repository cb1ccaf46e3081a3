"""What comes in, as it comes? What is stored, and for gsmtpctl tail -f what is refused as well."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from gsmtpd import cli, ctl_mail
from gsmtpd.app_store import make_finder
from gsmtpd.config import Config
from gsmtpd.control import ControlError, ask
from gsmtpd.ctl_arguments import count, domain, mailbox
from gsmtpd.ctl_mail import printable
from gsmtpd.ctl_why import line_of, row_event
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.finder import Finder
from gsmtpd.storage.tail import Tail

# As docs/logs.md has them; spooled is accepted, deferred is refused by 4xx.
RESULTS = (
    "accepted", "spooled", "refused", "deferred", "discarded", "duplicate", "closed",
    "stored_unheard",
)  # fmt: skip
_PAUSE = 0.5  # seconds between two looks
_AGAIN = 2.0  # seconds until who could not be asked is asked again
_ASK_WITHIN = 5.0
_UNKNOWN = "unknown command"  # says a server that is older
_FOR_EVENTS = ("addresses", "domains", "clients", "results", "json")

Event = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def add(verbs: Any) -> None:
    """Add it to the commands."""
    verb = verbs.add_parser("tail", help="list mails as they come in, until interrupted")
    verb.add_argument("-n", metavar="N", dest="limit", type=count, default=5,
                      help="how many earlier ones first (default: %(default)s)")  # fmt: skip
    verb.add_argument("-f", dest="follow", action="store_true",
                      help="with what is refused, discarded and so on; any option below does"
                      " that, too")  # fmt: skip
    verb.add_argument("--address", metavar="ADDRESS", dest="addresses", action="append",
                      type=mailbox,
                      help="only from or to that address; may come again")  # fmt: skip
    verb.add_argument("--domain", metavar="NAME", dest="domains", action="append", type=domain,
                      help="only for that domain; may come again")  # fmt: skip
    verb.add_argument("--client", metavar="IP", dest="clients", action="append", type=_network,
                      help="only by that client or network; may come again")  # fmt: skip
    verb.add_argument("--result", metavar="RESULT", dest="results", action="append",
                      choices=RESULTS, help=f"only with that result: {', '.join(RESULTS)};"
                      " may come again")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="a line of JSON for each, for programs")
    verb.set_defaults(run=tail)


def _network(text: str) -> Network:
    """A client of the command line, or several. Raises argparse.ArgumentTypeError."""
    with suppress(ValueError):
        return ipaddress.ip_network(text, strict=False)
    raise argparse.ArgumentTypeError(f"{text!r} is no IP address, nor a network as 192.0.2.0/24")


def tail(options: argparse.Namespace) -> int:
    """gsmtpctl tail: ends by KeyboardInterrupt, or where there is nobody to ask."""
    if not (options.follow or any(getattr(options, name) for name in _FOR_EVENTS)):
        return ctl_mail.tail(options)
    config = cli.load(options.config)
    filter_ = Filter(
        [address.lower() for address in options.addresses or ()],
        [domain.lower() for domain in options.domains or ()],
        options.clients or (),
        options.results or (),
    )
    stored, events = _Stored(config, options.limit), _Events(config.server.control_socket)
    sources = [stored] if filter_.wants_stored else []
    others = [events] if filter_.wants_events else []
    with closing(stored):
        while True:
            found = [event for source in (*sources, *others) for event in source.look()]
            for event in sorted(found, key=lambda each: str(each["time"])):
                if filter_.has(event):
                    print(json.dumps(event) if options.json else printable(line_of(event)))
            sys.stdout.flush()
            if all(source.is_over for source in (*sources, *others)):
                return cli.EX_UNAVAILABLE
            if not any(source.has_more for source in (*sources, *others)):
                time.sleep(_PAUSE)


class Filter(NamedTuple):
    """Which events are wanted: those that match one of each that is not empty.

    addresses, domains: in lower case. results: of RESULTS.
    """

    addresses: Sequence[str] = ()
    domains: Sequence[str] = ()
    clients: Sequence[Network] = ()
    results: Sequence[str] = ()

    @property
    def wants_stored(self) -> bool:
        """Whether mail of the store can be meant."""
        return not self.results or "accepted" in self.results

    @property
    def wants_events(self) -> bool:
        """Whether anything else can be meant."""
        return not self.results or bool({*self.results} - {"accepted"})

    def has(self, event: Event) -> bool:
        """Whether it is wanted."""
        recipients = [*_recipients(event)]
        named = [*recipients, str(event.get("from", "")).removeprefix("<").removesuffix(">")]
        return (
            (not self.addresses or any(name.lower() in self.addresses for name in named))
            and (not self.domains or any(_domain(name) in self.domains for name in recipients))
            and (not self.clients or any(_is_in(event, network) for network in self.clients))
            and (not self.results or bool({*_results(event)} & {*self.results}))
        )


def _recipients(event: Event) -> Iterator[str]:
    """Those that are named, and the mailboxes behind them; of an event the first five."""
    for name in ("to", "mailbox", "mailboxes"):
        yield from str(event.get(name, "")).split(",")


def _domain(address: str) -> str:
    return address.rpartition("@")[2].removesuffix(">").lower() if "@" in address else ""


def _is_in(event: Event, network: Network) -> bool:
    try:
        client = ipaddress.ip_address(str(event.get("client", "")))
    except ValueError:
        return False
    return client in network


def _results(event: Event) -> Iterator[str]:
    yield event["result"]
    if event["result"] == "refused" and str(event.get("reply", "")).startswith("4"):
        yield "deferred"


# ---- where events come from --------------------------------------------------------------------


class _Source:
    """Somebody who is asked. is_over: it will never know more. has_more: at once."""

    def __init__(self) -> None:
        self.is_over = False
        self.has_more = False
        self._again = 0.0  # monotonic seconds
        self._said = ""

    def look(self) -> list[Event]:
        """What is new. Where that cannot be known it is said once, and tried again."""
        self.has_more = False
        if self.is_over or time.monotonic() < self._again:
            return []
        try:
            found = self._look()
        except (StoreError, ControlError) as error:
            self._again = time.monotonic() + _AGAIN
            self._failed(str(error))
            return []
        self._said = ""
        return found

    def _look(self) -> list[Event]:
        raise NotImplementedError

    def _failed(self, why: str) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        if not self._said:
            print(f"gsmtpctl: {printable(text)}", file=sys.stderr)
        self._said = text


class _Stored(_Source):
    """Mail that is stored. limit: how many earlier ones come first."""

    def __init__(self, config: Config, limit: int) -> None:
        super().__init__()
        self._config = config
        self._limit = limit
        self._finder: Finder | None = None
        self._tail: Tail | None = None

    def _look(self) -> list[Event]:
        if self._finder is None:
            self._finder = make_finder(self._config)
            if self._tail is not None:
                self._finder.take_over(self._tail)
        if self._tail is None and self._limit:
            tail = self._finder.tail()
            found = tail.recent(self._limit)
        else:
            tail = self._tail or self._finder.tail()
            found = tail.look()
            self.has_more = bool(found)
        self._tail = tail
        return [row_event(mail) | {"result": "accepted"} for mail in found]

    def _failed(self, why: str) -> None:
        self.close()
        self.is_over = self._config.store.backend == "null"
        self._say(f"stored mail cannot be read, so only what is refused is shown: {why}")

    def close(self) -> None:
        """Close the connection; the next look makes another, and goes on."""
        finder, self._finder = self._finder, None
        if finder is not None:
            with suppress(StoreError):
                finder.close()


class _Events(_Source):
    """What was not simply stored, as the server that is asked at `path` remembers it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._position = ""

    def _look(self) -> list[Event]:
        if not self._path:
            raise ControlError(
                "[server] control_socket is empty, so no running gsmtpd can be asked"
            )
        answer = ask(self._path, "events", _ASK_WITHIN, self._position)
        self._position = answer["position"]
        self.has_more = bool(answer["events"])
        if answer["lost"]:
            print(f"gsmtpctl: {answer['lost']} more came too fast to be shown", file=sys.stderr)
        return [*filter(None, map(_shown, answer["events"]))]

    def _failed(self, why: str) -> None:
        self.is_over = not self._path or _UNKNOWN in why
        if _UNKNOWN in why:
            why = "the running gsmtpd is older and does not tell"
        self._say(f"what is refused is not known, so only stored mail is shown: {why}")


def _shown(event: Event) -> Event | None:
    """An event as it is shown; None where its rows are, which tell more."""
    if event["result"] != "accepted":
        return event
    return event | {"result": "spooled"} if event.get("spooled") else None
