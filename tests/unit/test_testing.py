"""Does TestServer do for a test what docs/testing.md says of it?"""

from __future__ import annotations

import ast
import errno
import gc
import logging
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP
from importlib import import_module
from pathlib import Path

import pytest

from gsmtpd.testing import NoMailError, TestServer
from tests.certificates import Authority
from tests.servers import ROOT, find_program, wait_for

ME = "app@example.org"
JOE = "joe@example.com"
MANUAL = ROOT / "docs" / "testing.md"
FILES = ["app.py", "test_app.py", "test_unittest.py", "test_trouble.py"]  # in it


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server() -> Iterator[TestServer]:
    with TestServer() as server:
        yield server


def send(server: TestServer, *recipients: str, subject: str = "Hello", text: str = "Hi!\n") -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = ME, ", ".join(recipients), subject
    message.set_content(text)
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.send_message(message)


def codes(server: TestServer, *recipients: str) -> list[int]:
    """What each recipient hears."""
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.ehlo()
        client.mail(ME)
        return [client.rcpt(each)[0] for each in recipients]


def descriptors() -> set[str]:
    """The open files of this process, each with what it is."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{path.name} {path.readlink()}")
        except OSError:
            continue  # that of the directory itself
    return found


def logging_handlers() -> list[object]:
    """What handles log records, of all loggers."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [handler for each in loggers for handler in getattr(each, "handlers", ())]


# What comes back


def test_what_was_sent_is_what_comes_back(server: TestServer) -> None:
    sent = EmailMessage()
    sent["From"], sent["To"], sent["Subject"] = ME, "Joe <joe@example.com>", "Grüße, Joe"
    sent.set_content("Guten Tag,\n.\n..\nbis bald!\n")
    sent.add_attachment(b"\r\n\0\r", "application", "octet-stream", filename="a.bin")
    sent.set_boundary("=-=")
    with smtplib.SMTP(server.host, server.port, "app.example.org", timeout=10) as client:
        client.send_message(sent)
    got = server.wait(to=JOE)
    assert isinstance(got, EmailMessage)
    assert got.raw == sent.as_bytes(policy=SMTP)
    assert got["Subject"] == "Grüße, Joe"
    text, attached = got.iter_parts()
    assert isinstance(text, EmailMessage)
    assert text.get_content() == "Guten Tag,\n.\n..\nbis bald!\n"
    assert isinstance(attached, EmailMessage)
    assert attached.get_content() == b"\r\n\0\r"
    envelope = got.envelope
    assert (envelope.sender, envelope.recipient, envelope.recipients) == (ME, JOE, (JOE,))
    assert (envelope.helo, envelope.client_ip) == ("app.example.org", "127.0.0.1")
    assert (envelope.tls, len(envelope.id)) == ("", 32)


def test_a_binary_message_is_parsed_as_it_is(server: TestServer) -> None:
    content = (
        b"Content-Type: application/x-a\r\nContent-Transfer-Encoding: binary\r\n\r\n\r\n\0\r\n"
    )
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.ehlo()
        client.mail("", ["BODY=BINARYMIME"])
        client.rcpt(JOE)
        client.putcmd("BDAT", f"{len(content)} LAST")
        client.send(content)
        code, text = client.getreply()
    got = server.wait()
    assert code == 250
    assert got.envelope.id in text.decode()
    assert got.envelope.sender == ""
    assert got.get_content() == b"\r\n\0\r\n"


def test_swaks_is_served(server: TestServer) -> None:
    swaks = [find_program("swaks"), "--server", f"{server.host}:{server.port}", "--to", JOE]
    subprocess.run(swaks, check=True, capture_output=True, timeout=60)
    assert server.wait(to=JOE).get_content().startswith("This is a test mailing")


# Waiting


