"""How does the page look? Makes the pictures of docs/images, of a real server that receives mail.

Run it by hand: `.venv/bin/python -m tests.pictures`. It takes six minutes: plots need some time.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import smtplib
import struct
import threading
import time
import zlib
from email.message import EmailMessage
from email.policy import SMTP

from tests.browser import DESKTOP, PHONE, Browser, browsing
from tests.conftest import make_schema
from tests.servers import ROOT, Gsmtpd, MariaDB, free_port, mysql_store

IMAGES = ROOT / "docs" / "images"
MINUTES = float(os.environ.get("MINUTES", "5"))
SMALL_TALK = (
    ("Ann Lee <ann@example.org>", "Lunch on Thursday?"),
    ("Build <ci@build.example.org>", "[passed] main at 4f2c1aa, 212 tests"),
    ("Sign-in <accounts@login.example.net>", "482913 is your verification code"),
    ("cron <root@db1.example.org>", "Cron <root@db1> backup --all: 41 GiB in 18 min"),
    ("Jörg Müller <joerg@example.org>", "Grüße aus Köln, und die Fotos"),
    ("Иван <ivan@example.net>", "Встреча в 18:00"),
    ("Monitor <alerts@watch.example.org>", "RESOLVED: disk at 81 % on web3"),
    ("List <users-bounces@lists.example.org>", "[users] Re: how to read a maildir faster"),
)
RECIPIENTS = ("you@example.com", "orders@example.com", "support@example.com")


def small_talk(sender: str, subject: str) -> bytes:
    """A mail in plain text."""
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"], mail["Subject"] = sender, RECIPIENTS[0], subject
    mail.set_content("Hello,\n\nyou know what this is about.\n\nBye\n" * 8)
    return mail.as_bytes()


def order() -> bytes:
    """A mail as shops send it: HTML, a picture in it, one that is elsewhere, and a file."""
    rows = (("Airmail envelopes, 50", "9.80"), ("Blue-black ink, 30 ml", "12.50"))
    cells = "".join([f"<tr><td>{what}<td align=right>{price}" for what, price in rows])
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"] = "Paper & Ink <orders@shop.example.net>", RECIPIENTS[1]
    mail["Subject"] = "Your order 2024-1187 is on its way"
    mail.set_content("Your order is on its way: envelopes, and ink. 22.30 in all.\n")
    mail.add_alternative(
        "<style>td { padding: 6px 24px 6px 0; border-top: 1px solid #ddd }</style>"
        '<body style="font-family: Georgia, serif; color: #243">'
        "<img src=cid:logo width=64 height=64>"
        "<h2>It is on its way</h2><p>Thank you, Ann. We have handed this to the post today:</p>"
        f"<table>{cells}<tr><td><b>In all</b><td align=right><b>22.30</b></table>"
        "<p><a href='https://shop.example.net/orders/2024-1187'>Where is it?</a></p>"
        "<p><img src=https://shop.example.net/banner.png alt='Ten per cent off pens'></p>"
        "<img src=https://shop.example.net/seen?ann width=1 height=1>",
        subtype="html",
    )
    html = mail.get_body(("html",))
    assert html is not None
    html.add_related(logo(), "image", "png", cid="<logo>")
    mail.add_attachment(bytes(48_213), "application", "pdf", filename="Invoice 2024-1187.pdf")
    return mail.as_bytes()


def logo(size: int = 64) -> bytes:
    """A PNG: a blue disk with a red bar."""
    rows = []
    for y in range(size):
        row = b"\0"
        for x in range(size):
            inside = math.hypot(x - size / 2, y - size / 2) < size / 2 - 1
            is_bar = abs(y - size / 2) < size / 12
            row += (b"\xbf\x35\x19" if is_bar else b"\x1d\x5a\xa8") if inside else b"\xff\xff\xff"
        rows.append(row)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    return png


class Traffic:
    """Mail that comes and goes like waves, some of it refused."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._mails = [small_talk(*each) for each in SMALL_TALK]
        self._address = address
        self._random = random.Random(11)
        self._ends = time.monotonic() + MINUTES * 60
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        while (now := time.monotonic()) < self._ends:
            wave = 1.4 + math.sin(now / 40 + number / 3) + 0.5 * math.sin(now / 9)
            with contextlib.suppress(smtplib.SMTPException, OSError):
                self._session()
            time.sleep(self._random.expovariate(1) * 0.6 / max(0.2, wave))

    def _session(self) -> None:
        dice = self._random.random()
        with smtplib.SMTP(*self._address, local_hostname="mail.example.org") as client:
            for _ in range(self._random.randint(1, 4)):
                recipient = self._random.choice(RECIPIENTS)
                client.sendmail("news@example.org", recipient, self._random.choice(self._mails))
                time.sleep(self._random.random() * 0.3)
            if dice < 0.3:
                client.sendmail("a@example.org", "someone@elsewhere.example", b"x")
            elif dice < 0.5:
                client.sendmail("a@example.org", "nobody@example.com", b"x")
            elif dice < 0.56:
                client.docmd("MAIL FROM:a@example.org SIZE=999999999")
            elif dice < 0.62:
                client.docmd("WHO ARE YOU")


def take(browser: Browser, url: str, name: str, there: str) -> None:
    """The picture `name` of a view, once `there` is to be seen."""
    browser.open(url)
    browser.wait("document.querySelector(arguments[0])", there)
    if "#live" in url:
        browser.run("document.querySelector('[name=span][value=\"300\"]').click()")
        browser.wait("document.querySelector('#sessions table')", seconds=60)
    if "#mail/" in url:
        browser.run("document.getElementById('tab-html').click()")
        time.sleep(2)  # nobody outside sees into the frame
    IMAGES.mkdir(exist_ok=True)
    browser.picture(IMAGES / f"{name}.png")
    print(name, (IMAGES / f"{name}.png").stat().st_size)


def main() -> None:
    """Make them."""
    listen = f"127.0.0.1:{free_port()}"
    settings = {
        "status": {"listen": listen},
        "recipients": {"accept": ", ".join(RECIPIENTS), "unknown": "reject"},
    }
    with MariaDB(durable=True) as mariadb:
        make_schema(mariadb, "mail")
        with (
            Gsmtpd(
                mysql_store(mariadb, "mail", host=f"127.0.0.1:{mariadb.port}") | settings
            ) as daemon,
            browsing() as browser,
        ):
            traffic = Traffic(daemon.address)
            time.sleep(MINUTES * 60 - 15)
            url = f"http://{listen}"
            with smtplib.SMTP(*daemon.address, local_hostname="out.example.net") as client:
                client.sendmail("bounces@shop.example.net", RECIPIENTS[1], order())
            lines = daemon.ctl("list").splitlines()
            chosen = next(line.split()[0] for line in lines if "2024-1187" in line)
            browser.devtools("Emulation.setScrollbarsHidden", hidden=True)
            browser.look((DESKTOP[0], 1000))
            take(browser, f"{url}/#live", "status-live", "#facts dd")
            browser.look(DESKTOP)
            take(browser, f"{url}/#mail/{chosen}", "status-mail", "#tab-html")
            browser.look(PHONE, dark=True)
            take(browser, f"{url}/#live", "status-live-phone-dark", "#facts dd")
            take(browser, f"{url}/#mail", "status-mail-phone-dark", "#list li")
            browser.look(DESKTOP)
            traffic.wait()


if __name__ == "__main__":
    main()
