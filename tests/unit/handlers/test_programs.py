"""What does a program get of a mail, and what does its end mean?"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gsmtpd.handlers import DISCARD, GiveUpError, RetryError
from gsmtpd.handlers.command import MAX_FACT, REFUSED, Command
from tests.handled import DELIVERY, HOSTILE, ID, mail_of, prepared

FACTS = ("ID", "MAIL_ID", "DELIVERY", "ATTEMPT", "SENDER", "RECIPIENT", "MAILBOX", "CLIENT_IP",
         "HELO", "TLS", "RECEIVED_AT", "SUBJECT")  # fmt: skip


def program(path: Path, text: str) -> str:
    """A program in Python, in the directory `path`."""
    file = path / "program"
    file.write_text(f"#!{sys.executable} -I\nimport os, sys, time\n{text}")
    file.chmod(0o755)
    return str(file)


def witness(path: Path) -> str:
    """A program that writes down all that it is given."""
    return program(
        path,
        f"open({str(path / 'argv')!r}, 'w').write(repr(sys.argv))\n"
        # As it was given: Python adds to its own.
        "env = open('/proc/self/environ', 'rb').read().split(b'\\0')[:-1]\n"
        f"open({str(path / 'env')!r}, 'w').write(repr(dict(e.split(b'=', 1) for e in env)))\n"
        f"open({str(path / 'stdin')!r}, 'wb').write(sys.stdin.buffer.read())\n"
        "fds = repr(os.listdir('/proc/self/fd'))\n"
        f"open({str(path / 'fds')!r}, 'w').write(fds)\n",
    )


def run(path: Path, text: str) -> object:
    """What comes of a mail by a program in Python that is `text`."""
    return prepared(Command, command=program(path, text)).handle(mail_of())


def test_it_gets_the_mail_and_the_facts(tmp_path: Path) -> None:
    command = f"{witness(tmp_path)} --for 'two words'"
    mail = mail_of(is_tls=True)
    assert prepared(Command, command=command).handle(mail) is None
    assert (tmp_path / "stdin").read_bytes() == mail.raw
    argv = eval((tmp_path / "argv").read_text())
    assert argv == [str(tmp_path / "program"), "--for", "two words"]
    env = eval((tmp_path / "env").read_text())
    assert {*env} == {b"PATH", *(f"GSMTPD_{name}".encode() for name in FACTS)}
    said = {name: env[f"GSMTPD_{name}".encode()].decode() for name in FACTS}
    assert said == {
        "ID": ID, "MAIL_ID": "7", "DELIVERY": DELIVERY, "ATTEMPT": "1",
        "SENDER": "joe@example.org", "RECIPIENT": "ball@example.com",
        "MAILBOX": "ball@example.com", "CLIENT_IP": "192.0.2.1", "HELO": "client.example.org",
        "TLS": "1", "RECEIVED_AT": "1763800000", "SUBJECT": "Will it rain?",
    }  # fmt: skip


def test_nothing_that_its_runner_has_open_is_open_in_it(tmp_path: Path) -> None:
    with open("/dev/null", "rb") as file:
        os.set_inheritable(file.fileno(), True)
        prepared(Command, command=witness(tmp_path)).handle(mail_of())
    assert len(eval((tmp_path / "fds").read_text())) == 4  # the last one lists them


@pytest.mark.parametrize("text", HOSTILE)
def test_what_strangers_write_is_in_the_environment_alone(tmp_path: Path, text: str) -> None:
    octets = text.encode(errors="surrogatepass")
    content = b"Subject: " + octets + b"\r\n" + octets + b": x\r\nX: y\r\n\r\n" + octets
    names = ("sender", "recipient", "mailbox", "helo", "client_ip", "id", "delivery")
    mail = mail_of(content, **dict.fromkeys(names, text))
    before = {*os.listdir("/tmp")}
    command = f"{witness(tmp_path)} -x $GSMTPD_SENDER '$(id)' ; `id` *"
    prepared(Command, command=command).handle(mail)
    # Not even the administrator's own words get to a shell.
    words = ["-x", "$GSMTPD_SENDER", "$(id)", ";", "`id`", "*"]
    assert eval((tmp_path / "argv").read_text()) == [str(tmp_path / "program"), *words]
    env = eval((tmp_path / "env").read_text())
    assert len(env) == len(FACTS) + 1
    one_line = "".join(c if c.isprintable() else " " for c in text)
    for name in ("SENDER", "RECIPIENT", "MAILBOX", "HELO", "ID", "DELIVERY"):
        value = env[f"GSMTPD_{name}".encode()]
        assert value == one_line.encode()[:MAX_FACT]
        assert b"\n" not in value
    assert (tmp_path / "stdin").read_bytes() == mail.raw
    assert "pwned" not in {*os.listdir("/tmp")} - before
    made = {"program", "argv", "env", "stdin", "fds"}
    assert {*os.listdir(tmp_path)} == made


def test_a_fact_is_cut_between_characters(tmp_path: Path) -> None:
    command = prepared(Command, command=witness(tmp_path))
    command.handle(mail_of(helo="a" + "ü" * 100_000))
    value = eval((tmp_path / "env").read_text())[b"GSMTPD_HELO"]
    assert value.decode() == "a" + "ü" * (MAX_FACT // 2 - 1)


def test_exit_codes() -> None:
    handler = prepared(Command, command="/bin/sh -c 'exit $GSMTPD_HELO'")
    assert handler.handle(mail_of(helo="0")) is None
    assert handler.handle(mail_of(helo="99")) == DISCARD
    for code in {*range(1, 256)} - {99}:
        with pytest.raises(GiveUpError if code in REFUSED else RetryError) as raised:
            handler.handle(mail_of(helo=str(code)))
        assert str(raised.value) == f"exit code {code}"


def test_what_it_says_is_the_reason(tmp_path: Path) -> None:
    text = "print('first', 'x' * 9999); print('no \\x1b[31m such\\nuser\\udcff', flush=True)"
    environment = "sys.stdout.reconfigure(errors='surrogateescape');"
    with pytest.raises(GiveUpError, match=r"no \[31m such user.\Z") as raised:
        run(tmp_path, f"{environment}{text}; sys.exit(67)")
    assert str(raised.value).startswith("exit code 67 ")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(("signal", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (40, "signal 40")])
def test_a_signal_is_tried_again(tmp_path: Path, signal: int, name: str) -> None:
    with pytest.raises(RetryError, match=name):
        run(tmp_path, f"os.kill(os.getpid(), {signal})")


def test_who_reads_nothing_is_done_all_the_same(tmp_path: Path) -> None:
    handler = prepared(Command, command=program(tmp_path, "os.close(0)"))
    assert handler.handle(mail_of(b"x" * 5_000_000)) is None
    assert prepared(Command, command="/bin/true").handle(mail_of(b"x" * 5_000_000)) is None


def test_of_much_output_only_the_end_is_kept(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RetryError, match="exit code 1 x+ the end"):
        run(
            tmp_path,
            "for _ in range(3000): os.write(1, b'x' * 100_000)\nprint(' the end'); sys.exit(1)",
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000  # KiB; it has said 300 MB


@pytest.mark.parametrize("says", ["time.sleep(60)", "while True: os.write(1, b'x' * 1000)"])
def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path, says: str) -> None:
    pid = tmp_path / "pid"
    text = f"""
