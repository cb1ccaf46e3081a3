"""Do hooks refuse what they are to refuse, and can a bad one hold up or lose anything else?"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from configobj import ConfigObj  # type: ignore[import-untyped]

from tests.accounting import Client, Mail, count, rows, send, simple, stuffed, table_of
from tests.functional.test_lmtp_live import LMTPClient
from tests.functional.test_reload import lines, reload
from tests.servers import ROOT, Gsmtpd, Settings, environment, merge, wait_for

# What it is asked of is in the recipient or the subject: each word is a way to behave.
HOOKS = """
import time
from gsmtpd.handlers.hooks import Incoming, Recipient, Reply, defer, refuse

def behave(word):
    if word == "hang":
        while True:
            time.sleep(1000)
    if word == "slow":
        time.sleep(0.3)
    if word == "slower":
        time.sleep(3.5)
    if word == "raise":
        raise ValueError("an example")
    if word == "nonsense":
        return 42
    if word == "close":
        return Reply(421, "4.3.2", "Go away")
    if word == "no":
        return refuse("I do not like it")
    if word == "later":
        return defer("I may like it soon")

def rcpt(about: Recipient):
    with open(__file__ + ".seen", "a") as seen:
        print(about.recipient, *about.recipients, file=seen)
    return behave(about.recipient.partition("@")[0])

def data(mail: Incoming):
    return behave(mail.message["Subject"])
"""
NO, LATER = "550 5.7.1 I do not like it", "451 4.7.1 I may like it soon"
TROUBLE = "451 4.3.0 Cannot check this mail now: try again later"
BOTH = {"rcpt": "own_hooks.rcpt", "data": "own_hooks.data"}
SMALL = {"limits": {"max_size": "64K", "max_memory": "1M"}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the hooks are."""
    (tmp_path / "own_hooks.py").write_text(HOOKS)
    return tmp_path


@pytest.fixture
def with_hooks(directory: Path) -> Callable[..., Settings]:
    """Settings with hooks, or those keys of [hooks] that are named, and others."""

    def settings(*others: Settings, **keys: str) -> Settings:
        made: Settings = {"hooks": {"directory": directory} | (keys or BOTH)}
        for each in others:
            made = merge(made, each)
        return made

    return settings


@pytest.fixture
def server(with_hooks: Callable[..., Settings]) -> Iterator[Gsmtpd]:
    with Gsmtpd(with_hooks({"hooks": {"time_limit": "30s"}})) as running:
        yield running


