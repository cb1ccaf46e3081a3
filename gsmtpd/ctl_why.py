"""What became of mail from or to an address, as gsmtpctl says it?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from gsmtpd import app, cli
from gsmtpd.config import Config
from gsmtpd.control import ControlError, ask
from gsmtpd.ctl_mail import printable
from gsmtpd.policy.names import ip_address
from gsmtpd.storage.addressed import is_mailable
from gsmtpd.storage.base import StoreError
from gsmtpd.storage.reader import StoredMail

EX_NOTHING = 1  # nothing is known, as grep says it
_MAX_ADDRESS = 512  # octets
_ASK_WITHIN = 5.0  # seconds
_MOST = 1000  # events
_STORED = ("accepted", "stored_unheard")  # results of mail that has rows
_WORDS = {"stored_unheard": "stored"}

Event = dict[str, Any]


def why(options: argparse.Namespace) -> int:
    """gsmtpctl why: returns the exit code."""
    about: str = options.address
    config = cli.load(options.config)
    remembered = _remembered(config, about)
    mails, code = ([], cli.EX_OK) if ip_address(about) else _stored(config, about, options.limit)
    events = _merged(remembered["events"], mails)[-options.limit :]
    if options.json:
        print(json.dumps(events, indent=2))
    else:
        for event in events:
            print(printable(line_of(event)))
    if remembered["lost"]:
        _note(f"{remembered['lost']} refusals came too fast to be remembered")
    if events or code:
        return code
    _note(f"nothing is known of {printable(about)}{_looked_at(remembered, config, about)}")
    return EX_NOTHING


def address(text: str) -> str:
    """What is asked about on the command line. Raises argparse.ArgumentTypeError."""
    bare = text.strip()
    if len(bare) > 2 and bare.startswith("<") and bare.endswith(">"):
        bare = bare[1:-1]
    try:
        size = len(bare.encode())
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UTF-8; write it in UTF-8") from None
    if not 0 < size <= _MAX_ADDRESS:
        raise argparse.ArgumentTypeError(
            "that is no address; write one such as bob@example.com or 192.0.2.1"
        )
    return _ip(bare) or bare


def _ip(text: str) -> str:
    """An IP address as the log has it, "" for other text."""
    address = ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address or "")


def limit(text: str) -> int:
    """How many events, of the command line. Raises argparse.ArgumentTypeError."""
    if text.isascii() and text.isdigit() and 0 < int(text[:7]) <= _MOST:
        return int(text[:7])
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST}")


def _note(text: str) -> None:
    print(f"gsmtpctl: {text}", file=sys.stderr)


# ---- what is known -----------------------------------------------------------------------------


def _remembered(config: Config, about: str) -> dict[str, Any]:
    """What the running server remembers; says so where there is none."""
    path = config.server.control_socket
    try:
        if path:
            return ask(path, "why", _ASK_WITHIN, about)
        trouble = "[server] control_socket is empty, so no running gsmtpd can be asked"
    except ControlError as error:
        trouble = str(error)
    _note(f"{trouble}; only a running gsmtpd knows what it refused, so here is stored mail alone")
    return {"events": [], "since": "", "lost": 0}


def _stored(config: Config, about: str, limit: int) -> tuple[list[StoredMail], int]:
    """The newest mails to an address, and the exit code: they may not be there to be read."""
    if config.store.backend == "null":
        return [], cli.EX_OK
    try:
        with closing(app.make_reader(config)) as reader:
            return reader.for_address(about, limit), cli.EX_OK
    except StoreError as error:
        _note(f"stored mail cannot be read: {error}")
        return [], cli.EX_UNAVAILABLE


def _looked_at(remembered: dict[str, Any], config: Config, about: str) -> str:
    """Where nothing was found, and since when it would have been noted."""
    looked = []
    if remembered["since"]:
        looked.append(f"nothing was refused or thrown away since {_when(remembered['since'])} UTC")
    if config.store.backend != "null" and not ip_address(about):
        looked.append("no mail to it is stored")
    said = ": " + ", and ".join(looked) if looked else ""
    if ip_address(about) or about == "<>":
        return said
    quoted = shlex.quote(printable(about))
    said += f"; for mail from it see: gsmtpctl search --from {quoted}"
    if is_mailable(about):
        said += f"; for what would become of mail to it: gsmtpctl check-address {quoted}"
    return said


def _merged(events: Sequence[Event], mails: Sequence[StoredMail]) -> list[Event]:
    """All of them, the oldest first. What was stored is there once."""
    unheard = {event["id"] for event in events if event["result"] == "stored_unheard"}
    rows = [row_event(mail, mail.hash in unheard) for mail in mails]
    ids = {mail.hash for mail in mails}
    others = [e for e in events if not (e["result"] in _STORED and e.get("id") in ids)]
    return sorted([*rows, *others], key=lambda event: str(event["time"]))


def row_event(mail: StoredMail, unheard: bool = False) -> Event:
    """A row as an event. unheard: whether its client did not hear that it is stored."""
    return {
        "time": f"{mail.date.replace(' ', 'T')}Z" if mail.date else "",  # of an old table
        "result": "stored_unheard" if unheard else "stored",
        "mail_id": mail.mail_id,
        "id": mail.hash,
        "client": mail.ip_addr,
        "from": f"<{mail.return_path}>",
        "to": mail.recipient,
        "mailbox": mail.to,
        "subject": mail.subject,
    }


# ---- as text -----------------------------------------------------------------------------------


def line_of(event: Event) -> str:
    """An event for people."""
    result = event["result"]
    return f"{_when(event['time'])}  {_WORDS.get(result, result):9}  {_said(event)}"


def _when(time: str) -> str:
    return time.replace("T", " ").removesuffix("Z")


def _said(event: Event) -> str:
    parts = []
    if "mail_id" in event:
        parts.append(f"mail {event['mail_id']},")
    if "of" in event:
        parts.append(f"of {event['of']},")
    if "from" in event:
        parts.append(f"from {event['from']}")
    if "to" in event:
        parts.append(f"to {_recipients(event)}")
    parts.append(f"by {event['client']}")
    said = " ".join(parts)
    mailboxes = event.get("mailboxes") or event.get("mailbox", "")
    if mailboxes and mailboxes != event.get("to"):
        said += f", kept for {mailboxes}"
    if "subject" in event:
        said += f', "{event["subject"]}"'
    if event["result"] == "stored_unheard":
        said += "; its client did not hear so, and may send it again"
    if event["result"] in ("refused", "closed"):
        said += f": {event['reply'] if 'reply' in event else event['reason']}"
    return said


def _recipients(event: Event) -> str:
    """The first of them, and how many there are."""
    named = str(event["to"])
    more = event.get("recipients", 1) - named.count(",") - 1
    return f"{named} and {more} more" if more > 0 else named


def add(verbs: Any) -> None:
    """Add it to the commands."""
    verb = verbs.add_parser("why", help="say what became of mail from or to an address")
    verb.add_argument("-n", metavar="N", dest="limit", type=limit, default=20,
                     help="how many events at most (default: %(default)s)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="as JSON, for programs")
    verb.add_argument("address", metavar="ADDRESS", type=address,
                     help="of a recipient or a sender, or the IP address of a client")  # fmt: skip
    verb.set_defaults(run=why)
