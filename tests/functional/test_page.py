"""What does a person see on the page of [status], and what does a hostile mail see of them?"""

from __future__ import annotations

import http.server
import os
import smtplib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from http import HTTPStatus
from itertools import count

import pytest

from gsmtpd.status.headers import MAIL_POLICY, PAGE_POLICY
from gsmtpd.status.safe_html import safe_page
from tests import calling_home
from tests.browser import DESKTOP, PHONE, Browser, Trap, browsing
from tests.calling_home import LEAVES, LOADS, SCRIPTS, host
from tests.servers import Gsmtpd, NotYetError, find_program, free_port, wait_for
from tests.site import Site, mail, serving, subjects, visiting

_numbers = count(1)
pytestmark = pytest.mark.alone  # a browser and its server need the processors

IMAGES = os.environ.get("GSMTPD_TEST_IMAGES", "")
"""Where pictures of the page are left, for docs/images."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def daemon() -> Iterator[Gsmtpd]:
    with serving() as daemon:
        yield daemon


@pytest.fixture
def site(daemon: Gsmtpd, browser: Browser) -> Iterator[Site]:
    with visiting(daemon, browser) as site:
        yield site


# ---- live ----------------------------------------------------------------------------------------

# The highest point of a strip's first line, in pixels from its top.
TOP = """Math.min(...[...document.querySelectorAll('#strips .line.' + arguments[0])]
  .flatMap((path) => path.getAttribute('d').match(/[ML][\\d.]+ [\\d.]+/g) || [])
  .map((point) => Number(point.split(' ')[1])))"""
BASE = "Number(document.querySelector('#strips .base').getAttribute('y1'))"


def source(daemon: Gsmtpd, messages: int, recipient: str) -> None:
    """Have smtp-source send mail, whatever becomes of it."""
    command = [find_program("smtp-source"), "-s", "4", "-m", str(messages), "-l", "2000"]
    where = f"{daemon.address[0]}:{daemon.address[1]}"
    subprocess.run([*command, "-c", "-t", recipient, where], check=False, capture_output=True)


def test_plots_move_while_mail_comes(site: Site) -> None:
    browser = site.browser
    site.view("live")
    browser.run("document.querySelector('[name=span][value=\"300\"]').click()")
    browser.wait("document.querySelector('#strips .line.accepted')?.getAttribute('d')")
    before = browser.run(
        "return document.querySelector('#strips .line.accepted').getAttribute('d')"
    )
    source(site.daemon, 300, "you@example.com")
    browser.wait(f"{TOP} < {BASE} - 20", "accepted")
    after = browser.run("return document.querySelector('#strips .line.accepted').getAttribute('d')")
    assert after != before
    browser.wait(f"{TOP} < {BASE} - 10", "batch")
    wait_for(lambda: "accepted" in browser.text("#facts") and "300 mails" in browser.text("#facts"))
    assert "Nothing is wrong." in browser.text("#problems")


def test_refusals_are_drawn_by_reason(site: Site) -> None:
    browser = site.browser
    site.view("live")
    with smtplib.SMTP(*site.daemon.address) as client:
        client.helo()
        client.mail("a@example.org")
        for _ in range(15):
            assert client.rcpt("you@elsewhere.example")[0] == 550
    wait_for(lambda: "relay" in browser.text("#strips .strip:nth-child(2) .legend"))
    assert browser.run("return document.querySelectorAll('#strips .area.reason-0').length")


def test_sessions_are_listed(site: Site) -> None:
    site.view("live")
    with smtplib.SMTP(*site.daemon.address) as client:
        client.helo()
        wait_for(lambda: "127.0.0.1" in site.browser.text("#sessions"))
    wait_for(lambda: "Nobody is connected." in site.browser.text("#sessions"))


def test_time_can_be_looked_at_by_keys(site: Site) -> None:
    browser = site.browser
    site.view("live")
    browser.wait("document.querySelector('#strips .line.sessions')?.getAttribute('d')")
    browser.run(
        "const strips = document.getElementById('strips'); strips.focus();"
        "strips.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}))"
    )
    assert browser.run("return document.querySelectorAll('#strips .cursor').length") == 7
    browser.run(
        "document.getElementById('strips').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Escape'}))"
    )
    assert not browser.run("return document.querySelectorAll('#strips .cursor').length")


# ---- mail ----------------------------------------------------------------------------------------


def test_new_mail_appears_by_itself(site: Site) -> None:
    browser = site.browser
    site.send(mail("the first"))
    site.view("mail")
    wait_for(lambda: subjects(browser)[:1] == ["the first"])
    site.send(mail("the second"))
    wait_for(lambda: subjects(browser)[:2] == ["the second", "the first"])


def test_new_mail_appears_where_it_was_searched_for(site: Site) -> None:
    browser = site.browser
    site.view("mail?to=them@example.com&subject=sign")
    browser.wait("document.getElementById('found').textContent.includes('No mail')")
    site.send(mail("sign in"))
    site.send(mail("something else"), "them@example.com")
    site.send(mail("please sign in"), "them@example.com")
    wait_for(lambda: subjects(browser) == ["please sign in"])


def test_mail_is_searched_for(site: Site) -> None:
    browser = site.browser
    site.send(mail("about cats", sender="Cat <cat@example.org>"))
    site.send(mail("about dogs"))
    site.view("mail")
    browser.wait("document.querySelectorAll('#list li').length > 1")
    browser.run(
        "const form = document.getElementById('search'); form.elements.from.value = 'cat@';"
        "form.requestSubmit()"
    )
    wait_for(lambda: subjects(browser) == ["about cats"])
    assert browser.run("return location.hash") == "#mail?from=cat%40"
    browser.run("document.querySelector('#search [type=reset]').click()")
    wait_for(lambda: "about dogs" in subjects(browser))


def test_what_strangers_write_is_text(site: Site) -> None:
    browser = site.browser
    markup = "<img src=x onerror=\"document.title='it ran'\"><b>bold</b>"
    number = site.send(mail(markup, markup, sender=f'"{markup}" <ann@example.org>'))
    site.view(f"mail/{number}")
    wait_for(lambda: markup in browser.text("#letter .panel"))
    assert browser.text("#letter h2") == markup
    assert subjects(browser)[0] == markup
    assert not browser.run(
        "return document.querySelectorAll('main img, #mail b:not(dialog b)').length"
    )
    browser.run("document.getElementById('tab-headers').click()")
    wait_for(lambda: "Subject" in browser.text("#letter .panel"))
    assert markup in browser.text("#letter .panel")
    browser.run("document.getElementById('tab-raw').click()")
    wait_for(lambda: f"Subject: {markup}" in browser.text("#letter .panel"))
    assert "it ran" not in browser.driver.title


def test_a_mail_is_deleted_when_that_is_said_twice(site: Site) -> None:
    browser = site.browser
    number = site.send(mail("to be deleted"))
    site.view(f"mail/{number}")
    browser.wait("document.querySelector('#letter button.danger')").click()
    assert browser.run("return document.getElementById('sure').open")
    assert "to be deleted" in browser.text("#sure")
    browser.run("document.getElementById('sure-no').click()")
    assert "to be deleted" in subjects(browser)
    browser.run("document.querySelector('#letter button.danger').click()")
    browser.run("document.getElementById('sure-yes').click()")
    wait_for(lambda: "to be deleted" not in subjects(browser))
    assert "to be deleted" not in site.daemon.ctl("list")
    assert browser.run("return location.hash") == "#mail"


def test_a_mail_that_is_not_there(site: Site) -> None:
    site.view("mail/999999")
    wait_for(lambda: "there is no mail 999999" in site.browser.text("#letter"))
    assert [line for line in site.browser.complaints() if "404" not in line] == []


def test_attachments_are_saved_and_not_shown(site: Site) -> None:
    body = (
        "From: ann@example.org\r\nSubject: files\r\nMIME-Version: 1.0\r\n"
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nSee there.\r\n--b\r\n"
        'Content-Type: text/html; name="x.html"\r\nContent-Disposition: attachment\r\n\r\n'
        "<script>document.title='it ran'</script>\r\n--b--\r\n"
    )
    number = site.send(body.encode())
    site.view(f"mail/{number}")
    link = site.browser.wait("document.querySelector('#letter .files a')")
    assert link.text == "x.html"
    assert link.get_attribute("download") == "x.html"
    site.browser.open(f"{site.url}/api/mails/{number}/attachments/1")  # without the page, too
    assert site.browser.driver.current_url == "about:blank"  # it was saved
    site.view("live")


def test_the_page_behind_a_password(browser: Browser) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with Gsmtpd({"status": {"listen": listen, "password": "open sesame"}}) as daemon:
        site = Site(daemon, browser, f"http://anybody:open%20sesame@{listen}")
        number = site.send(calling_home.mail("<p id=said>Look at me</p>", "behind a password"))
        site.view(f"mail/{number}")
        wait_for(lambda: subjects(browser) == ["behind a password"])
        browser.wait("document.getElementById('tab-html')").click()
        frame = browser.wait("document.querySelector('#letter iframe')")
        browser.driver.switch_to.frame(frame)
        wait_for(lambda: "Look at me" in browser.text("#said"))
        browser.driver.switch_to.default_content()
        site.send(mail("another"))
        wait_for(lambda: subjects(browser) == ["another", "behind a password"])
        browser.driver.get("about:blank")


# ---- how it looks --------------------------------------------------------------------------------

OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("size", [(320, 640), PHONE, (768, 1024), DESKTOP], ids=str)
def test_nothing_has_to_be_scrolled_sideways(site: Site, size: tuple[int, int]) -> None:
    browser = site.browser
    long = "x" * 200
    number = site.send(mail(long, f"{long}\r\n{long}", sender=f"{long}@example.org"))
    browser.look(size)
    site.view("live")
    browser.wait("document.querySelectorAll('#facts dd').length > 5")
    assert browser.run(OVERFLOW) == 0
    site.view("mail")
    browser.wait("document.querySelectorAll('#list li').length")
    assert browser.run(OVERFLOW) == 0
    site.view(f"mail/{number}")
    for tab in ("text", "headers", "raw"):
        browser.wait(f"document.getElementById('tab-{tab}')").click()
        browser.wait(f"document.getElementById('panel').innerText.includes('{long}')")
        assert browser.run(OVERFLOW) == 0


def contrasts(browser: Browser) -> list[float]:
    """Of each text on the page, against what is behind it (WCAG 2.2 section 1.4.3)."""
    found: list[float] = browser.run("""
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((one) => one / 255)
          .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = (one) => {
        for (; one; one = one.parentElement) {
          const color = getComputedStyle(one).backgroundColor;
          if (!/^rgba\\(.*, 0\\)$/.test(color)) return color;
        }
      };
      return [...document.querySelectorAll('body *')]
        .filter((one) => one.checkVisibility() && [...one.childNodes].some((node) =>
          node.nodeType === 3 && node.data.trim()))
        .map((one) => {
          const style = getComputedStyle(one);
          const paint = one instanceof SVGElement ? style.fill : style.color;
          const back = one.classList.contains('flag-text') ? paint : behind(one);
          const [a, b] = [light(paint), light(back)].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        });
    """)
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(site: Site, dark: bool) -> None:
    browser = site.browser
    number = site.send(mail("to be read"))
    browser.look(DESKTOP, dark=dark)
    for view, there in (("live", "#facts dd"), (f"mail/{number}", "#letter .panel pre")):
        site.view(view)
        browser.wait("document.querySelector(arguments[0])", there)
        browser.wait("document.getAnimations().length === 0")
        found = contrasts(browser)
        assert len(found) > 10
        assert min(found) >= 4.5
    paper = browser.run("return getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark


def test_everything_has_a_name_for_those_who_do_not_see_it(site: Site) -> None:
    browser = site.browser
    number = site.send(mail("named"))
    for view, there in (("live", "#facts dd"), (f"mail/{number}", "#letter .panel pre")):
        site.view(view)
        browser.wait("document.querySelector(arguments[0])", there)
        tree = browser.devtools("Accessibility.getFullAXTree")["nodes"]
        nameless = [
            node["role"]["value"]
            for node in tree
            if not node.get("ignored")
            and node["role"]["value"] in {"button", "link", "textbox", "radio", "image", "tab"}
            and not node.get("name", {}).get("value")
        ]
        assert nameless == []


# ---- mail that would call home -------------------------------------------------------------------


class _Other(http.server.BaseHTTPRequestHandler):
    """Serves `pages`: a path to a page, and the policy that stands in its header."""

    def __init__(self, pages: dict[str, tuple[str, str]], *arguments: object) -> None:
        self._pages = pages
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:  # noqa: N802
        if self.path not in self._pages:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        html, policy = self._pages[self.path]
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(html.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Elsewhere:
    """Shows pages from a server that is not gsmtpd's, with and without what it would do."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: dict[str, tuple[str, str]] = {}
        handler = partial(_Other, self._pages)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def heard(self, html: str, policy: str, in_frame: bool = False) -> set[str]:
        """Who is called when this is shown, as a page or in a frame as ours."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        frame = "<iframe sandbox src=/mail></iframe>"
        self._pages |= {"/mail": (html, policy), "/frame": (frame, PAGE_POLICY)}
        self._browser.trap.forget()
        self._browser.open(f"{url}/frame" if in_frame else f"{url}/mail")
        return heard(self._browser)

    def wait_for(self, hosts: set[str], html: str) -> None:
        """Show this, and wait until all these are called."""
        self.heard(html, "")
        missing = hosts

        def all_were() -> bool:
            nonlocal missing
            missing = hosts - self._browser.trap.heard
            return not missing

        with suppress(NotYetError):
            wait_for(all_were, 20)
        assert not missing

    def close(self) -> None:
        self._server.shutdown()


def heard(browser: Browser) -> set[str]:
    """Who was called until now. What is behind has been heard when a later call is."""
    for _ in range(2):  # some loads wait for others
        canary = f"bird{next(_numbers)}.canary.example"
        tab = browser.driver.current_window_handle
        browser.driver.switch_to.new_window("tab")
        browser.driver.get(f"http://{canary}/")
        browser.driver.close()
        browser.driver.switch_to.window(tab)
        wait_for(partial(browser.canary.has_heard, canary), 20)
    return browser.trap.heard


@pytest.fixture
def elsewhere(browser: Browser) -> Iterator[Elsewhere]:
    with closing(Elsewhere(browser)) as elsewhere:
        yield elsewhere


@pytest.fixture(scope="module")
def unguarded() -> Iterator[Elsewhere]:
    """In a browser of its own: what it has begun to load may still call later."""
    with browsing() as browser, closing(Elsewhere(browser)) as elsewhere:
        yield elsewhere


SAFE_FROM = {host(way) for way in LOADS} | {host(f"run-{way}") for way in SCRIPTS}
# Chromium without a window shows no icons and asks for no names in advance; the others need more
# than a mail has. And who is connected in advance is told nothing.
QUIET = {host(way) for way in ("dns-prefetch", "icon", "manifest", "preconnect", "track")}


def test_the_trap_hears_what_nothing_keeps_back(unguarded: Elsewhere) -> None:
    unguarded.wait_for(SAFE_FROM - QUIET, calling_home.all_at_once())


# For these Chromium opens a connection whatever the policy says, and then says nothing over it.
CONNECTS = ("iframe", "preconnect")


def test_the_policy_alone_keeps_it_back(elsewhere: Elsewhere) -> None:
    html = calling_home.all_at_once(but=CONNECTS)
    for in_frame in (False, True):
        assert elsewhere.heard(html, MAIL_POLICY, in_frame) == set()
        assert elsewhere.heard(calling_home.with_base(), MAIL_POLICY, in_frame) == set()


def test_no_policy_keeps_chromium_from_connecting(unguarded: Elsewhere) -> None:
    """So the rewriting has to, and does: see the next test."""
    assert unguarded.heard(calling_home.all_at_once(), MAIL_POLICY) <= {Trap.SILENT}


def test_rewriting_alone_keeps_it_back(elsewhere: Elsewhere) -> None:
    for html in (calling_home.all_at_once(), calling_home.with_base()):
        page = safe_page(calling_home.mail(html))
        assert page is not None
        assert elsewhere.heard(page.decode(), "") == set()


@pytest.mark.parametrize("way", LEAVES)
def test_ways_to_leave(elsewhere: Elsewhere, unguarded: Elsewhere, way: str) -> None:
    html = calling_home.leaving(way)
    unguarded.wait_for({host(way)}, html)
    page = safe_page(calling_home.mail(html))
    assert page is not None
    assert elsewhere.heard(page.decode(), "") == set()


def test_a_hostile_mail_on_the_page_runs_and_loads_nothing(site: Site) -> None:
    browser = site.browser
    mails = [
        calling_home.all_at_once(),
        calling_home.with_base(),
        *map(calling_home.leaving, LEAVES),
    ]
    for html in mails:
        number = site.send(calling_home.mail(html))
        browser.trap.forget()
        site.view(f"mail/{number}")
        browser.wait("document.getElementById('tab-html')").click()
        frame = browser.wait("document.querySelector('#letter iframe')")
        browser.driver.switch_to.frame(frame)
        wait_for(lambda: "Look at me" in browser.text("#said"))
        browser.driver.switch_to.default_content()
        assert heard(browser) == set()
        assert browser.driver.title.startswith("gsmtpd")
        site.browser.open(f"{site.url}/api/mails/{number}/html")  # without the page, too
        assert "Look at me" in browser.text("#said")
        assert heard(browser) == set()
        assert [line for line in browser.complaints() if "/favicon.ico" not in line] == []