def test_wait_returns_the_oldest_that_fits_and_each_once(server: TestServer) -> None:
    send(server, "ann@example.com", subject="one")
    send(server, "Joe@Example.COM", "ann@example.com", subject="two")
    send(server, JOE, subject="three")
    assert [m["Subject"] for m in server.messages] == ["one", "two", "two", "three"]
    assert server.wait(to="JOE@example.com", subject="hre")["Subject"] == "three"
    assert server.wait(to="JOE@example.com")["Subject"] == "two"
    assert [server.wait()["Subject"] for _ in range(2)] == ["one", "two"]
    with pytest.raises(NoMailError):
        server.wait(timeout=0)
    assert len(server.messages) == 4
    server.clear()
    assert server.messages == []


def test_the_domain_may_be_written_either_way(server: TestServer) -> None:
    with smtplib.SMTP(server.host, server.port, timeout=10) as client:
        client.ehlo()
        client.mail(ME, ["SMTPUTF8"])
        client.command_encoding = "utf-8"
        client.rcpt("jörg@bücher.example")
        client.data("Subject: hello\n\n")
    assert server.wait(to="JÖRG@xn--bcher-kva.example", timeout=0)["Subject"] == "hello"


def test_who_waits_gets_what_comes_meanwhile(server: TestServer) -> None:
    """Many at once: each mail goes to one of those who wait for its recipient, and to no other."""
    names = [f"user{number % 4}@example.com" for number in range(24)]
    with ThreadPoolExecutor(24) as threads:
        waiting = [threads.submit(server.wait, name, 60.0) for name in names]
        for number, name in enumerate(names):
            send(server, name, subject=f"mail {number}")
        got = [future.result() for future in waiting]
    assert [m.envelope.recipient for m in got] == names
    assert len({m["Subject"] for m in got}) == len(names)


def test_what_did_not_come_is_explained(server: TestServer) -> None:
    server.reject = {"bob@example.com"}
    send(server, "ann@example.com", subject="Welcome, Ann")
    server.wait(to="ann@example.com")
    send(server, "joan@example.com", subject="Wel\tcome")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(server, "bob@example.com")
    wait_for(lambda: "refused" in explained(server))
    assert explained(server).splitlines() == [
        'no mail to joe@example.com with "Welcome" in its subject came within 0 s; this has come:',
        '  to ann@example.com: "Welcome, Ann" (an earlier wait has returned it)',
        '  to joan@example.com: "Wel come"',
        "this was refused:",
        "  bob@example.com: 550 5.1.1 No such user here",
    ]
    for number in range(25):
        send(server, f"user{number}@example.com")
    lines = explained(server).splitlines()
    assert lines[1] == "  7 more before"
    assert lines[22] == "this was refused:"
    server.clear()
    assert explained(server).endswith("; nothing has come:")


def explained(server: TestServer) -> str:
    with pytest.raises(TimeoutError) as caught:
        server.wait(to=JOE, timeout=0, subject="Welcome")
    return str(caught.value)


@pytest.mark.parametrize("to", ["", "joe", "Joe <joe@example.com>", "@example.com"])
def test_what_is_no_address_is_not_waited_for(server: TestServer, to: str) -> None:
    with pytest.raises(ValueError, match="is not an address; write one like user@example.com"):
        server.wait(to=to, timeout=60)


# What a program must be able to stand


def test_recipients_are_rejected_and_deferred() -> None:
    with TestServer(
        domains={".example.com"}, reject={"Bad", "@gone.example.com"}, defer={"slow@example.com"}
    ) as server:
        asked = ["bad@example.com", "x@gone.example.com", "SLOW@example.com", JOE, "a@b.example"]
        assert codes(server, *asked) == [550, 550, 451, 250, 550]
        server.reject, server.defer = (), {JOE}
        assert codes(server, *asked) == [250, 250, 250, 451, 550]
        server.defer = ()  # the program tries again
        send(server, JOE)
        assert server.wait(timeout=0).envelope.recipient == JOE


def test_a_message_may_be_too_large() -> None:
    with TestServer(max_size=1000, host_name="mx.example.net") as server:
        with pytest.raises(smtplib.SMTPSenderRefused) as caught:
            send(server, JOE, text="x" * 70 + "\n" * 1000)
        assert caught.value.smtp_code == 552
        with smtplib.SMTP(server.host, server.port, timeout=10) as client:
            client.ehlo()
            assert client.ehlo_resp is not None
            assert client.ehlo_resp.startswith(b"mx.example.net")


