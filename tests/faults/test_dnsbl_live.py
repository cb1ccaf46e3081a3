"""What do real name servers say of a client, and what if they say nothing or nonsense?"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsmtpd.policy import nameservers
from gsmtpd.policy.dnsbl import FAILURE_TTL, LONGEST, MAX_QUESTIONS, Blocklists, parse_blocklist
from tests.nameserver import Rbldnsd, black_hole
from tests.servers import free_port

ZEN = "zen.example.org"
BAD = "bad.example.net"
LONG = 30.0  # seconds; as a time budget: no test may come near it
SHORT = 0.3


class Asker:
    """Asks, and collects what is answered."""

    def __init__(self, blocklists: Blocklists) -> None:
        self.blocklists = blocklists
        self.answers: queue.SimpleQueue[tuple[str, str, float, str]] = queue.SimpleQueue()

    def post(self, ip: str) -> None:
        """Ask, and go on."""
        self.blocklists.ask(
            ip,
            lambda text, ttl: self.answers.put((ip, text, ttl, threading.current_thread().name)),
        )

    def ask(self, ip: str) -> tuple[str, float]:
        """The answer."""
        self.post(ip)
        asked, text, ttl, thread = self.answers.get(timeout=2 * LONG)
        assert (asked, thread) == (ip, "dnsbl")
        return text, ttl


@contextmanager
def asking(
    resolver: tuple[str, int] | None, zones: Sequence[str] = (ZEN,), timeout: float = LONG
) -> Iterator[Asker]:
    """Blocklists that run."""
    blocklists = Blocklists([parse_blocklist(zone) for zone in zones], timeout, resolver)
    blocklists.start()
    try:
        yield Asker(blocklists)
    finally:
        blocklists.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Rbldnsd]:
    """Two blocklists."""
    zones = {
        ZEN: [
            "1.2.3.4 :127.0.0.2:See https://example.org/?q=$",
            "1.2.3.5 :127.0.0.10:dynamic",
            "1.2.3.6 :127.255.255.254:Error: open resolver",
            "1.2.3.7 :203.0.113.7:Buy this domain",
            f"1.2.3.8 :127.0.0.2:{'long ' * 45}",
            "1.2.3.9 :127.0.0.2:",
            "2606:4700::1 :127.0.0.3:six",
        ],
        BAD: ["1.2.3.5 :127.0.0.2:bad", "1.2.3.6 :127.0.0.2:bad as well"],
    }
    with Rbldnsd(zones, ttl=300, negative_ttl=120) as running:
        yield running


# --- A server that answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "text", "ttl"),
    [
        ("1.2.3.4", f"{ZEN}: See https://example.org/?q=1.2.3.4", 300),
        ("::ffff:1.2.3.4", f"{ZEN}: See https://example.org/?q=1.2.3.4", 300),
        ("2606:4700::1", f"{ZEN}: six", 300),
        ("1.2.3.8", f"{ZEN}: {'long ' * 45}"[:200], 300),
        ("1.2.3.9", ZEN, 300),
        ("9.9.9.9", "", 120),
        ("2606:4700::2", "", 120),
        ("1.2.3.6", "", 300),
        ("1.2.3.7", "", 300),
        ("192.168.1.1", "", LONGEST),
        ("fe80::1%eth0", "", LONGEST),
        ("", "", LONGEST),
    ],
)
def test_what_a_list_says(server: Rbldnsd, ip: str, text: str, ttl: float) -> None:
    with asking(server.address) as asker:
        assert asker.ask(ip) == (text, ttl)


def test_which_answers_count(server: Rbldnsd) -> None:
    with asking(server.address, [f"{ZEN}=127.0.0.0/29"]) as asker:
        assert asker.ask("1.2.3.5") == ("", 300)
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)


def test_one_of_several_lists_is_enough(server: Rbldnsd) -> None:
    with asking(server.address, [ZEN, BAD]) as asker:
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)
        assert asker.ask("1.2.3.6") == (f"{BAD}: bad as well", 300)
        assert asker.ask("9.9.9.9") == ("", 120)
    with asking(server.address, [f"{ZEN}=127.0.0.2", BAD]) as asker:
        assert asker.ask("1.2.3.5") == (f"{BAD}: bad", 300)


@pytest.mark.parametrize(("given", "kept"), [(1, 60), (61, 61), (86400, 3600)])
def test_how_long_an_answer_is_kept_is_bounded(given: int, kept: float) -> None:
    with (
        Rbldnsd({ZEN: ["1.2.3.4 :2:x"]}, ttl=given, negative_ttl=given) as server,
        asking(server.address) as asker,
    ):
        assert asker.ask("1.2.3.4") == (f"{ZEN}: x", kept)
        assert asker.ask("9.9.9.9") == ("", kept)


def test_a_server_may_be_given_by_name(server: Rbldnsd) -> None:
    with asking(("localhost", server.port)) as asker:
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)


def test_the_words_of_the_list_are_not_waited_for(
    server: Rbldnsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = nameservers.NameServers.ask

    async def no_words(self: nameservers.NameServers, name: str, kind: str) -> object:
        if kind == "TXT":
            raise OSError("lost")
        return await ask(self, name, kind)

    monkeypatch.setattr(nameservers.NameServers, "ask", no_words)
    with asking(server.address) as asker:
        assert asker.ask("1.2.3.4") == (ZEN, 300)


# --- A server that does not -----------------------------------------------------------------------


def test_a_list_that_refuses_is_said_once(
    server: Rbldnsd, caplog: pytest.LogCaptureFixture
) -> None:
    with asking(server.address) as asker:
        for _ in range(3):
            asker.ask("1.2.3.6")
    assert len(caplog.messages) == 1
    assert f"dnsbl {ZEN}: answers 127.255.255.254" in caplog.text


def test_a_zone_that_the_server_does_not_have(
    server: Rbldnsd, caplog: pytest.LogCaptureFixture
) -> None:
    with asking(server.address, ["other.example", BAD]) as asker:
        assert asker.ask("9.9.9.9") == ("", FAILURE_TTL)
        assert asker.ask("1.2.3.5") == (f"{BAD}: bad", 300)
    assert "dnsbl other.example: " in caplog.text
    assert "REFUSED" in caplog.text


def test_a_server_that_is_killed_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Rbldnsd({ZEN: ["1.2.3.4 :2:x"]})
    with server, asking(server.address, timeout=4) as asker:
        assert asker.ask("1.2.3.4") == (f"{ZEN}: x", 300)
        server.kill()
        for _ in range(2):
            assert asker.ask("1.2.3.4") == ("", FAILURE_TTL)
        gone = f"dnsbl {ZEN}: no answer within 4 s; clients are served as if not listed"
        assert caplog.messages == [gone]
        server.start()
        assert asker.ask("1.2.3.4") == (f"{ZEN}: x", 300)
        assert caplog.messages == [gone, f"dnsbl {ZEN}: answers again"]


def test_a_server_that_never_answers(caplog: pytest.LogCaptureFixture) -> None:
    with black_hole() as hole, asking(hole, [ZEN, BAD], SHORT) as asker:
        for number in range(200):
            asker.post(f"9.9.9.{number}")
        for _ in range(200):
            assert asker.answers.get(timeout=LONG)[1:3] == ("", FAILURE_TTL)
    assert len(caplog.messages) == 2


def test_the_next_server_of_the_system_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Rbldnsd
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search example.com\nnameserver 127.0.0.2\nnameserver 127.0.0.1\n")
    monkeypatch.setattr(nameservers, "RESOLV_CONF", str(conf))
    monkeypatch.setattr(nameservers, "PORT", server.port)
    with black_hole("127.0.0.2", server.port), asking(None, timeout=3) as asker:
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)


def test_without_name_servers_nobody_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nameservers, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    with asking(None) as asker:
        assert asker.ask("1.2.3.4") == ("", FAILURE_TTL)
    with asking(("a..a.invalid", free_port())) as asker:
        assert asker.ask("1.2.3.4") == ("", FAILURE_TTL)


# --- Many -----------------------------------------------------------------------------------------


def addresses(number: int) -> list[str]:
    """Public ones."""
    return [f"9.{n // 62500 + 1}.{n // 250 % 250}.{n % 250 + 1}" for n in range(number)]


def test_more_than_may_be_under_way(caplog: pytest.LogCaptureFixture) -> None:
    # The hole keeps all of them under way until the last one was asked.
    with black_hole() as hole, asking(hole) as asker:
        for ip in addresses(2 * MAX_QUESTIONS):
            asker.post(ip)
        ips = [asker.answers.get(timeout=LONG)[0] for _ in range(MAX_QUESTIONS)]
        assert sorted(ips) == sorted(addresses(2 * MAX_QUESTIONS)[MAX_QUESTIONS:])
        assert asker.answers.empty()
        assert "dnsbl: 1000 questions are under way already" in caplog.text
        asker.blocklists.stop()
        ips = [asker.answers.get(timeout=LONG)[0] for _ in range(MAX_QUESTIONS)]
        assert sorted(ips) == sorted(addresses(MAX_QUESTIONS))


def test_two_thousand_at_once_and_then_again(server: Rbldnsd) -> None:
    # What the kernel drops of such a flood is asked for again after half of the time.
    with asking(server.address, timeout=4) as asker:
        for _ in range(2):
            for ip in [*addresses(1999), "1.2.3.4"]:
                asker.post(ip)
            answers = [asker.answers.get(timeout=2 * LONG) for _ in range(2000)]
            assert {ip for ip, *_ in answers} == {*addresses(1999), "1.2.3.4"}
            assert {text for ip, text, *_ in answers if ip != "1.2.3.4"} == {""}
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)  # all have left room for others


def test_who_asks_for_the_same_client_shares_the_answer() -> None:
    with black_hole() as hole, asking(hole, timeout=SHORT) as asker:
        for _ in range(3 * MAX_QUESTIONS):
            asker.post("1.2.3.4")
        answers = [asker.answers.get(timeout=LONG) for _ in range(3 * MAX_QUESTIONS)]
        assert set(answers) == {("1.2.3.4", "", FAILURE_TTL, "dnsbl")}


def test_one_who_does_not_like_the_answer_is_not_in_the_way(
    server: Rbldnsd, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(text: str, ttl: float) -> None:
        raise ZeroDivisionError

    with asking(server.address) as asker:
        asker.blocklists.ask("1.2.3.4", fail)
        assert asker.ask("1.2.3.4")[0].startswith(ZEN)
    assert "ZeroDivisionError" in caplog.text


# --- The end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_start", [False, True])
def test_stop_answers_all(head_start: bool) -> None:
    with black_hole() as hole, asking(hole, [ZEN, BAD]) as asker:
        for ip in addresses(300):
            asker.post(ip)
        if head_start:  # in turn: once this one is answered, all before it have begun
            asker.post("10.0.0.1")
            assert asker.answers.get(timeout=LONG)[0] == "10.0.0.1"
        asker.blocklists.stop()
        answers = [asker.answers.get_nowait() for _ in range(300)]
        assert Counter(ip for ip, *_ in answers) == Counter(addresses(300))
        assert {answer[1:] for answer in answers} == {("", FAILURE_TTL, "dnsbl")}
        assert asker.answers.empty()


def test_asking_while_it_stops_and_when_it_has_stopped() -> None:
    with black_hole() as hole, asking(hole) as asker:
        stopped = threading.Event()
        count = 0

        def stop() -> None:
            asker.blocklists.stop()
            stopped.set()

        stopper = threading.Thread(target=stop)
        for number, ip in enumerate(addresses(60000)):
            if number == 100:
                stopper.start()
            ended = stopped.is_set()
            asker.post(ip)
            count += 1
            if ended:
                break
        stopper.join()
        assert sum(1 for _ in range(count) if asker.answers.get(timeout=LONG)) == count
        assert asker.answers.empty()
    asker.post("1.2.3.4")
    assert asker.answers.get_nowait()[:3] == ("1.2.3.4", "", FAILURE_TTL)


def test_it_leaves_no_thread_and_starts_again(server: Rbldnsd) -> None:
    with asking(server.address) as asker:
        for _ in range(2):
            assert asker.ask("1.2.3.4")[0].startswith(ZEN)
            asker.blocklists.stop()
            assert "dnsbl" not in {thread.name for thread in threading.enumerate()}
            asker.blocklists.start()
        assert asker.ask("9.9.9.9") == ("", 120)
