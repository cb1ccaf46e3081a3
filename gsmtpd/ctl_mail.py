"""What does gsmtpctl show of stored mail?"""

from __future__ import annotations

import argparse
import mimetypes
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count as count_from
from typing import Any, BinaryIO

from gsmtpd import app, cli
from gsmtpd.app_store import make_finder
from gsmtpd.ctl_arguments import count, number
from gsmtpd.mailfiles import create_file
from gsmtpd.message.body import Attachment, attachment, read_body
from gsmtpd.message.trace import parse_front
from gsmtpd.storage.reader import (
    MailReader,
    StoredAttachment,
    StoredMail,
    UnreadableError,
)

_TAIL_PAUSE = 0.5  # seconds between two looks for new mail


def printable(text: str, keep: str = "") -> str:
    """`text` with what a terminal would obey as "?"; mail is written by strangers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def add(verbs: Any) -> None:
    """Add those that show mail to the commands."""
    listing = verbs.add_parser("list", help="list the newest mails")
    listing.add_argument("-n", metavar="N", dest="limit", type=count, default=20,
                         help="how many (default: %(default)s)")  # fmt: skip
    listing.set_defaults(run=list_)

    show_ = verbs.add_parser("show", help="show one mail")
    show_.add_argument("id", metavar="ID", type=count, help="its number in the list")
    form = show_.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="its bytes as stored, and nothing else")
    form.add_argument("--headers", action="store_true", help="its header as the sender wrote it")
    form.add_argument("--attachment", metavar="N", type=number,
                      help="save attachment N, under its name in this directory")  # fmt: skip
    show_.add_argument("-o", metavar="FILE", dest="output",
                      help="where to save the attachment; - is stdout")  # fmt: skip
    show_.set_defaults(run=show)


# ---- many --------------------------------------------------------------------------------------


def list_(options: argparse.Namespace) -> int:
    """gsmtpctl list: returns the exit code."""
    with closing(app.make_reader(cli.load(options.config))) as reader:
        mails = reader.recent(options.limit)
    if not mails:
        print("no mail yet", file=sys.stderr)
        return cli.EX_OK
    print_head()
    for mail in mails:
        print_mail(mail)
    return cli.EX_OK


def tail(options: argparse.Namespace) -> int:
    """gsmtpctl tail: ends by KeyboardInterrupt."""
    follow = make_finder(cli.load(options.config)).tail()
    mails = follow.recent(options.limit)
    print_head()
    while True:
        for mail in mails:
            print_mail(mail)
        sys.stdout.flush()
        if not mails:
            time.sleep(_TAIL_PAUSE)
        mails = follow.look()


def print_head() -> None:
    """What stands above a list of mails."""
    print(f"{'ID':>6}  {'DATE (UTC)':19}  {'SIZE':>8}  {'FROM':28}  {'TO':28}  SUBJECT")


def print_mail(mail: StoredMail) -> None:
    """A line of the list."""
    sender = mail.from_ or "<>"
    print(
        f"{mail.mail_id:6}  {mail.date:19}  {mail.size:8}  {printable(sender):28}"
        f"  {printable(mail.recipient):28}  {printable(mail.subject)}"
    )


# ---- one ---------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> int:
    """gsmtpctl show: returns the exit code."""
    if options.output is not None and options.attachment is None:
        raise cli.Stop(cli.EX_USAGE, "-o is for --attachment")
    with closing(app.make_reader(cli.load(options.config))) as reader:
        if not show_mail(reader, options.id, options):
            raise cli.Stop(cli.EX_UNAVAILABLE, f"no mail {options.id}; see: gsmtpctl list")
    return cli.EX_OK


def show_mail(reader: MailReader, mail_id: int, options: argparse.Namespace) -> bool:
    """Show that mail as `options` have it: raw, headers, attachment. False where there is none.

    Raises StoreError, behind what the database itself has of it where its octets are gone.
    """
    plain = not (options.raw or options.headers or options.attachment)
    try:
        found = reader.mail(mail_id)
    except UnreadableError:
        if plain:
            _show_without_octets(reader, mail_id)
        raise
    if found is None:
        return False
    mail, octets = found
    front = parse_front(octets)
    content = octets[front.size :] if front is not None else octets
    if options.raw:
        _write_out(octets)
    elif options.headers:
        _print_text(_header(content).decode("utf-8", "replace"))
    elif options.attachment:
        _save(content, options.attachment, options.output)
    else:
        body = read_body(content)
        _show(mail._replace(size=len(content)), body.text, body.attachments)
    return True


def _show_without_octets(reader: MailReader, mail_id: int) -> None:
    """Show what the database itself has of a mail."""
    mail = reader.row(mail_id)
    if mail is not None:
        _show(mail, reader.text(mail_id), reader.attachments(mail_id))


def _show(
    mail: StoredMail, text: str, attachments: Sequence[Attachment | StoredAttachment]
) -> None:
    for name, value in (
        ("Id", f"{mail.mail_id} ({mail.hash})"),
        ("Date", f"{mail.date} UTC"),
        ("From", f"{mail.from_} (reverse-path <{mail.return_path}>)"),
        ("To", mail.to if mail.to == mail.recipient else f"{mail.to} (sent to {mail.recipient})"),
        ("Subject", mail.subject),
        ("Client", f"{mail.ip_addr} ({mail.helo})"),
        ("Size", f"{mail.size} bytes"),
    ):
        print(f"{name + ':':9}{printable(value)}")
    if text:
        print()
        _print_text(text)
    if attachments:
        print("\nAttachments:")
    for place, each in enumerate(attachments, 1):
        kind, name = printable(each.content_type), printable(each.filename)
        print(f"{place:3}  {kind:30}  {each.size:10}  {name}".rstrip())


def _print_text(text: str) -> None:
    for line in text.removesuffix("\n").split("\n") if text else []:
        print(printable(line.rstrip("\r"), keep="\t"))


def _write_out(octets: bytes) -> None:
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()


def _header(content: bytes) -> bytes:
    """The header section, without the empty line that ends it."""
    if content.startswith((b"\r\n", b"\n")):
        return b""
    end = re.search(rb"\n\r?\n", content)
    return content[: end.start() + 1] if end else content


# ---- attachments -------------------------------------------------------------------------------


def _save(content: bytes, number: int, output: str | None) -> None:
    """Write an attachment into the file `output`, "-" for stdout, None for a name like its own."""
    attachments = read_body(content).attachments
    if number > len(attachments):
        raise cli.Stop(cli.EX_UNAVAILABLE, f"no attachment {number}; there are {len(attachments)}")
    octets = attachment(content, number)
    if output == "-":
        _write_out(octets)
        return
    chosen = attachments[number - 1]
    names = (
        [output] if output else _free_names(safe_name(chosen.filename, number, chosen.content_type))
    )
    name, file = _new_file(names)
    with file:
        file.write(octets)
    print(f"saved {len(octets)} bytes as {os.path.abspath(name)}")


def _new_file(names: Iterable[str]) -> tuple[str, BinaryIO]:
    """The first of `names` that is free, and its file."""
    for name in names:
        try:
            return name, create_file(name)
        except FileExistsError:
            continue
    raise cli.Stop(cli.EX_CANTCREAT, f"{name}: is there already; nothing is overwritten")


def _free_names(name: str) -> Iterator[str]:
    """`name`, then others like it: invoice.pdf, invoice-1.pdf, invoice-2.pdf …"""
    stem, dot, ending = name.rpartition(".")
    yield name
    yield from (f"{stem}-{n}{dot}{ending}" if dot else f"{name}-{n}" for n in count_from(1))


_MAX_NAME = 200  # octets; file systems take 255


def safe_name(name: str, number: int, content_type: str) -> str:
    """The name of a file for an attachment: that of its sender, without what could do harm.

    It names no directory, hides nothing and looks like no option. number, content_type: for a name
    where there is none.
    """
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).lstrip(".- ~").rstrip(". ")
    if not name:
        endings = {"message/rfc822": ".eml"}
        ending = endings.get(content_type) or mimetypes.guess_extension(content_type) or ".bin"
        return f"attachment-{number}{ending}"
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending.encode()) > _MAX_NAME // 4:
        stem, dot, ending = name, "", ""
    room = _MAX_NAME - len(ending.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + dot + ending