def test_starttls(authority: Authority) -> None:
    pair = authority.pair("127.0.0.1")
    with TestServer(tls="required", certificate=pair.certificate, key=pair.key) as server:
        with pytest.raises(smtplib.SMTPSenderRefused, match="STARTTLS"):
            send(server, JOE)
        with smtplib.SMTP(server.host, server.port, timeout=10) as client:
            client.starttls(context=authority.client())
            client.sendmail(ME, [JOE], "Subject: secret\n\n")
        assert server.wait(to=JOE, timeout=0).envelope.tls.startswith("TLSv1.3:")


def test_tls_from_the_first_octet(authority: Authority) -> None:
    one = authority.pair("127.0.0.1", one_file=True).certificate
    with TestServer(tls="implicit", certificate=one) as server:
        context = authority.client()
        with smtplib.SMTP_SSL(server.host, server.port, context=context, timeout=10) as client:
            client.sendmail(ME, [JOE], "Subject: secret\n\n")
        assert server.wait(to=JOE, timeout=0).envelope.tls


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (
            lambda: TestServer(reject="bad@example.com"),
            r'write a collection, as {"bad@example.com"}',
        ),
        (lambda: TestServer(domains="*"), r'write a collection, as {"\*"}'),
        (lambda: TestServer(defer=["*@example.com"]), "write @example.com for all"),
        (lambda: TestServer(domains=["@example.com"]), "write it without @"),
        (lambda: TestServer(host_name="a b"), "write one like mail.example.com"),
        (lambda: TestServer(max_size=0), "write a number of octets above 0"),
        (lambda: TestServer(tls="yes"), "write one of off, starttls, required, implicit"),  # type: ignore[arg-type]
        (lambda: TestServer(tls="starttls"), "tls and certificate need each other"),
        (lambda: TestServer(certificate="a.pem"), "tls and certificate need each other"),
    ],
)
def test_a_wrong_option_is_refused(make: Callable[[], TestServer], right: str) -> None:
    with pytest.raises(ValueError, match=right):
        make()


# Beginning and end


def many_servers_leave_nothing_behind() -> None:
    with TestServer() as server:  # what Python opens once, as for random numbers
        send(server, JOE)
    gc.collect()
    before = descriptors(), set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    log_handlers = logging_handlers()
    servers = [TestServer() for _ in range(20)]
    for number, each in enumerate(servers):
        each.__enter__()
        send(each, f"user{number}@example.com")
    left = smtplib.SMTP(servers[0].host, servers[0].port, timeout=10)
    ports = {each.port for each in servers}
    assert len(ports) == 20
    assert len(descriptors() - before[0]) >= 3 * 20  # epoll, eventfd, listener
    for each in servers:
        each.__exit__(None, None, None)
    left.close()
    more = descriptors() - before[0]
    assert not more, more
    assert set(threading.enumerate()) <= before[1]
    for port in ports:
        assert is_refused(port)
    for number, each in enumerate(servers):
        assert [m.envelope.recipient for m in each.messages] == [f"user{number}@example.com"]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert logging_handlers() == log_handlers


def test_many_servers_leave_nothing_behind() -> None:
    """In a process of its own: threads of other tests open descriptors in this one."""
    code = "from tests.unit import test_testing as t; t.many_servers_leave_nothing_behind()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_a_client_that_is_about_to_leave_is_heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wait` returns before the client has heard its 250: the end of the test must not break it."""
    monkeypatch.setattr("gsmtpd.testing.server._QUIET", 60.0)
    monkeypatch.setattr("gsmtpd.testing.server._AT_MOST", 60.0)
    server = TestServer().__enter__()
    port = server.port
    client = smtplib.SMTP(server.host, port, timeout=10)
    stopping = threading.Thread(target=server.__exit__, args=(None, None, None))
    stopping.start()
    wait_for(lambda: is_refused(port))
    for _ in range(50):  # fewer than a session may have without mail
        assert client.noop()[0] == 250
    assert client.quit()[0] == 221  # smtplib raises for another answer at the end of a `with`
    stopping.join()


