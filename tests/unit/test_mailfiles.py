"""Does mail come back from files as it went in, and is that of other programs understood?"""

from __future__ import annotations

import io
import mailbox
import os
import subprocess
import sys
import time
from calendar import timegm
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmtpd.mailfiles import (
    TOO_LARGE,
    Found,
    MailFileError,
    date_in,
    is_one_file,
    open_writer,
    read_mail,
)
from tests.servers import ROOT, environment

LIMIT = 1 << 20
SECOND = 1_700_000_000  # Tue, 14 Nov 2023 22:13:20 UTC
PLAIN = b"From: a@example.org\r\nSubject: x\r\n\r\nHello\r\n"
TRICKY = (
    b"Subject: From here\r\nFrom : odd\r\n\r\nFrom joe Mon Jan  1 00:00:00 2024\r\n"
    b"From me\r\n>From you\r\n>>>From them\r\n>from\r\n\r\nFrom \r\n\r\n\r\n"
)
MESSAGES = [
    PLAIN,
    TRICKY,
    b"From x\r\n\r\n",
    b"Subject: no body\r\n",
    b"Subject: no body\r\n\r\n",
    b"\r\n",
    b"\r\n\r\n\r\n",
    b"Subject: octets\r\n\r\n" + bytes(set(range(256)) - {10, 13}) + b"\r\n",
    b"Subject: long\r\n\r\n" + b"x" * 200_000 + b"\r\n" + b"From " * 40_000 + b"\r\n",
]
KINDS = ["mbox", "maildir", "eml"]


def write(kind: str, path: Path, *messages: bytes) -> None:
    writer = open_writer(kind, str(path))
    for number, octets in enumerate(messages, 1):
        writer.add(number, octets, "a@example.org", SECOND + number)
    writer.close()


def read(path: Path, limit: int = LIMIT) -> list[bytes | None]:
    return [found.octets for found in read_mail(str(path), limit)]


def mbox(path: Path, text: bytes) -> list[Found]:
    """What is found in a file with that text."""
    path.write_bytes(text)
    return list(read_mail(str(path), LIMIT))


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "mail", *MESSAGES)
    assert read(tmp_path / "mail") == MESSAGES


