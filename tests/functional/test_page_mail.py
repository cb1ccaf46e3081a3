"""How does the page of [status] show mail to people: who wrote, when, and where it leads?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from tests.browser import PHONE, Browser, browsing
from tests.servers import Gsmtpd, MariaDB, free_port, mysql_store, wait_for
from tests.site import Site, mail, serving, subjects, visiting

pytestmark = pytest.mark.alone  # a browser and its server need the processors


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


# ---- the list ------------------------------------------------------------------------------------


def senders(browser: Browser) -> list[str]:
    """Who they are from, as the list has it."""
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('#list a > :first-child')]"
        ".map((each) => each.textContent)"
    )
    return found


def test_the_list_has_names_and_addresses(site: Site) -> None:
    browser = site.browser
    site.send(mail("one", sender="=?utf-8?q?J=C3=B6rg_M=C3=BCller?= <joerg@example.org>"))
    site.view("mail")
    wait_for(lambda: senders(browser)[:1] == ["Jörg Müller joerg@example.org"])
    site.send(mail("two", sender='"Lee, \\"Ann\\"" <ann@example.org>'))
    wait_for(lambda: senders(browser)[:1] == ['Lee, "Ann" ann@example.org'])  # by the stream
    site.send(mail("three", sender="nobody@example.org"))
    wait_for(lambda: senders(browser)[:1] == ["nobody@example.org"])


def test_the_mail_has_the_name_too(site: Site) -> None:
    number = site.send(mail("one", sender="Ann Lee <ann@example.org>"))
    site.view(f"mail/{number}")
    wait_for(lambda: "Ann Lee <ann@example.org>" in site.browser.text("#letter .envelope"))


def test_the_list_has_the_day_and_the_time(site: Site) -> None:
    site.send(mail("when"))
    site.view("mail")
    when = site.browser.wait("document.querySelector('#list time')")
    shown = datetime.strptime(when.text, "%Y-%m-%d %H:%M")
    full, _, utc = when.get_attribute("title").partition(" here, ")
    assert datetime.strptime(full, "%Y-%m-%d %H:%M:%S").replace(second=0) == shown
    assert datetime.fromisoformat(utc).tzinfo is not None
    assert utc == when.get_attribute("datetime")


@pytest.mark.parametrize(
    ("name", "value", "first"),
    [
        ("to", "@example.com", ["by domain"]),
        ("to", "@example.org", []),
        ("from", "@two.example", ["by domain"]),
        ("from", "@three.example", []),
    ],
)
def test_a_whole_domain_may_be_searched_for(
    site: Site, name: str, value: str, first: list[str]
) -> None:
    browser = site.browser
    site.send(mail("by domain", sender="b@two.example"))
    site.view("mail")
    field = browser.wait(f"document.getElementById('search').elements['{name}']")
    assert "@domain" in field.get_attribute("placeholder")
    field.send_keys(value + "\n")
    browser.wait("location.hash.includes('?')")
    wait_for(lambda: browser.text("#found") not in ("", "Searching…"))
    assert subjects(browser)[:1] == first


def test_a_database_that_is_away_is_an_error(mariadb: MariaDB, browser: Browser) -> None:
    listen = f"127.0.0.1:{free_port()}"
    away = mysql_store(mariadb, "mail", host=f"127.0.0.1:{free_port()}")
    away["status"] = {"listen": listen}
    with (
        Gsmtpd(away, variables={"TEST_LISTEN": listen}) as daemon,
        visiting(daemon, browser) as site,
    ):
        site.view("mail")
        browser.wait("document.querySelector('#found.problem')")
        assert browser.run(
            "const of = (one) => getComputedStyle(document.querySelector(one)).color;"
            "return of('#found') === of('body')"
        )
        assert all("503" in line for line in browser.complaints())


# ---- text ----------------------------------------------------------------------------------------

LINKS = """
  return [...document.querySelectorAll('#panel a')].map((one) => [one.textContent, one.href])
