"""How do a server and its page stand before a browser, and what is done with both?"""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Iterator
from typing import NamedTuple

from tests.browser import DESKTOP, Browser
from tests.servers import Gsmtpd, free_port


class Site(NamedTuple):
    """A server that receives mail, and its page in a browser."""

    daemon: Gsmtpd
    browser: Browser
    url: str

    def send(self, mail: bytes, recipient: str = "you@example.com") -> int:
        """Store a mail; its id."""
        with smtplib.SMTP(*self.daemon.address) as client:
            client.sendmail("mallory@trap.example", [recipient], mail)
        return int(self.daemon.ctl("list").split("\n")[-2].split()[0])

    def view(self, path: str) -> None:
        """Show a view of the page: "live", "mail", "mail/1"."""
        self.browser.open(f"{self.url}/#{path}")
        self.browser.wait("document.querySelector('nav a[aria-current]')")


@contextlib.contextmanager
def serving() -> Iterator[Gsmtpd]:
    """A server with a page, on the port that its variable TEST_LISTEN names."""
    listen = f"127.0.0.1:{free_port()}"
    with Gsmtpd({"status": {"listen": listen}}, variables={"TEST_LISTEN": listen}) as daemon:
        yield daemon


@contextlib.contextmanager
def visiting(daemon: Gsmtpd, browser: Browser) -> Iterator[Site]:
    """Both. At the end the browser must have had nothing to complain about."""
    browser.look(DESKTOP)
    browser.complaints()  # those of others
    yield Site(daemon, browser, f"http://{daemon.variables['TEST_LISTEN']}")
    browser.driver.get("about:blank")
    assert browser.complaints() == []


def mail(subject: str, text: str = "Hello.", sender: str = "Ann <ann@example.org>") -> bytes:
    """A simple one."""
    head = f"From: {sender}\r\nTo: you@example.com\r\nSubject: {subject}\r\n"
    return f"{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n".encode()


def subjects(browser: Browser) -> list[str]:
    """What the list has, from its top."""
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('#list .what')].map((each) => each.textContent)"
    )
    return found
