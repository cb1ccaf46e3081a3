"""What would become of mail for an address, and which line of which file decides that?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from gsmtpd import app, app_policy, cli
from gsmtpd.config import Config
from gsmtpd.config_environment import PREFIX
from gsmtpd.config_file import Place, line_of
from gsmtpd.policy.decision import Decision, Policy, Reason, explain
from gsmtpd.policy.files import PARSERS, PolicyFiles
from gsmtpd.policy.lookups import PATIENCE, Lookups
from gsmtpd.policy.names import ip_address
from gsmtpd.policy.questions import Kind, Question, Unanswered
from gsmtpd.smtp.address import Mailbox, parse_path
from gsmtpd.storage.base import StoreError
from gsmtpd.wording import printable

EX_NOT_STORED = 1


def check_address(options: argparse.Namespace) -> int:
    """gsmtpctl check-address: returns the exit code."""
    config = cli.load(options.config)
    if config.domains.query or config.recipients.query:
        cli.become_owner(config)  # of the file that is asked
    files = cli.make_policy(config)
    policy = files.current
    if options.client is None:
        policy = dataclasses.replace(policy, asks_clients=False)
    decision = _decide(config, policy, options.address, options.client or "")
    steps = [_Step(reason, _where(config, files, reason)) for reason in decision.reasons]
    mailboxes = _mailboxes(config, options.address, decision)
    if options.json:
        print(json.dumps(_as_json(options.address, decision, mailboxes, steps), indent=2))
    else:
        print("\n".join(_said(options.address, decision, mailboxes, steps)))
    return cli.EX_OK if _is_stored(decision) else EX_NOT_STORED


def address(text: str) -> Mailbox:
    """A recipient of the command line. Raises argparse.ArgumentTypeError."""
    bare = text.strip().removeprefix("<").removesuffix(">")
    mailbox = parse_path(f"<{bare}>")
    if mailbox is None:
        raise argparse.ArgumentTypeError(
            f"{ascii(text)} is no address; write one like user@example.com"
        )
    return mailbox


def client(text: str) -> str:
    """A client's IP address on the command line. Raises argparse.ArgumentTypeError."""
    found = ip_address(text.strip("[]"))
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{ascii(text)} is no IP address; write one like 192.0.2.1"
        )
    return str(found)


def _decide(config: Config, policy: Policy, recipient: Mailbox, client_ip: str) -> Decision:
    database = app.make_database_store(config)
    lookups = app_policy.make_lookups(config, database)
    lookups.start()
    ask = partial(lookups.answer, since=time.monotonic())
    hangs = False
    try:
        while True:
            try:
                return explain(policy, recipient, client_ip, ask)
            except Unanswered as unanswered:
                if unanswered.question.kind is not Kind.CLIENT:
                    _check_file(config)
                hangs |= not _wait_for(lookups, unanswered.question)
    finally:
        lookups.stop()
        if database is not None and not hangs:
            database.close()  # which would wait for whom we have given up


def _check_file(config: Config) -> None:
    """To ask SQLite would make the mail file, and here nothing is made. Raises StoreError."""
    path = config.store.sqlite.path
    if config.store.backend == "sqlite" and not os.path.exists(path):
        raise StoreError(f"{path}: no mail file yet; start gsmtpd, it makes one")


def _wait_for(lookups: Lookups, question: Question) -> bool:
    """Have it answered; False if that had to be given up."""
    answered = threading.Event()
    lookups.look_up(question, answered.set)
    if answered.wait(PATIENCE):
        return True
    lookups.give_up(question)
    return False


# ---- what is said ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Step:
    reason: Reason
    where: str

    def __str__(self) -> str:
        reason = self.reason
        item = f" {reason.item}" if reason.item else ""
        return printable(f"{reason.says}: {reason.rule.value}{item} ({self.where})")


def _where(config: Config, files: PolicyFiles, reason: Reason) -> str:
    """The file and the line that decided a step, or the variable."""
    path, line = files.source(reason)
    if path:
        return f"{path}, line {line}"
    section, key = reason.rule.place
    variable = f"{PREFIX}{section}_{key}".upper()
    if variable in os.environ:
        return f"the variable {variable}"
    parse = PARSERS.get(reason.rule, str)
    line = line_of(config.path, Place((section,), key), lambda text: _is(text, parse, reason.item))
    return f"{config.path}, line {line}" if line else "the default"


def _is(text: str, parse: Any, item: str) -> bool:
    try:
        return bool(parse(text) == item)
    except ValueError:
        return False


def _is_stored(decision: Decision) -> bool:
    return decision.reply.positive and decision.mailboxes != ()


def _outcome(decision: Decision) -> str:
    if decision.reply.positive:
        return "accepted" if _is_stored(decision) else "accepted and discarded"
    return "deferred" if decision.reply.code < 500 else "refused"


def _mailboxes(config: Config, recipient: Mailbox, decision: Decision) -> list[str]:
    """What the rows will have in the column `to`."""
    if not _is_stored(decision):
        return []
    domain, own = config.domains.primary_domain, config.server.host_name
    found = decision.mailboxes or (recipient,)
    return [str(each._replace(domain=domain or each.domain or own)) for each in found]


def _said(
    recipient: Mailbox, decision: Decision, mailboxes: list[str], steps: list[_Step]
) -> Iterator[str]:
    yield f"{printable(str(recipient))}: {_outcome(decision)}"
    yield f"  reply:      {decision.reply}"
    for mailbox in mailboxes:
        yield f"  stored for: {printable(mailbox)}"
    for step in steps:
        yield f"  because:    {step}"


def _as_json(
    recipient: Mailbox, decision: Decision, mailboxes: list[str], steps: list[_Step]
) -> dict[str, Any]:
    return {
        "address": str(recipient),
        "outcome": _outcome(decision),
        "reply": str(decision.reply),
        "mailboxes": mailboxes,
        "reasons": [
            {
                "says": step.reason.says,
                "rule": step.reason.rule.value,
                "item": step.reason.item,
                "where": step.where,
            }
            for step in steps
        ],
    }


def add(verbs: Any) -> None:
    """Add it to the commands."""
    check = verbs.add_parser("check-address", help="say what would become of mail for an address")
    check.add_argument("--client", metavar="IP", type=client,
                       help="as if it came from that IP address")  # fmt: skip
    check.add_argument("--json", action="store_true", help="as JSON, for programs")
    check.add_argument("address", metavar="ADDRESS", type=address,
                       help="of a recipient")  # fmt: skip
    check.set_defaults(run=check_address)