"""


def links(site: Site, text: str) -> list[list[str]]:
    """The links that a text has on the page: what they say, and where they lead."""
    browser = site.browser
    number = site.send(mail("links", f"{text}\r\nThe end."))
    site.view(f"mail/{number}")
    wait_for(lambda: "The end." in browser.text("#panel"))
    shown = browser.run("return document.querySelector('#panel pre').textContent")
    assert shown.replace("\n", "\r\n").startswith(text.replace("\u202e", "·"))
    found: list[list[str]] = browser.run(LINKS)
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("See https://example.org/a?b=1&c=2#d.", ["https://example.org/a?b=1&c=2#d"]),
        ("(https://example.org/a_(b))", ["https://example.org/a_(b)"]),
        ("<HTTPS://example.org/>, and", ["HTTPS://example.org/"]),
        ('"http://[::1]:8025/x"!', ["http://[::1]:8025/x"]),
        ("http://a.example/ http://b.example/", ["http://a.example/", "http://b.example/"]),
        ("https://bücher.example/ä", ["https://bücher.example/ä"]),
    ],
)
def test_names_of_pages_are_links(site: Site, text: str, names: list[str]) -> None:
    found = links(site, text)
    assert [said for said, _ in found] == names
    assert all(href.startswith(("http://", "https://")) for _, href in found)
    for link in site.browser.driver.find_elements("css selector", "#panel a"):
        assert link.get_attribute("target") == "_blank"
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1) JAVASCRIPT://x/%0aalert(1)",
        "data:text/html,<script>alert(1)</script>",
        "file:///etc/passwd ftp://example.org/ xhttp://example.org/ vbscript:x",
        "http:// https://. http://[::g]/ https://%/ http://" + "x" * 3000,
    ],
)
def test_what_is_no_page_stays_text(site: Site, text: str) -> None:
    assert links(site, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/\"onmouseover=\"document.title='ran'",
        "https://example.org/'><img src=x onerror=\"document.title='ran'\">",
        "https://example.org/<b>bold</b>",
        "https://example.org/\u202egro.live//:sptth",
        "https://example.org/\u200bevil",
    ],
)
def test_hostile_names_end_where_they_are_hostile(site: Site, text: str) -> None:
    [(said, href)] = links(site, text)
    assert said in ("https://example.org/", "https://example.org/'")
    assert href == said or href == "https://example.org/"
    assert not site.browser.run("return document.querySelector('#panel b, #panel img')")
    assert site.browser.run("return [...document.querySelector('#panel a').attributes].length") == 3
    assert "ran" not in site.browser.driver.title


def test_very_many_names_do_not_keep_the_page_busy(site: Site) -> None:
    """Nor those with very many brackets: each would have to be weighed against the others."""
    name = "http://a.example/" + ")" * 200
    found = links(site, "\r\n".join([name] * 1100))
    assert found == [["http://a.example/", "http://a.example/"]] * 1000


TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize("tab", ["text", "raw"])
def test_nothing_turns_text_round(site: Site, tab: str) -> None:
    """What only settles a direction is seen; words of any direction stay as they are."""
    browser = site.browser
    words = ["שלום, עולם 123", "مرحبا (بالعالم)", "\tjust so"]
    lines = [f"pay{TURNING}001", "http://a.example/", f"pay{TURNING}002", *words]
    number = site.send(mail("turned", "\r\n".join(lines)))
    site.view(f"mail/{number}")
    browser.wait(f"document.getElementById('tab-{tab}')").click()
    wait_for(lambda: "just so" in browser.text(f"#panel[data-way={tab}] pre"))
    shown = browser.run("return document.querySelector('#panel pre').textContent")
    seen = [line.replace(TURNING, "·" * len(TURNING)) for line in lines]
    assert shown.rstrip().split("\n")[-len(lines) :] == seen


# ---- HTML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "style", ["", "html, body { overflow-x: hidden } body { overflow: hidden !important }"]
)
def test_a_wide_mail_can_be_scrolled_sideways(site: Site, style: str) -> None:
    browser = site.browser
    wide = EmailMessage(policy=SMTP)
    wide["Subject"] = "wide"
    cells = "".join(f"<td>column_number_{n}" for n in range(12))
    wide.set_content(f"<style>{style}</style><table><tr>{cells}</table>", subtype="html")
    number = site.send(wide.as_bytes())
    browser.look(PHONE)
    site.view(f"mail/{number}")
    browser.wait("document.getElementById('tab-html')").click()
    frame = browser.wait("document.querySelector('#letter iframe')")
    browser.driver.switch_to.frame(frame)
    wait_for(lambda: "column_number_11" in browser.text("table"))
    browser.run("scrollTo(10000, 0)")
    last = "document.querySelector('td:last-child').getBoundingClientRect().right"
    assert browser.run(f"return {last} <= innerWidth")
    browser.driver.switch_to.default_content()
