"""How does mail get into a maildir: whole, once, and where nobody else has a say?"""

from __future__ import annotations

import mailbox
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gsmtpd.handlers import GiveUpError, RetryError
from gsmtpd.handlers.maildir import ForwardToMaildir
from tests.handled import DELIVERY, HOSTILE, mail_of, prepared

NAME = f"1763800000.{DELIVERY}.gsmtpd"


def files(path: Path) -> list[str]:
    """All that is in the maildir, and in it alone."""
    found = path.parent.rglob("*")
    return sorted(str(each.relative_to(path)) for each in found if not each.is_dir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A maildir that is not there yet."""
    return tmp_path / "Maildir"


def test_it_is_a_maildir_with_the_mail(path: Path) -> None:
    mail = mail_of()
    prepared(ForwardToMaildir, path=str(path)).handle(mail)
    assert files(path) == [f"new/{NAME}"]
    assert (path / "new" / NAME).read_bytes() == mail.raw.replace(b"\r\n", b"\n")
    (read,) = mailbox.Maildir(path, create=False)
    assert read["Subject"] == "Will it rain?"
    assert read["Delivered-To"] == "ball@example.com"


def test_nobody_else_may_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        prepared(ForwardToMaildir, path=str(path)).handle(mail_of())
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (path, *path.iterdir())}
    assert modes == {0o700}
    assert stat.S_IMODE((path / "new" / NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("moved", ["new/" + NAME, f"cur/{NAME}:2,", f"cur/{NAME}:2,RS"])
def test_a_second_try_makes_no_second_copy(path: Path, moved: str) -> None:
    handler = prepared(ForwardToMaildir, path=str(path))
    handler.handle(mail_of())
    os.rename(path / "new" / NAME, path / moved)
    handler.handle(mail_of(attempt=2))
    assert files(path) == [moved]
    handler.handle(mail_of(delivery="f" * 32))
    assert len(files(path)) == 2


def test_two_who_try_at_a_time_make_one(path: Path) -> None:
    handler = prepared(ForwardToMaildir, path=str(path))
    mails = [mail_of(b"x" * 1_000_000) for _ in range(8)]
    with ThreadPoolExecutor(len(mails)) as threads:
        assert [*threads.map(handler.handle, mails)] == [None] * len(mails)
    assert files(path) == [f"new/{NAME}"]
    assert (path / "new" / NAME).stat().st_size == len(mails[0].raw.replace(b"\r\n", b"\n"))


def test_what_a_try_has_left_that_was_killed_is_in_nobodys_way(path: Path) -> None:
    handler = prepared(ForwardToMaildir, path=str(path))
    handler.handle(mail_of(delivery="f" * 32))
    (path / "tmp" / NAME).touch()
    handler.handle(mail_of())
    assert f"new/{NAME}" in files(path)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_part_of_a_mail_is_in_the_path(path: Path, text: str) -> None:
    handler = prepared(ForwardToMaildir, path=str(path))
    octets = text.encode(errors="surrogatepass")
    facts = dict.fromkeys(("sender", "recipient", "mailbox", "helo", "id", "client_ip"), text)
    handler.handle(mail_of(b"Subject: " + octets + b"\r\n" + octets + b": x\r\n\r\n", **facts))
    assert files(path) == [f"new/{NAME}"]
    with pytest.raises(GiveUpError, match="no id of a delivery"):
        handler.handle(mail_of(delivery=f"{text}/"))
    assert files(path) == [f"new/{NAME}"]


def test_a_full_disk_leaves_nothing_and_is_tried_again(small_disk: Path) -> None:
    handler = prepared(ForwardToMaildir, path=str(small_disk / "Maildir"))
    with pytest.raises(RetryError, match="Maildir: No space left on device"):
        handler.handle(mail_of(b"x" * 100_000))
    assert files(small_disk / "Maildir") == []
    handler.handle(mail_of())
    assert files(small_disk / "Maildir") == [f"new/{NAME}"]


@pytest.mark.parametrize("folder", ["", "tmp", "new", "cur"])
def test_what_is_no_directory_is_tried_again(path: Path, folder: str) -> None:
    if folder:
        path.mkdir()
    handler = prepared(ForwardToMaildir, path=str(path))
    (path / folder).touch()
    with pytest.raises(RetryError, match=f"{path}: Not a directory"):
        handler.handle(mail_of())
    (path / folder).unlink()
    handler.handle(mail_of())
    assert files(path) == [f"new/{NAME}"]


def test_a_maildir_that_may_not_be_written_is_tried_again() -> None:
    # /proc/self is nobody's to write, not even root's.
    with pytest.raises(RetryError, match="/proc/self/Maildir: "):
        prepared(ForwardToMaildir, path="/proc/self/Maildir").handle(mail_of())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("", "path is missing: write the full path of a maildir"),
        ("Maildir", "path = Maildir: write its full path"),
        ("~/Maildir", "path = ~/Maildir: write its full path"),
        ("/no/such/Maildir", "path = /no/such/Maildir: make /no/such first"),
        ("/etc/passwd/Maildir", "make /etc/passwd first"),
    ],
)
def test_bad_paths_are_told_in_a_line(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepared(ForwardToMaildir, path=setting)
