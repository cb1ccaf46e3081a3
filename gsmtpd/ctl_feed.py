"""How is a message in a file received? A client in this process says it to a server beside it.

The server is the one that `gsmtpd --inetd` runs, so the message meets the same policy, limits and
store as any other; what a daemon does for stored mail later, it does for this one as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import smtplib
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from gsmtpd import app, cli
from gsmtpd.config import Config
from gsmtpd.ctl_check import address, client
from gsmtpd.ctl_import import ROOM, check_mail_file, header_fields, log_to_stderr, mailbox_in
from gsmtpd.ctl_mail import printable
from gsmtpd.logs import Logs
from gsmtpd.mailfiles import TOO_LARGE, Found, MailFileError, read_mail
from gsmtpd.message.trace import parse_front
from gsmtpd.metrics import Counters
from gsmtpd.policy.crowd import Crowd
from gsmtpd.policy.files import PolicyFiles
from gsmtpd.server.engine import Engine

# sysexits.h
EX_DATAERR = 65
EX_NOINPUT = 66
EX_TEMPFAIL = 75

_HELO = "feed"
_PATIENCE = 600.0  # seconds for a reply, RFC 5321 section 4.5.3.2.6


class Mail(NamedTuple):
    """A message to be sent. sender: "" for the null reverse-path. content: with CRLF line ends."""

    content: bytes
    sender: str
    recipients: tuple[str, ...]


class Reply(NamedTuple):
    """What the server said. text: all lines, joined by spaces."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {printable(self.text)}"


class RefusedError(Exception):
    """The server takes nothing of the message for anybody."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _Client(NamedTuple):
    """A client that has come: see gsmtpd.server.engine.Accepted."""

    socket: socket.socket
    address: tuple[str, int]

    def start(self) -> None:
        """Nothing has to be copied: it is a socket."""


def feed(options: argparse.Namespace) -> int:
    """gsmtpctl feed: returns the exit code."""
    config = cli.load(options.config)
    recipients = tuple(dict.fromkeys(map(str, options.recipients)))
    # Before we become the owner of the store, who may not be able to read it.
    mail = _mail(options.source, config.limits.max_size, options.sender, recipients)
    check_mail_file(config)
    cli.become_owner(config)
    policy = cli.make_policy(config)
    log = logging.getLogger("gsmtpd")
    log.addHandler(logging.NullHandler())
    _try_store(config)
    log.addHandler(log_to_stderr())  # the store says there why it refuses a message
    records: list[bytes] = []
    engine = _make_engine(config, policy, records)
    engine.start()
    try:
        replies = _received(engine, mail, options.client or "127.0.0.1")
    finally:
        engine.stop()  # from then on the records are whole
    return _say(replies, _events(records))


def sender(text: str) -> str:
    """A reverse-path of the command line, "" for the null one. Raises ArgumentTypeError."""
    return "" if text.strip() in ("", "<>") else str(address(text))


# ---- what is sent ------------------------------------------------------------------------------


def _mail(source: str, limit: int, said: str | None, recipients: tuple[str, ...]) -> Mail:
    """The message in a file. said: its sender by the command line, if any. Raises Stop."""
    found = _found(source, limit)
    assert found.octets is not None
    front = parse_front(found.octets)
    if front is not None:
        # An export: what gsmtpd has put in front did not come from the client.
        by = front.envelope.sender
        content = found.octets[front.size :]
    else:
        by = mailbox_in(header_fields(found.octets).get("return-path", found.sender))
        content = found.octets
    return Mail(content, said if said is not None else str(by or ""), recipients)


def _found(source: str, limit: int) -> Found:
    if os.path.isdir(source):
        wrong = f"{source}: a directory; name a file with one message, or - for stdin"
        raise cli.Stop(EX_NOINPUT, wrong)
    try:
        found = [*islice(read_mail(source, limit + ROOM), 2)]
    except MailFileError as error:
        raise cli.Stop(EX_NOINPUT, str(error)) from error
    if not found:
        raise cli.Stop(EX_DATAERR, f"{source}: empty; there is no message to feed")
    if len(found) > 1:
        wrong = f"{source}: several messages; feed takes one, gsmtpctl import takes them all"
        raise cli.Stop(EX_DATAERR, wrong)
    if found[0].octets is None:
        too_large = f"larger than max_size, {limit} bytes"
        problem = too_large if found[0].problem == TOO_LARGE else found[0].problem
        raise cli.Stop(EX_DATAERR, f"{found[0].name}: {problem}")
    return found[0]


# ---- the server --------------------------------------------------------------------------------


def _try_store(config: Config) -> None:
    """Whether mail can be stored: a client would only hear 451. Raises StoreError."""
    if config.store.backend != "null":
        store = app.make_store(config)
        try:
            store.prepare()
        finally:
            store.close()


def _make_engine(config: Config, policy: PolicyFiles, records: list[bytes]) -> Engine:
    """What serves one client. records: gets what became of its mail, as in MailLog.

    It speaks plain SMTP, whatever the listeners do; and nothing goes into the daemon's logs.
    """
    listener = replace(
        config.listeners[0],
        protocol="smtp",
        tls="off",
        proxy_from=(),
        xclient_from=(),
        chunking=True,
    )
    logs = Logs(os.devnull, "error", "logfmt")
    logs.remember(records.append)
    counters = Counters()
    crowd = Crowd(1)
    share = app.Share(counters, counters.take(1), crowd.seat(crowd.take()))
    plain = replace(config, listeners=(listener,))
    return app.make_engine(plain, [], policy, None, share, logs, first=False)


# ---- the client --------------------------------------------------------------------------------


def _received(engine: Engine, mail: Mail, client_ip: str) -> dict[str, Reply]:
    """What `engine` replies to a client with that IP address; see _said. Raises Stop."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(_PATIENCE)
        engine.serve(_Client(theirs, (client_ip, 0)))
        try:
            return _said(ours, mail)
        except smtplib.SMTPServerDisconnected as error:
            raise cli.Stop(EX_TEMPFAIL, f"the session has broken off: {error}") from error