def subject(word: str, size: int = 0) -> Mail:
    return simple("x" * 70 + "\r\n" * (size // 2), Subject=word)


def answers(server: Gsmtpd, *words: str) -> list[str]:
    """What messages with these subjects hear, in one session, without their ids."""
    replies = send(server.address, *map(subject, words))
    return [re.sub(" as [0-9a-f]+$", "", reply.text) for reply in replies]


QUEUED = "250 2.0.0 OK: queued"


def test_a_recipient_is_refused(server: Gsmtpd, directory: Path) -> None:
    with Client(server.address) as client:
        client.hello().command("MAIL FROM:<a@example.org>")
        named = ("b@example.com", "no@example.com", "x@example.net", "c@example.com")
        said = [client.command(f"RCPT TO:<{each}>").text for each in named]
        assert said[1] == NO
        assert [text[:9] for text in said] == ["250 2.1.5", "550 5.7.1", "550 5.7.1", "250 2.1.5"]
        assert client.command("RCPT TO:<later@example.com>").text == LATER
        assert client.command("DATA").code == 354
        client.send(stuffed(b"Subject: x\r\n\r\nx\r\n"))
        assert client.reply().code == 250
    assert [row.recipient for row in rows(table_of(server))] == ["b@example.com", "c@example.com"]
    # It was not asked of the one that policy refuses.
    assert (directory / "own_hooks.py.seen").read_text().splitlines() == [
        "b@example.com",
        "no@example.com b@example.com",
        "c@example.com b@example.com",
        "later@example.com b@example.com c@example.com",
    ]
    wait_for(lambda: lines(server, LATER))
    (line,) = lines(server, NO)
    assert " result=refused " in line
    assert " from=<a@example.org> to=no@example.com " in line


def test_nobody_is_asked_of_what_is_discarded(
    with_hooks: Callable[..., Settings], directory: Path
) -> None:
    """Neither of the recipient nor of a message that is for nobody else."""
    lists = {"recipients": {"accept": "b@example.com", "unknown": "discard"}}
    with Gsmtpd(with_hooks(lists)) as server:
        mail = subject("no")
        (reply,) = send(server.address, mail._replace(recipients=("no@example.com",)))
        assert reply.code == 250
        both = mail._replace(recipients=("no@example.com", "b@example.com"))
        assert [reply.text for reply in send(server.address, both)] == [NO]
        assert count(table_of(server)) == 0
    assert (directory / "own_hooks.py.seen").read_text().splitlines() == [
        "b@example.com no@example.com"
    ]


def test_a_message_is_refused_and_not_stored(server: Gsmtpd) -> None:
    assert answers(server, "fine", "no", "later", "fine") == [QUEUED, NO, LATER, QUEUED]
    assert count(table_of(server)) == 2
    wait_for(lambda: lines(server, LATER))
    (line,) = lines(server, NO)
    assert " result=refused id=" in line
    assert " to=b@example.com recipients=1 size=" in line
    status = server.status()
    assert (status["accepted"], status["refused"]) == (2, 2)


def test_the_time_it_takes_is_in_the_delay(with_hooks: Callable[..., Settings]) -> None:
    """Of that mail, and not of the next ones, whether the hook is asked of them or not."""
    lists = {"recipients": {"accept": "b@example.com", "unknown": "discard"}}
    with Gsmtpd(with_hooks(lists)) as server:
        other = subject("x")._replace(recipients=("x@example.com",))
        mails = subject("slow"), other, subject("fine")
        assert [reply.code for reply in send(server.address, *mails)] == [250] * 3
        wait_for(lambda: len(lines(server, " delay=")) == 3)
        delays = [float(re.findall(r" delay=(\S+)", line)[0]) for line in lines(server, " delay=")]
        assert delays[0] >= 0.3 > max(delays[1:])


def test_a_client_is_not_silent_while_a_hook_is_asked(with_hooks: Callable[..., Settings]) -> None:
    settings = with_hooks({"limits": {"timeout": "1s"}, "hooks": {"time_limit": "30s"}})
    with Gsmtpd(settings) as server, Client(server.address) as client:
        client.hello().command("MAIL FROM:<a@example.org>")
        assert client.command("RCPT TO:<slower@example.com>").code == 250


def test_one_that_was_looked_up_before(with_hooks: Callable[..., Settings]) -> None:
    """The hook is asked behind that; what is not known is refused as ever."""
    query = {"recipients": {"query": "SELECT 1 FROM known WHERE address = %s", "query_ttl": "1s"}}
    with Gsmtpd(with_hooks(query)) as server:
        table = table_of(server)
        table.query("CREATE TABLE known (address text)")
        table.query("INSERT INTO known VALUES ('no@example.com'), ('b@example.com')")
        with Client(server.address) as client:
            client.hello().command("MAIL FROM:<a@example.org>")
            named = ("no", "b", "later")
            said = [client.command(f"RCPT TO:<{each}@example.com>").text[:9] for each in named]
            assert said == ["550 5.7.1", "250 2.1.5", "550 5.1.1"]


def test_what_is_refused_is_no_longer_in_memory(with_hooks: Callable[..., Settings]) -> None:
    """By hooks, or where its client does not wait for the end: far more than fits at a time."""
    with Gsmtpd(with_hooks(SMALL)) as server:
        large = subject("no", 60_000)
        assert {reply.text for reply in send(server.address, *[large] * 40)} == {NO}
        for _ in range(40):
            with Client(server.address) as client:
                slow = subject("slow", 60_000)
                if client.hello().begin(slow).code == 354:
                    client.send(stuffed(slow.content))
        # Those who are gone are still looked at; what was sent is given back behind that.
        wait_for(lambda: send(server.address, subject("fine", 60_000))[0].code == 250)
        assert answers(server, *["fine"] * 30) == [QUEUED] * 30
        assert {r.code for r in send(server.address, *[subject("fine", 60_000)] * 40)} == {250}


# --- those that do not work -----------------------------------------------------------------------


@pytest.mark.parametrize("word", ["raise", "nonsense", "close", "hang"])
@pytest.mark.parametrize("on_trouble", ["defer", "accept"])
def test_one_that_does_not_work(
    with_hooks: Callable[..., Settings], word: str, on_trouble: str
) -> None:
    """Both of them, more often than they have threads; and there is a line for each, not more."""
    settings = with_hooks({"hooks": {"time_limit": "200ms", "on_trouble": on_trouble}})
    accepts = on_trouble == "accept"
    with Gsmtpd(settings) as server:
        assert answers(server, *[word] * 6) == [QUEUED if accepts else TROUBLE] * 6
        with Client(server.address) as client:
            client.hello().command("MAIL FROM:<a@example.org>")
            said = [client.command(f"RCPT TO:<{word}@example.com>").text for _ in range(6)]
        assert said == ["250 2.1.5 Recipient ok" if accepts else TROUBLE] * 6
        assert count(table_of(server)) == (6 if accepts else 0)
        told = [line for line in lines(server, "level=warning") if "hook " in line]
        if word == "hang":  # that it is late, then that all threads are
            assert [line.count("hang") for line in told] == [0, 1, 0, 1]
        else:
            assert len(told) == 2
            assert lines(server, "Traceback") == (["  Traceback (most recent call last):"] * 2
                                                  if word == "raise" else [])  # fmt: skip
        assert server.stop() == 0


def test_one_that_hangs_holds_up_nobody_else(with_hooks: Callable[..., Settings]) -> None:
    """Who waits for it hears 451 in the end, and a stop does not wait as long."""
    settings = with_hooks(data="own_hooks.data", time_limit="30s")
    with Gsmtpd(settings) as server, hanging(server) as clients:
        for _ in range(4):
            with Client(server.address) as other:
                other.hello().command("MAIL FROM:<a@example.org>")
                assert other.command("RCPT TO:<b@example.com>").code == 250
                assert other.command("RSET").code == 250
        assert "hook data: 4 of 4 threads are in it" in server.dump()
        assert lines(server, "asking the hook data")
        os.kill(server.pid, signal.SIGTERM)
        assert {client.reply().code for client in clients} == {421}
        assert server.stop() == 0
        assert count(table_of(server)) == 0


@contextmanager
def hanging(server: Gsmtpd) -> Iterator[list[Client]]:
    """As many clients as there are threads, whose messages are looked at for ever."""
    clients = [Client(server.address) for _ in range(4)]
    try:
        for client in clients:
            mail = subject("hang")
            assert client.hello().begin(mail).code == 354
            client.send(stuffed(mail.content))
        wait_for(lambda: "4 of 4 threads are in it" in server.dump())
        yield clients
    finally:
        for client in clients:
            client.close()


# --- the protocol ---------------------------------------------------------------------------------


def test_each_recipient_of_lmtp_hears_it(with_hooks: Callable[..., Settings]) -> None:
    with Gsmtpd(with_hooks({"listen": {"mx": {"protocol": "lmtp"}}})) as server:
        with LMTPClient(server) as client:
            named = ("b@example.com", "no@example.com", "c@example.com")
            for word, wanted in (("no", NO), ("fine", QUEUED)):
                assert client.begin_for(*named) == [250, 550, 250]
                client.message(f"Subject: {word}\r\n\r\n".encode())
                assert all(client.reply().text.startswith(wanted) for _ in range(2))
            # No third one: the next reply is that of the next command.
            assert client.command("VRFY x").code == 252
        assert len(rows(table_of(server))) == 2


SESSION = (
    b"EHLO client.example\r\n"
    b"MAIL FROM:<a@example.org>\r\n"
    b"RCPT TO:<no@example.com>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<raise@example.com>\r\n"
    b"BDAT 13\r\nSubject: no\r\nBDAT 4 LAST\r\n\r\n\r\n"
    b"NOOP\r\nMAIL FROM:<>\r\nRCPT TO:<later@example.com>\r\nRCPT TO:<c@example.com>\r\n"
    b"BDAT 17 LAST\r\nSubject: fine\r\n\r\nMAIL FROM:<>\r\nRCPT TO:<no@example.com>\r\nQUIT\r\n"
)


def test_a_client_that_says_all_at_once_hears_what_one_hears_that_does_not(server: Gsmtpd) -> None:
    heard = []
    for step in (len(SESSION), 1, 7):
        with Client(server.address) as client:
            assert client.reply().code == 220
            for start in range(0, len(SESSION), step):
                client.send(SESSION[start : start + step])
            replies = []
            while (reply := client.reply()).code != 221:
                replies.append(re.sub("queued as .*", "queued", reply.text))
            assert client.closed()
        heard.append(replies)
    assert heard[0][2:] == [
        NO,
        "250 2.1.5 Recipient ok",
        TROUBLE,
        "250 2.0.0 13 octets received",
        NO,
        "250 2.0.0 Ok",
        "250 2.1.0 Sender ok",
        LATER,
        "250 2.1.5 Recipient ok",
        QUEUED,
        "250 2.1.0 Sender ok",
        NO,
    ]
    assert heard == heard[:1] * 3
    assert [row.recipient for row in rows(table_of(server))] == ["c@example.com"] * 3


# --- the configuration ----------------------------------------------------------------------------


def gsmtpd(server: Gsmtpd, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gsmtpd", "-c", str(server.conf), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


def test_a_reload_with_hooks_that_cannot_be_had(
    server: Gsmtpd, with_hooks: Callable[..., Settings], directory: Path
) -> None:
    """It is refused, and the old ones go on; -t and a start say the same."""
    file = directory / "own_hooks.py"
    old = server.workers
    for text, wrong in (
        (
            HOOKS.replace("def data", "def other"),
            "data: own_hooks.data: the module own_hooks has no",
        ),
        ("import nothing_like_it", "rcpt: own_hooks.rcpt: own_hooks cannot be loaded: Module"),
        ("1 / 0", "(own_hooks.py, line 1)"),
    ):
        file.write_text(text)
        (problem,) = reload(server)["problems"]
        assert wrong in problem
        assert problem.startswith(f"{server.conf}: [hooks] ")
        assert answers(server, "no", "fine") == [NO, QUEUED]
        for arguments in (("-t",), ("-n",)):
            tried = gsmtpd(server, "-p", str(server.port + 1), *arguments)
            assert (tried.returncode, tried.stderr) == (78, f"gsmtpd: {problem}\n")
    assert server.workers == old
    file.write_text(HOOKS.replace("I do not like it", "No longer"))
    assert reload(server)["problems"] == []
    assert answers(server, "no") == ["550 5.7.1 No longer"]
    assert gsmtpd(server, "-t").returncode == 0
    assert reload(server, {})["problems"] == []
    assert answers(server, "no") == [QUEUED]


def test_a_worker_that_dies_when_the_hooks_are_broken(server: Gsmtpd, directory: Path) -> None:
    """The log says why there is none; it is back when they are."""
    (directory / "own_hooks.py").write_text("1 / 0")
    [worker] = server.workers
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: lines(server, "cannot start: "))
    assert "[hooks] rcpt: own_hooks.rcpt: own_hooks cannot be loaded: Zero" in "".join(
        lines(server, "cannot start: ")
    )
    (directory / "own_hooks.py").write_text(HOOKS)
    wait_for(lambda: answers(server, "no") == [NO], 60)


@pytest.mark.parametrize("good", [True, False])
def test_under_inetd(with_hooks: Callable[..., Settings], directory: Path, good: bool) -> None:
    server = Gsmtpd(with_hooks())
    if not good:
        (directory / "own_hooks.py").write_text("1 / 0")
    said = subprocess.run(
        [sys.executable, "-m", "gsmtpd", "-c", str(server.conf), "--inetd"],
        check=False,
        input=b"",
        capture_output=True,
        timeout=60,
        env=environment(),
    )
    wanted = b"220 mx.example.com" if good else b"421 4.3.0 "
    assert said.stdout.startswith(wanted)
    assert (b"[hooks] rcpt: own_hooks.rcpt" in said.stderr) is not good


def test_the_example_of_the_document(tmp_path: Path) -> None:
    text = (ROOT / "docs/hooks.md").read_text()
    python, ini = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0]
                   for kind in ("python", "ini"))  # fmt: skip
    (tmp_path / "checks.py").write_text(python)
    keys = ConfigObj(ini.splitlines(), list_values=False).dict()["hooks"]
    assert keys["directory"] == "/etc/gsmtpd/hooks"
    with Gsmtpd({"hooks": keys | {"directory": tmp_path}}) as server:
        with Client(server.address) as client:
            client.hello().command("MAIL FROM:<>")
            said = [client.command(f"RCPT TO:<{each}@example.com>").text for each in "bc"]
            assert said == ["250 2.1.5 Recipient ok", "550 5.7.1 A bounce has one recipient"]
        mails = simple("x", **{"List-Id": "<x.example>"}), simple("x", Subject="x")
        replies = [reply.text[:36] for reply in send(server.address, *mails)]
        assert replies[0] == "550 5.7.1 No lists here, please"
        assert replies[1].startswith(QUEUED)
