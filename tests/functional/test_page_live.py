"""Does the page of [status] say how it does, and nothing that it does not know?"""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
from collections.abc import Iterator

import pytest

from tests.browser import PHONE, Browser, browsing
from tests.servers import Gsmtpd, MariaDB, free_port, freeze, mysql_store, wait_for
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


def choose(browser: Browser, span: int) -> None:
    """Click on "5 minutes" or "hour"."""
    browser.run(f"document.querySelector('[name=span][value=\"{span}\"]').click()")


def chosen(browser: Browser) -> int:
    """The seconds that are shown."""
    return int(browser.run("return document.querySelector('[name=span]:checked').value"))


# ---- numbers and plots ---------------------------------------------------------------------------

# The number of a strip, its scale, and what its plot says at its right end.
READ = """
  const strip = document.querySelectorAll('#strips .strip')[arguments[0]];
  const line = strip.querySelector('.line')?.getAttribute('d') ?? '';
  const height = Number(line.match(/ ([\\d.]+)(h1)?$/)?.[1]);
  const at = (name) => Number(strip.querySelector(name).getAttribute('y1'));
  const scale = parseFloat(strip.querySelector('.scale').textContent);
  const shown = (at('.base') - height) / (at('.base') - at('.grid')) * scale;
  return [parseFloat(strip.querySelector('.number').textContent), scale, shown];
"""


def test_the_number_is_the_end_of_the_plot(site: Site) -> None:
    browser = site.browser
    site.view("live")
    choose(browser, 3600)
    for _ in range(20):
        site.send(mail("counted"))
    browser.wait("document.querySelector('#sentence').textContent.startsWith('Taking')")
    for strip in (0, 2):
        for _ in range(4):
            number, scale, shown = browser.run(READ, strip)
            assert 0 < number <= scale
            assert shown == pytest.approx(number, rel=0.05, abs=0.02 * scale)
            before = browser.run("return document.querySelector('#strips .line').outerHTML")
            browser.wait(
                "document.querySelector('#strips .line').outerHTML !== arguments[0]", before
            )


# What the class Samples of the page makes of histories: %s is a function body.
SAMPLES = """
  const [done] = arguments;
  import(`${location.origin}/static/samples.js`).then(({ Samples }) => {
    const samples = new Samples();
    done((() => { %s })());
  });
"""
FILLED = """
  const columns = ['time', 'accepted', 'commit_p95'];
  const fine = [1, 2, 3, 4, 5, 6].map((at) => [4000 + at, at, at === 5 ? 0.022 : 0.001]);
  const coarse = [...Array(360).keys()].map((at) => [410 + at * 10, 1, 0.004]);
  samples.fill(300, { columns, rows: fine });
  samples.fill(3600, { columns, rows: coarse });
"""


def of_samples(site: Site, body: str) -> object:
    """What `body` returns behind FILLED."""
    return site.browser.driver.execute_async_script(SAMPLES % (FILLED + body))


def test_the_newest_samples_are_in_the_plot_of_an_hour(site: Site) -> None:
    site.view("live")
    highest = "return Math.max(...samples.shown(3600).map((row) => row.commit_p95))"
    assert of_samples(site, highest) == 0.022
    both = "return [samples.shown(3600).at(-1), samples.lately(10)]"
    shown, lately = of_samples(site, both)  # type: ignore[misc]
    assert shown == lately
    assert shown["commit_p95"] == 0.022


def test_what_was_seen_before_a_restart_stays(site: Site) -> None:
    site.view("live")
    again = """
      samples.fill(300, { columns, rows: [[4030, 1, null]] });
      samples.fill(3600, { columns, rows: [] });
      samples.add({ time: 4031, accepted: 9, commit_p95: null });
      return [samples.shown(300).length, samples.shown(3600).length, samples.reach];
    """
    assert of_samples(site, again) == [8, 358, 4031 - 440]


def test_a_short_history_is_shown_in_five_minutes(site: Site) -> None:
    browser = site.browser
    site.view("live")
    browser.run("localStorage.clear()")
    site.view("live")
    browser.wait("document.querySelector('#strips .line')?.getAttribute('d')")
    assert chosen(browser) == 300
    choose(browser, 3600)
    site.view("live")
    browser.wait("document.querySelector('#strips .line')?.getAttribute('d')")
    assert chosen(browser) == 3600
    browser.run("localStorage.clear()")


def test_nothing_is_said_before_it_is_known(site: Site) -> None:
    browser = site.browser
    browser.devtools("Network.enable")
    browser.devtools("Network.setBlockedURLs", urls=["*/api/*"])
    site.view("live")
    browser.wait("document.querySelectorAll('#strips .number').length === 7")
    values = "[...document.querySelectorAll('#strips .value, #strips .legend b')]"
    said = browser.run(f"return {values}.map((one) => one.textContent).filter(Boolean)")
    assert set(said) == {"–"}
    browser.devtools("Network.setBlockedURLs", urls=[])
    browser.wait(f"{values}[0].textContent.endsWith('a second')")
    assert browser.text("#strips .strip:nth-child(2) .number") == "0"
    assert all("ERR_BLOCKED_BY_CLIENT" in line for line in browser.complaints())


# ---- words ---------------------------------------------------------------------------------------

# Words that go on in another line: what stands between spaces, and between the marks of names.
BROKEN = """
  const found = [];
  const nodes = document.createTreeWalker(document.getElementById('live'), NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const node = nodes.currentNode;
    if (!node.parentElement.checkVisibility() || node.parentElement.closest('.unseen')) continue;
    for (const { 0: word, index } of node.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(word);
    }
  }
  for (const one of document.querySelectorAll('#live td, #live th, #live dt, #live dd')) {
    if (one.scrollWidth > one.clientWidth) found.push(`over its edge: ${one.textContent}`);
  }
  return found;
"""


