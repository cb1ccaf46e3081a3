"""Does who waits for mail over HTTP get each, in order, once, and at once?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.accounting import Mail, send
from tests.conftest import make_schema
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for
from tests.status_client import WITHIN, Status, served


class Kept:
    """A running gsmtpd, and how it is asked."""

    def __init__(self, daemon: Gsmtpd, status: Status) -> None:
        self.daemon = daemon
        self.status = status
        self._count = 0

    def new(self, name: str = "someone") -> str:
        """An address that no test has used."""
        self._count += 1
        return f"{name}-{self._count}@example.com"

    def send(self, subject: str, *to: str) -> None:
        """Have mail stored."""
        mail = Mail(f"Subject: {subject}\r\n\r\nHello.\r\n".encode(), to)
        assert [reply.code for reply in send(self.daemon.address, mail)] == [250]


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    settings = {}
    if request.param == "mariadb":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        make_schema(mariadb, "waiting")
        settings = mysql_store(mariadb, "waiting") | {"server": {"processes": 2}}
    with served(settings) as (daemon, status):
        yield Kept(daemon, status)


def test_mail_that_is_there(kept: Kept) -> None:
    to = kept.new()
    kept.send("one", to)
    said = kept.status.get("/api/wait", to=to.upper())
    assert (said["mail"]["subject"], said["mail"]["recipient"]) == ("one", to)
    assert kept.status.get("/api/wait", to=f"<{to}>") == said
    whole = kept.status.get(f"/api/mails/{said['mail']['id']}")
    assert said["mail"].items() <= whole.items()


def test_mail_that_comes(kept: Kept, background: ThreadPoolExecutor) -> None:
    to = kept.new()
    waiting = background.submit(kept.status.get, "/api/wait", to=to, timeout=30)
    wait_for(lambda: connections(kept.status.port) > 0)
    kept.send("to another", kept.new())
    kept.send("to me", to)
    assert waiting.result()["mail"]["subject"] == "to me"


def test_each_once_and_in_order(kept: Kept, background: ThreadPoolExecutor) -> None:
    to, other = kept.new(), kept.new()
    number = 60
    sending = background.submit(
        lambda: [kept.send(f"number {n}", to, other) for n in range(number)]
    )
    found, cursor = [], {}
    while len(found) < number:
        said = kept.status.get("/api/wait", to=to, timeout=30, **cursor)
        cursor = {"after": said["cursor"]}
        found.append(said["mail"]["subject"])
    sending.result()
    assert found == [f"number {n}" for n in range(number)]
    said = kept.status.get("/api/wait", to=to, timeout=0, **cursor)
    assert said["mail"] is None
    assert kept.status.get("/api/wait", to=to, timeout=0.1, after=said["cursor"])["mail"] is None


def test_two_who_wait_for_the_same(kept: Kept, background: ThreadPoolExecutor) -> None:
    to = kept.new()
    waiting = [background.submit(kept.status.get, "/api/wait", to=to) for _ in range(2)]
    wait_for(lambda: connections(kept.status.port) > 1)
    kept.send("for both", to)
    assert [each.result()["mail"]["subject"] for each in waiting] == ["for both"] * 2


def test_a_reload_ends_the_wait_with_a_cursor(kept: Kept, background: ThreadPoolExecutor) -> None:
    to = kept.new()
    waiting = background.submit(kept.status.ask, "/api/wait", to=to, timeout=300)
    wait_for(lambda: connections(kept.status.port) > 0)
    kept.daemon.ctl("reload")
    said = waiting.result()
    assert (said.status, said.headers["retry-after"]) == (503, "1")
    assert [*said.json] == ["error", "cursor"]
    assert said.json["error"].startswith("gsmtpd reloads or stops; ask again")
    assert said.headers["connection"] == "close"
    kept.send("behind the reload", to)
    again = kept.status.get("/api/wait", to=to, after=said.json["cursor"])
    assert again["mail"]["subject"] == "behind the reload"


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("", "to is missing"),
        ("to=", "to: say some text"),
        ("to=nope", "to: 'nope' is no address; write one like user@example.com"),
        ("to=a@example.com&after=!", "after: '!' is no cursor"),
        ("to=a@example.com&after=zzz", "after: 'zzz' is no cursor; give one back as it came"),
        ("to=a@example.com&timeout=301", "timeout: '301' is not a number of seconds from 0 to 300"),
        ("to=a@example.com&timeout=x", "timeout: 'x' is not"),
        ("to=a@example.com&to=b@example.com", "to is there twice"),
        ("to=a@example.com&limit=1", "unknown parameter 'limit'; it takes to, after, timeout"),
    ],
)
def test_what_cannot_be_waited_for(kept: Kept, query: str, wrong: str) -> None:
    said = kept.status.ask(f"/api/wait?{query}")
    assert said.status == 400
    assert said.json["error"].startswith(wrong)


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_has_all_that_comes(kept: Kept) -> None:
    to = kept.new()
    with kept.status.events("/api/stream") as events:
        # What it has said by now is where it begins.
        kept.send("one", to)
        kept.send("two", to, kept.new())
        found = [events.next() for _ in range(3)]
    assert [each.name for each in found] == ["mail"] * 3
    assert [each.data["subject"] for each in found] == ["one", "two", "two"]


@pytest.mark.parametrize("more", ["", "&most=50"])
@pytest.mark.parametrize(
    "wanted", ["to={}", "to=%3C{}%3E", "domain=EXAMPLE.com", "domain=@example.com"]
)
def test_a_stream_of_some(
    kept: Kept, background: ThreadPoolExecutor, wanted: str, more: str
) -> None:
    to = kept.new("Streamed")
    with kept.status.events(f"/api/stream?{wanted.format(to.lower())}{more}") as events:
        if wanted.startswith("to"):
            kept.send("for another", kept.new())
        kept.send("for me", to)
        found = background.submit(events.next)
        try:
            assert found.result(WITHIN).data["subject"] == "for me"
        finally:
            events.hang_up()


def test_a_stream_of_the_newest(kept: Kept) -> None:
    to = kept.new()
    with kept.status.events("/api/stream?most=2") as events:
        kept.send("all of them", to, kept.new(), kept.new(), kept.new(), kept.new())
        kept.send("the last", to)
        found = []
        while not found or found[-1] != "the last":
            found.append(events.next().data["subject"])
    assert len(found) <= 5


def test_a_stream_goes_on_where_it_was(kept: Kept) -> None:
    to = kept.new()
    with kept.status.events(f"/api/stream?to={to}") as events:
        kept.send("one", to)
        assert events.next().data["subject"] == "one"
    kept.send("two", to)  # nobody listens
    with kept.status.events(f"/api/stream?to={to}", {"Last-Event-ID": events.id}) as events:
        kept.send("three", to)
        found = []
        while not found or found[-1] != "three":
            found.append(events.next().data["subject"])
    # At least once: what came just before the end may come again.
    assert found in (["two", "three"], ["one", "two", "three"])


def test_a_reload_ends_a_stream_and_the_next_goes_on(kept: Kept) -> None:
    to = kept.new()
    with kept.status.events(f"/api/stream?to={to}") as events:
        kept.send("one", to)
        assert events.next().data["subject"] == "one"
        kept.daemon.ctl("reload")
        with pytest.raises(EOFError):
            events.next()
    kept.send("two", to)
    with kept.status.events(f"/api/stream?to={to}&after={events.id}") as events:
        assert [events.next().data["subject"]][-1] in ("one", "two")


def test_a_reload_amid_of_mail_loses_none_of_a_stream(
    kept: Kept, background: ThreadPoolExecutor
) -> None:
    """What a browser's EventSource does: it comes again, with the last id that it was told."""
    to = kept.new()
    subjects = [f"number {n}" for n in range(40)]
    begun = threading.Semaphore(0)
    ended, sent = threading.Event(), threading.Event()

    def send_all() -> None:
        assert begun.acquire(timeout=30)
        reloading = background.submit(kept.daemon.ctl, "reload")
        for each in subjects[:-2]:
            kept.send(each, to)
        reloading.result()
        assert ended.wait(30)
        kept.send(subjects[-2], to)  # nobody listens
        sent.set()
        assert begun.acquire(timeout=30)
        kept.send(subjects[-1], to)

    sending = background.submit(send_all)
    found: list[str] = []
    last: dict[str, str] = {}
    while subjects[-1] not in found:
        with kept.status.events(f"/api/stream?to={to}", last) as events, suppress(EOFError):
            while not events.id:
                events.step()
            begun.release()
            while subjects[-1] not in found:
                found.append(events.next().data["subject"])
        ended.set()
        assert sent.wait(30)
        last = {"Last-Event-ID": events.id}
    sending.result()
    assert list(dict.fromkeys(found)) == subjects


def test_live_samples(kept: Kept) -> None:
    with kept.status.events("/api/live") as events:
        first, second = events.next(), events.next()
    assert (first.name, second.name) == ("sample", "sample")
    assert 0.5 < second.data["time"] - first.data["time"] < 5
    columns = kept.status.get("/api/history", seconds=10, step=1)["columns"]
    assert [*first.data] == columns


def connections(port: int) -> int:
    """How many connections to that port are open."""
    local = f":{port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as file:
        fields = [line.split() for line in file]
    return sum(each[1].endswith(local) and each[3] == "01" for each in fields)