LINES = st.lists(
    st.one_of(
        st.sampled_from([b"", b"From ", b">From x", b"From a Mon Jan  1 00:00:00 2024", b">>"]),
        st.binary(max_size=9).map(lambda octets: octets.translate(None, b"\r\n")),
    ),
    max_size=8,
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
@settings(deadline=None, max_examples=150)
@given(messages=st.lists(LINES.map(lambda text: b"Subject: x\r\n" + text), min_size=1, max_size=4))
def test_there_and_back_with_any_lines(
    kind: str, messages: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mail") / "mail"
    write(kind, path, *messages)
    assert read(path) == messages


@settings(deadline=None)
@given(octets=st.binary(max_size=99).map(lambda octets: b"Subject: x\r\n" + octets))
def test_eml_keeps_any_octets(octets: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mail") / "one.eml"
    write("eml", path, octets)
    assert path.read_bytes() == octets
    assert read(path) == [octets]


# --- what is written ----------------------------------------------------------------------------


def test_an_mbox_as_it_is_usual(tmp_path: Path) -> None:
    write("mbox", tmp_path / "mbox", PLAIN, b"Subject: y\r\n\r\nFrom me\r\n>From you")
    assert (tmp_path / "mbox").read_bytes() == (
        b"From a@example.org Tue Nov 14 22:13:21 2023\n"
        b"From: a@example.org\nSubject: x\n\nHello\n\n"
        b"From a@example.org Tue Nov 14 22:13:22 2023\n"
        b"Subject: y\n\n>From me\n>>From you\n\n"
    )
    (tmp_path / "mbox").chmod(0o600)
    read_by_python = mailbox.mbox(tmp_path / "mbox", create=False)
    assert [message["Subject"] for message in read_by_python] == ["x", "y"]


@pytest.mark.parametrize(
    ("return_path", "said"),
    [
        ("", "MAILER-DAEMON"),
        ('"a b"@example.org', '"a-b"@example.org'),
        ("\xfc@example.org", "\xfc@example.org"),
    ],
)
def test_who_sent_it(return_path: str, said: str, tmp_path: Path) -> None:
    writer = open_writer("mbox", str(tmp_path / "mbox"))
    writer.add(1, PLAIN, return_path, SECOND)
    writer.close()
    (found,) = read_mail(str(tmp_path / "mbox"), LIMIT)
    assert (found.sender, found.date) == (said, SECOND)


def test_a_maildir_as_it_is_usual(tmp_path: Path) -> None:
    write("maildir", tmp_path / "mail", *(b"Subject: %d\r\n\r\n" % n for n in range(12)))
    write("maildir", tmp_path / "mail", b"Subject: 12\r\n\r\n")  # more into the same
    read_by_python = mailbox.Maildir(tmp_path / "mail", create=False)
    assert {message["Subject"] for message in read_by_python} == {str(n) for n in range(13)}
    assert os.listdir(tmp_path / "mail" / "tmp") == os.listdir(tmp_path / "mail" / "cur") == []
    found = {path.read_bytes(): path for path in (tmp_path / "mail" / "new").iterdir()}
    first = found[b"Subject: 0\n\n"]
    assert first.stat().st_mtime == SECOND + 1
    assert first.stat().st_mode & 0o777 == 0o600


def test_eml_files_have_the_numbers_of_the_mails(tmp_path: Path) -> None:
    write("eml", tmp_path / "mail", PLAIN, TRICKY)
    assert sorted(os.listdir(tmp_path / "mail")) == ["1.eml", "2.eml"]
    assert (tmp_path / "mail" / "2.eml").read_bytes() == TRICKY
    assert (tmp_path / "mail" / "2.eml").stat().st_mtime == SECOND + 2
    assert not is_one_file("eml", str(tmp_path / "mail"))


@pytest.mark.parametrize(
    ("kind", "name", "in_the_way"),
    [
        ("mbox", "mail", "mail"),
        ("eml", "one.eml", "one.eml"),
        ("eml", "mail", "mail/1.eml"),
    ],
)
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_overwritten(
    kind: str, name: str, in_the_way: str, link: bool, tmp_path: Path
) -> None:
    """Nor is a link followed: not even one that leads nowhere."""
    target = tmp_path / "target"
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    if link:
        (tmp_path / in_the_way).symlink_to(target)
    else:
        (tmp_path / in_the_way).write_bytes(b"mine")
    with pytest.raises(MailFileError, match=f"{in_the_way}: is there already"):
        write(kind, tmp_path / name, PLAIN)
    assert not target.exists()
    assert link or (tmp_path / in_the_way).read_bytes() == b"mine"


def test_a_directory_that_is_no_maildir_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(MailFileError, match="no maildir"):
        open_writer("maildir", str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]


def test_half_a_message_is_not_left_behind(tmp_path: Path, small_disk: Path) -> None:
    for kind in ("eml", "maildir"):
        with pytest.raises(OSError, match="No space left"):
            write(kind, small_disk / kind, b"x" * 30_000)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MailFileError, match="No such file or directory"):
        open_writer("mbox", str(tmp_path / "no" / "mbox"))


@pytest.mark.parametrize("kind", ["maildir", "eml"])
def test_only_an_mbox_goes_to_stdout(kind: str) -> None:
    with pytest.raises(MailFileError, match="stdout"):
        open_writer(kind, "-")


# --- mbox of other programs ---------------------------------------------------------------------

FROM = b"From joe@example.org Mon Jan  1 00:00:00 2024\n"


@pytest.mark.parametrize(
    "line",
    [
        FROM,
        b"From joe@example.org Mon Jan  1 00:00:00 2024\r\n",
        b"From joe@example.org  Mon Jan 01 00:00:00 +0000 2024\n",
        b"From joe@example.org Mon Jan  1 01:00:00 2024 +0100\n",
        b"From joe@example.org Mon, 1 Jan 2024 00:00:00 +0000\n",
        b"From joe@example.org Mon Jan  1 00:00:00 UTC 2024\n",
        b"From joe@example.org Mon Jan  1 00:00 2024\n",
    ],
)
def test_the_forms_of_the_line_in_front(line: bytes, tmp_path: Path) -> None:
    found = mbox(tmp_path / "mbox", line + b"A: 1\n\nx\n" + line + b"A: 2\n\ny\n\n")
    assert [each.octets for each in found] == [b"A: 1\r\n\r\nx\r\n", b"A: 2\r\n\r\ny\r\n"]
    assert {each.sender for each in found} == {"joe@example.org"}
    assert {each.date for each in found} == {timegm((2024, 1, 1, 0, 0, 0))}


@pytest.mark.parametrize("first", [b"From nobody\n", b"From - \n", b"\n\n" + FROM, b"From \xff\n"])
def test_the_first_line_may_be_odd(first: bytes, tmp_path: Path) -> None:
    found = mbox(tmp_path / "mbox", first + b"A: 1\n\nx\n\n" + FROM + b"A: 2\n\ny\n")
    assert [each.octets for each in found] == [b"A: 1\r\n\r\nx\r\n", b"A: 2\r\n\r\ny\r\n"]


@pytest.mark.parametrize(
    "text",
    [b"From me to you\n", b"From now on: 12:30\n", b"From Monday Jan the first\n", b"From\n"],
)
def test_text_that_nobody_quoted(text: bytes, tmp_path: Path) -> None:
    (found,) = mbox(tmp_path / "mbox", FROM + b"A: 1\n\nx\n\n" + text + b"y\n\n")
    assert found.octets == b"A: 1\r\n\r\nx\r\n\r\n" + text[:-1] + b"\r\ny\r\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends(end: bytes, tmp_path: Path) -> None:
    text = (FROM + b"A: 1\n\nx\n>From y\n\n" + FROM + b"A: 2\n\n").replace(b"\n", end)
    found = mbox(tmp_path / "mbox", text)
    assert [each.octets for each in found] == [b"A: 1\r\n\r\nx\r\nFrom y\r\n", b"A: 2\r\n"]


def test_an_end_without_a_line_end(tmp_path: Path) -> None:
    assert [each.octets for each in mbox(tmp_path / "mbox", FROM + b"A: 1\n\nx")] == [
        b"A: 1\r\n\r\nx"
    ]
    assert [each.octets for each in mbox(tmp_path / "mbox", FROM)] == [b""]


def test_messages_are_named_by_their_place(tmp_path: Path) -> None:
    found = mbox(tmp_path / "mbox", (FROM + b"A: 1\n\n") * 3)
    assert [each.name for each in found] == [
        f"{tmp_path}/mbox, message {n}" for n in (1, 2, 3)
    ]  # fmt: skip


def test_an_mbox_that_python_wrote(tmp_path: Path) -> None:
    """It quotes "From " only (mboxo)."""
    box = mailbox.mbox(tmp_path / "mbox")
    for n in range(3):
        box.add(b"Subject: %d\n\nFrom here\nto there\n" % n)
    box.close()
    assert read(tmp_path / "mbox") == [
        b"Subject: %d\r\n\r\nFrom here\r\nto there\r\n" % n for n in range(3)
    ]


# --- what is found ------------------------------------------------------------------------------


def test_a_single_message(tmp_path: Path) -> None:
    (found,) = mbox(tmp_path / "one", b"\r\n\r\nno header\r\n")
    assert found == Found(str(tmp_path / "one"), b"\r\n\r\nno header\r\n", size=15)
    (found,) = mbox(tmp_path / "one", b"A: 1\n\nas an editor writes it\n")
    assert found.octets == b"A: 1\r\n\r\nas an editor writes it\r\n"
    assert mbox(tmp_path / "one", b"") == []


def test_sizes_make_up_the_file(tmp_path: Path) -> None:
    """Also where lines end otherwise than they are read, or a message is too large."""
    front = b"From joe@example.org Mon Nov 23 23:10:00 2026\n"
    octets = b"".join(front + b"A: 1\n\n" + b"text\n" * n + b"\n" for n in (3, 1000, 7))
    (tmp_path / "mbox").write_bytes(octets)
    found = [*read_mail(str(tmp_path / "mbox"), 100)]
    assert [each.problem for each in found] == ["", TOO_LARGE, ""]
    assert sum(each.size for each in found) == len(octets)
    (tmp_path / "one.eml").write_bytes(b"A: 1\n\n" + b"text\n" * 1000)
    assert [each.size for each in read_mail(str(tmp_path / "one.eml"), 100)] == [5006]


def test_what_is_read_of_a_maildir(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "mail")
    box.add(b"Subject: new\n\n")
    seen = mailbox.MaildirMessage(b"Subject: seen\n\n")
    seen.set_subdir("cur")
    seen.set_flags("S")
    box.add(seen)
    (tmp_path / "mail" / "new" / ".hidden").write_text("Subject: hidden\n\n")
    (tmp_path / "mail" / "tmp" / "unfinished").write_text("Subject: unfin")
    (tmp_path / "mail" / "cur" / "directory").mkdir()
    # mailbox.Maildir's names have microseconds without leading zeros: their order is by chance.
    found = sorted(read(tmp_path / "mail"))
    assert found == [b"Subject: new\r\n\r\n", b"Subject: seen\r\n\r\n"]


def test_eml_files_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ("10.eml", "9.EML", "b.eml", "a.eml", "notes.txt"):
        (tmp_path / name).write_bytes(b"Subject: %s\r\n" % name.encode())
    assert read(tmp_path) == [
        b"Subject: %s\r\n" % n for n in (b"9.EML", b"10.eml", b"a.eml", b"b.eml")
    ]


def test_a_directory_without_mail(tmp_path: Path) -> None:
    with pytest.raises(MailFileError, match="neither a maildir nor"):
        read(tmp_path)


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MailFileError, match="No such file"):
        read(tmp_path / "missing")


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Root may read a directory of a user's, who could name another's mail there."""
    for directory in ("eml", "new", "cur", "other"):
        (tmp_path / directory).mkdir()
    (tmp_path / "other" / "1").write_bytes(PLAIN)
    for name in ("eml/1.eml", "eml/3.eml", "new/1", "new/3"):
        (tmp_path / name).write_bytes(PLAIN)
    for name in ("eml/2.eml", "new/2"):
        (tmp_path / name).symlink_to(tmp_path / "other" / "1")
        os.mkfifo(tmp_path / name.replace("2", "4"))  # nor is anything waited for
    for path in (tmp_path / "eml", tmp_path):
        found = list(read_mail(str(path), LIMIT))
        assert [each.octets for each in found] == [PLAIN, None, PLAIN]
        assert found[1].problem == "a link is not followed"
    (tmp_path / "cur").rmdir()
    (tmp_path / "cur").symlink_to(tmp_path / "other")
    with pytest.raises(MailFileError, match=str(tmp_path)):
        read(tmp_path)
    (tmp_path / "eml" / "again").symlink_to(tmp_path / "eml")
    assert len(read(tmp_path / "eml" / "again")) == 3  # what is named may be a link


def test_a_maildir_is_written_where_it_is(tmp_path: Path) -> None:
    for directory in ("tmp", "cur", "other"):
        (tmp_path / directory).mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "other")
    with pytest.raises(MailFileError, match="Not a directory"):
        write("maildir", tmp_path, PLAIN)
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_large_costs_nothing_else(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "mail", PLAIN, PLAIN + b"x" * 5000, PLAIN, PLAIN + b"\r\n" * 5000, PLAIN)
    found = list(read_mail(str(tmp_path / "mail"), 4096))
    assert [each.octets for each in found] == [PLAIN, None, PLAIN, None, PLAIN]
    assert {each.problem for each in found if each.octets is None} == {TOO_LARGE}


@pytest.mark.parametrize(("text", "count"), [((FROM + b"A: 1\n\n") * 3, 3), (PLAIN, 1), (b"", 0)])
def test_stdin(text: bytes, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    found = list(read_mail("-", LIMIT))
    assert len(found) == count
    assert all(each.name.startswith("stdin") for each in found)


BIG = """
import sys
from gsmtpd.mailfiles import open_writer, read_mail
writer = open_writer("mbox", sys.argv[1])
message = b"Subject: x\\r\\n\\r\\n" + (b"x" * 98 + b"\\r\\n") * 10_000 + b"From x\\r\\n"
for number in range(150):
    writer.add(number, message, "", 0.0)
writer.close()
found = read_mail(sys.argv[1], 1 << 24)
assert sum(each.octets == message for each in found) == 150
with open(sys.argv[1], "wb") as file:
    file.write(b"From x\\n")
    for _ in range(150):
        file.write(b"x" * (1 << 20))
assert [each.octets for each in read_mail(sys.argv[1], 1 << 20)] == [None]
# Not ru_maxrss: that begins with what the process had which forked this one.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""


def test_a_big_mbox_is_not_in_memory(tmp_path: Path) -> None:
    """150 MB are written and read, then a line of 150 MB."""
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "mbox")],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=environment(),
    )
    assert int(done.stdout) < 100_000  # KiB


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("Tue, 14 Nov 2023 22:13:20 +0000", SECOND),
        ("\r\n\tTue, 14 Nov 2023 23:13:20 +0100 (CET)", SECOND),
        ("14 Nov 2023 17:13:20 EST", SECOND),
        ("Tue Nov 14 22:13:20 2023", SECOND),
        ("", None),
        ("yesterday", None),
        ("Tue, 99 Nov 2023 22:13:20 +0000", None),
        ("Tue, 14 Nov 99999999 22:13:20 +0000", None),
        ("Tue, 14 Nov 2023 22:13:20 +9999999999999999999", None),
    ],
)
def test_dates(text: str, second: float | None) -> None:
    assert date_in(text) == second


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_date_is_a_fault(text: str) -> None:
    found = date_in(text)
    assert found is None or time.gmtime(found)