@pytest.fixture
def mysql_site(mariadb: MariaDB, schema: str, browser: Browser) -> Iterator[Site]:
    listen = f"127.0.0.1:{free_port()}"
    settings = mysql_store(mariadb, schema, host=f"127.0.0.1:{mariadb.port}")
    with (
        Gsmtpd(settings | {"status": {"listen": listen}}, variables={"TEST_LISTEN": listen}) as it,
        visiting(it, browser) as site,
    ):
        yield site


@pytest.mark.parametrize("size", [PHONE, (1024, 768), (1280, 900)], ids=str)
def test_no_word_is_broken(mysql_site: Site, size: tuple[int, int]) -> None:
    browser, daemon = mysql_site.browser, mysql_site.daemon
    browser.look(size)
    mysql_site.send(mail("slow"))
    with smtplib.SMTP(*daemon.address) as client:
        client.helo()
        mysql_site.view("live")
        browser.wait("document.querySelector('#sessions table')")
        browser.wait("document.querySelector('#slowest table')")
        browser.wait("document.querySelectorAll('#facts dd').length > 5")
        assert browser.run(BROKEN) == []


# ---- contact -------------------------------------------------------------------------------------

LOST = "document.getElementById('offline').checkVisibility()"
FOUND = "!document.getElementById('offline').checkVisibility()"
NEWER = "document.querySelector('#strips .line').outerHTML !== arguments[0]"


def page_process(daemon: Gsmtpd) -> int:
    """The id of the process that serves the page; 0 while there is none."""
    workers = daemon.status()["workers"]
    return next((one["pid"] for one in workers if one.get("role") == "status"), 0)


def plot(browser: Browser) -> str:
    line: str = browser.run("return document.querySelector('#strips .line')?.outerHTML ?? ''")
    return line


def only_unreachable(browser: Browser) -> bool:
    """Whether the console has nothing but requests that nobody answered."""
    return all("net::ERR_" in line or "503" in line for line in browser.complaints())


@contextlib.contextmanager
def watched(site: Site) -> Iterator[None]:
    """The list of mails in the page: what happens here is survived by it, with nothing missed."""
    browser = site.browser
    first = f"before {os.urandom(4).hex()}"
    site.send(mail(first))
    site.view("mail")
    wait_for(lambda: subjects(browser)[:1] == [first])
    browser.run("window.isTheSame = true")
    yield
    second = f"behind {os.urandom(4).hex()}"
    site.send(mail(second))
    wait_for(lambda: subjects(browser)[:1] == [second], 30)
    assert first in subjects(browser)
    browser.run("location.hash = '#live'")
    browser.wait(NEWER, plot(browser))
    browser.wait(FOUND)
    assert browser.run("return window.isTheSame")
    assert only_unreachable(browser)


def test_a_killed_process_of_the_page_comes_back(site: Site) -> None:
    with watched(site):
        before = page_process(site.daemon)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: page_process(site.daemon) not in (0, before))


def test_a_server_that_is_away_is_told_of_until_it_is_back(site: Site) -> None:
    browser = site.browser
    with watched(site):
        site.daemon.stop()
        browser.wait(LOST)
        assert "does not answer" in browser.text("#offline")
        site.daemon.start()
        with smtplib.SMTP(*site.daemon.address) as client:  # before the page knows
            client.sendmail("a@example.org", "you@example.com", mail("meanwhile"))
        browser.wait(FOUND, seconds=30)
        wait_for(lambda: "meanwhile" in subjects(browser), 30)


GREY = """
  const dot = getComputedStyle(document.querySelector('#problems li'), '::before').backgroundColor;
  return dot === getComputedStyle(document.getElementById('server')).color;
"""


def test_nothing_is_said_of_now_while_nobody_answers(site: Site) -> None:
    browser = site.browser
    site.view("live")
    browser.wait("document.title === 'gsmtpd: all is well'")
    browser.wait("/mail/.test(document.getElementById('sentence').textContent)")
    assert not browser.run(GREY)
    site.daemon.stop()
    browser.wait(LOST)
    assert browser.driver.title == "gsmtpd: no contact"
    assert browser.text("#problems") == "Whether anything is wrong is not known."
    assert browser.run(GREY)
    assert browser.text("#sentence").startswith("The server last answered at 2")
    choose(browser, 3600)  # draws again
    assert browser.text("#sentence").startswith("The server last answered at 2")
    site.daemon.start()
    browser.wait("document.title === 'gsmtpd: all is well'", seconds=30)
    browser.wait("/mail/.test(document.getElementById('sentence').textContent)")
    assert browser.text("#problems") == "Nothing is wrong."
    browser.run("localStorage.clear()")
    assert only_unreachable(browser)


def test_a_server_that_says_nothing_is_noticed(site: Site) -> None:
    browser = site.browser
    with watched(site):
        pid = page_process(site.daemon)
        freeze(pid)
        try:
            browser.wait(LOST, seconds=30)
        finally:
            os.kill(pid, signal.SIGCONT)
        browser.wait(FOUND, seconds=30)


def test_a_search_that_failed_is_told_of_and_made_again(site: Site) -> None:
    browser = site.browser
    site.send(mail("found at last"))
    site.view("live")
    browser.wait("document.querySelector('#facts dd')")
    site.daemon.stop()
    browser.run("location.hash = '#mail?subject=at+last'")
    browser.wait("document.querySelector('#found.problem')")
    assert "does not answer" in browser.text("#found")
    site.daemon.start()
    wait_for(lambda: subjects(browser) == ["found at last"], 30)
    assert not browser.run("return document.querySelector('#found.problem')")
    assert only_unreachable(browser)