child = os.fork()
if child:
    open({str(pid)!r}, 'w').write(str(child))
    sys.exit(65)
{says}
"""
    try:
        with pytest.raises(GiveUpError, match="exit code 65"):
            run(tmp_path, text)
    finally:
        subprocess.run(["kill", "-9", pid.read_text()], check=False, stderr=subprocess.DEVNULL)


def test_one_that_closes_its_output_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(GiveUpError, match="exit code 65"):
        run(tmp_path, "os.close(1); os.close(2); time.sleep(0.1); os._exit(65)")


def test_one_that_cannot_be_run_now_may_be_later(tmp_path: Path) -> None:
    path = program(tmp_path, "")
    handler = prepared(Command, command=path)
    os.truncate(path, 0)
    with pytest.raises(RetryError, match="Exec format error"):
        handler.handle(mail_of())
    os.unlink(path)
    with pytest.raises(RetryError, match="No such file"):
        handler.handle(mail_of())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "command is missing: write the full path"),
        (" # ", "write the full path of #"),
        ("true", "command = true: write the full path of true"),
        ("./true", "write the full path of ./true"),
        ("/bin", "/bin is no program that can be run"),
        ("/etc/passwd", "/etc/passwd is no program that can be run"),
        ("/no/such -x", "/no/such is no program that can be run"),
        ("/bin/true 'x", "No closing quotation"),
    ],
)
def test_bad_commands_are_told_in_a_line(command: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        prepared(Command, command=command)
    assert "\n" not in str(raised.value)