def is_refused(port: int) -> bool:
    """Whether nobody listens on `port`."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_who_stays_silent_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsmtpd.testing.server._AT_MOST", 3600.0)
    with TestServer() as server:
        client = smtplib.SMTP(server.host, server.port, timeout=60)
        client.ehlo()
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.noop()


def test_it_may_go_away_and_come_back() -> None:
    server = TestServer()
    with pytest.raises(RuntimeError, match="with TestServer"):
        _ = server.port
    with server:
        port = server.port
        send(server, JOE)
        with pytest.raises(RuntimeError, match="running already"):
            server.__enter__()
    with pytest.raises(NoMailError, match="the server is stopped"):
        server.wait(to="ann@example.com", timeout=600)
    assert server.wait(to=JOE, timeout=0)["Subject"] == "Hello"
    with TestServer(port=port) as again:
        assert again.port == port
        with pytest.raises(OSError, match=f"{port}: Address already in use; leave port out"):
            TestServer(port=port).__enter__()
    with server:
        send(server, "ann@example.com")
        assert server.wait(to="ann@example.com").envelope.recipient == "ann@example.com"


def test_it_needs_no_database_and_no_configuration() -> None:
    program = (
        "import sys; from gsmtpd.testing import TestServer\n"
        "with TestServer(): pass\n"
        "print({'sqlite3', 'pymysql', 'dbutils', 'configobj', 'asyncio'} & set(sys.modules))"
    )
    assert run(sys.executable, "-c", program).strip() == "set()"


# With pytest

STRANGER = """
import smtplib
from gsmtpd.testing import TestServer  # is no class of tests


def test_first(gsmtpd_server):
    with smtplib.SMTP(gsmtpd_server.host, gsmtpd_server.port) as client:
        client.sendmail("a@example.org", ["joe@example.com"], "Subject: hello\\n\\nHi!\\n")
    assert gsmtpd_server.wait(to="joe@example.com")["Subject"] == "hello"


def test_second_has_none_of_that(gsmtpd_server):
    assert gsmtpd_server.messages == []
"""


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a program says; it knows gsmtpd, and none of pytest's options from here.

    Of plugins it has those that it names: ours may be one that is installed, or not.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stranger_uses_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(STRANGER)
    options = ("-p", plugin(), "-W", "error", "-p", "no:cacheprovider", "-q")
    python = (sys.executable, "-m", "pytest")
    assert "2 passed" in run(*python, *options, cwd=tmp_path)
    assert "2 passed" in run(*python, *options, "-p", "xdist", "-n", "2", cwd=tmp_path)
    assert "A mail server for this test alone" in run(*python, *options, "--fixtures", cwd=tmp_path)


def test_the_examples_of_the_manual_work(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    assert [name for name, _ in blocks] == FILES
    options = ("-p", plugin(), "-W", "error", "-p", "no:cacheprovider", "-q")
    assert "5 passed" in run(sys.executable, "-m", "pytest", *options, cwd=tmp_path)


def test_the_plugin_imports_nothing_for_those_who_do_not_use_it() -> None:
    program = (
        f"import sys, pytest, {plugin()}\n"
        "print([name for name in sys.modules if name.startswith('gsmtpd')])"
    )
    assert run(sys.executable, "-c", program).strip() == str(["gsmtpd", plugin()])


def plugin() -> str:
    """The module that setup.py has pytest load."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (entries,) = (
        value
        for each in ast.walk(tree)
        if isinstance(each, ast.Dict)
        for key, value in zip(each.keys, each.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "pytest11"
    )
    (entry,) = ast.literal_eval(entries)
    name, _, module = entry.partition(" = ")
    assert name == "gsmtpd"
    assert hasattr(import_module(module), "gsmtpd_server")
    return str(module)