def _said(connection: socket.socket, mail: Mail) -> dict[str, Reply]:
    """For each recipient the reply that decides. Raises smtplib.SMTPServerDisconnected."""
    smtp = smtplib.SMTP(local_hostname=_HELO)
    smtp.sock = connection
    replies: dict[str, Reply] = {}
    try:
        _positive(smtp.getreply())
        _positive(smtp.docmd("EHLO", _HELO))
        smtp.command_encoding = "utf-8"  # RFC 6531 section 3.1
        _positive(smtp.docmd("MAIL", _mail_argument(mail)))
        for recipient in mail.recipients:
            replies[recipient] = _reply(smtp.docmd("RCPT", f"TO:<{recipient}>"))
            if replies[recipient].code == 421:
                raise RefusedError(replies[recipient])
        if taken := [each for each, reply in replies.items() if reply.code < 400]:
            # Unlike DATA it changes no octet (RFC 3030 section 2).
            smtp.send(b"BDAT %d LAST\r\n" % len(mail.content) + mail.content)
            replies.update(dict.fromkeys(taken, _reply(smtp.getreply())))
    except RefusedError as error:
        refused = {each: reply for each, reply in replies.items() if reply.code >= 400}
        return dict.fromkeys(mail.recipients, error.reply) | refused
    with suppress(smtplib.SMTPServerDisconnected):  # some refusals end the session
        smtp.quit()
    return replies


def _mail_argument(mail: Mail) -> str:
    """What stands behind MAIL."""
    said = [f"FROM:<{mail.sender}>", f"SIZE={len(mail.content)}"]
    if not mail.content.isascii():
        said.append("BODY=8BITMIME")
    if not f"{mail.sender}{mail.recipients}".isascii():
        said.append("SMTPUTF8")
    return " ".join(said)


def _reply(said: tuple[int, bytes]) -> Reply:
    code, text = said
    return Reply(code, text.decode("utf-8", "replace").replace("\n", " "))


def _positive(said: tuple[int, bytes]) -> None:
    reply = _reply(said)
    if reply.code >= 400:
        raise RefusedError(reply)


# ---- what is said ------------------------------------------------------------------------------


def _events(records: Sequence[bytes]) -> Iterator[Mapping[str, object]]:
    """What became of the mail, where it was not simply stored; see MailLog."""
    return (json.loads(line) for piece in records for line in piece.splitlines())


def _say(replies: Mapping[str, Reply], events: Iterator[Mapping[str, object]]) -> int:
    """Print what became of the mail for each recipient; returns the exit code."""
    named = {str(event.get("result")): str(event.get("to")) for event in events}
    taken = {each: reply for each, reply in replies.items() if reply.code < 400}
    thrown = [each for each in taken if f",{each}," in f",{named.get('discarded', '')},"]
    if kept := [each for each in taken if each not in thrown]:
        how = "stored before as" if "duplicate" in named else "fed as"
        message_id = taken[kept[0]].text.rpartition(" ")[2]
        print(printable(f"{how} {message_id}: {', '.join(kept)}"))
    if thrown:
        print(printable(f"discarded: {', '.join(thrown)}"))
    for each, reply in replies.items():
        if reply.code >= 400:
            print(f"gsmtpctl: {printable(each)}: {reply}", file=sys.stderr)
    codes = [reply.code for reply in replies.values()]
    if max(codes) >= 500:
        return EX_DATAERR
    return EX_TEMPFAIL if max(codes) >= 400 else cli.EX_OK


def add(verbs: Any) -> None:
    """Add it to the commands."""
    verb = verbs.add_parser(
        "feed", help="have a message in a file received, as if a client sent it"
    )
    verb.add_argument("--to", metavar="ADDRESS", dest="recipients", action="append", required=True,
                      type=address, help="a recipient; may be said again")  # fmt: skip
    verb.add_argument("--from", metavar="ADDRESS", dest="sender", type=sender,
                      help="the sender, '' for none (default: its Return-Path)")  # fmt: skip
    verb.add_argument("--client", metavar="IP", type=client,
                      help="as if it came from that IP address (default: 127.0.0.1)")  # fmt: skip
    verb.add_argument("source", metavar="FILE", help="with one message; - is stdin")
    verb.set_defaults(run=feed)
