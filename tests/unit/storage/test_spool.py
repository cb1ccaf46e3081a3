"""Does the spool keep what it took, within its bound, and does it give it up once, in order?"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest

from gsmtpd.ctl_import import _is_lost
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.smtp.address import POSTMASTER, Mailbox
from gsmtpd.smtp.envelope import Envelope
from gsmtpd.storage import spool as spools
from gsmtpd.storage import spool_file
from gsmtpd.storage.base import Duplicate, Letter, Outcome, Result, StoreError
from gsmtpd.storage.spool import RESERVE, Spool
from gsmtpd.storage.spool_drain import ASIDE_FOR, BATCH, LOOK, TRIES, Drainer
from gsmtpd.storage.spool_facts import UnknownFactsError, facts_of, message_of
from gsmtpd.storage.spool_file import NAME, PAGE
from gsmtpd.storage.spooling import SpoolingStore, with_spool
from tests.conftest import lacking
from tests.servers import wait_for

ROWS = RowMaker("mx.example.com")
ROOM = 64 << 20  # octets
STORED, AWAY, SPOOLED = Outcome.STORED, Outcome.AWAY, Outcome.SPOOLED
TROUBLE, NO_SPACE = Outcome.TROUBLE, Outcome.NO_SPACE
_numbers = count(1)


def message(content: bytes = b"Subject: x\r\n\r\ny\r\n", recipients: int = 1) -> Message:
    boxes = tuple(Mailbox(f"r{n}", "example.com") for n in range(recipients))
    envelope = Envelope("client.example", True, Mailbox("a", "example.org"), boxes)
    return Message(f"{next(_numbers):032x}", envelope, content, "192.0.2.1", 1_700_000_000.25)


def messages(number: int) -> list[Message]:
    return [message() for _ in range(number)]


def ids(found: Sequence[Message]) -> list[str]:
    return [each.id for each in found]


class Shelf:
    """A store, and the database behind it, whose troubles a test makes; in memory.

    refuses: the ids it does not take. limit: of how many it takes before it is away. doubt: takes
    what it is given, and says TROUBLE, as for a COMMIT whose answer was lost. batches: sizes.
    """

    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.away = False
        self.refuses: set[str] = set()
        self.general: Outcome | None = None
        self.limit: int | None = None
        self.doubt = False
        self.fails_to_tell = False
        self.batches: list[int] = []
        self.asked = 0
        self.closed = False

    def prepare(self) -> None:
        """Nothing is needed."""

    def read(self, message: Message) -> Letter:
        return Letter(message, ROWS.read(message))

    encode = read

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        self.batches.append(len(letters))
        return [self._write(letter.message) for letter in letters]

    def _write(self, message: Message) -> Result:
        if self.away or (self.limit is not None and len(self.stored) >= self.limit):
            self.away = True
            return AWAY
        if self.general is not None:
            return self.general
        if message.id in self.refuses:
            return TROUBLE
        self.stored.append(message)
        return TROUBLE if self.doubt else STORED

    def known(self, ids: Sequence[str]) -> set[str]:
        self.asked += 1
        if self.fails_to_tell:
            raise StoreError("nobody answers")
        return {each.id for each in self.stored} & set(ids)

    def can_write(self) -> bool:
        return not self.away

    def close(self) -> None:
        self.closed = True


@contextmanager
def disk(path: Path, octets: int) -> Iterator[Path]:
    """A file system of that size at `path`; skips, loudly, where none can be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={octets}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        lacking("the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    """Leave no room on the file system of `path`; the file that takes it."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        found = os.statvfs(path)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize)
    return filler


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = str(tmp_path / "spool")
    spool_file.prepare(made)
    return made


@pytest.fixture
def make(folder: str) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def open_one(most: int = ROOM) -> Spool:
        made.append(Spool(folder, most))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


@pytest.fixture
def spool(make: Callable[..., Spool]) -> Spool:
    return make()


class Setting:
    """A store with a spool in front, and its drainer, whose clocks a test moves."""

    def __init__(self, folder: str, shelf: Shelf, most: int = ROOM) -> None:
        self.shelf = shelf
        self.now = 1_800_000_000.0
        self.inner = Spool(folder)
        self.drainer = Drainer(self.inner, shelf, shelf, lambda: self.now, lambda: self.now)
        self.spool = Spool(folder, most)
        self.store = SpoolingStore(shelf, self.spool, self.drainer)

    def write(self, *messages: Message) -> list[Result]:
        return self.store.write([self.store.read(each) for each in messages])

    def drain(self, steps: int = 100) -> None:
        """Until there is nothing more to do at once."""
        for _ in range(steps):
            pause = self.drainer.step()
            self.now += pause
            if pause > 0 and not self.inner.due(self.now - ASIDE_FOR):
                return

    def waiting(self) -> list[str]:
        return [each.id for each in self.inner.oldest(10_000, ROOM)]

    def close(self) -> None:
        self.drainer.close()
        self.store.close()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def setting(folder: str, shelf: Shelf) -> Iterator[Setting]:
    made = Setting(folder, shelf)
    yield made
    made.close()


# --- what is known of a message -----------------------------------------------------------------


ENVELOPES = [
    Envelope("client.example", True, Mailbox("a", "example.org"), (Mailbox("b", "example.com"),)),
    Envelope("[192.0.2.1]", False, None, (POSTMASTER,)),
    Envelope(
        "h\xe9lo \udce9\u2028\U0001f4ec\"'\\\x00",
        True,
        Mailbox('"a b"', "[IPv6:::1]"),
        (Mailbox("\u65e5", "\u672c.example"), Mailbox("b", "example.com")),
        smtputf8=True,
        body="BINARYMIME",
        mailboxes=((Mailbox("c", "example.com"), Mailbox("d", "e.example")), (POSTMASTER,)),
        discarded=(Mailbox("e", "example.com"),),
        lmtp=True,
        tls="TLSv1.3:TLS_AES_256_GCM_SHA384",
        client_name="host.example",
    ),
]


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff\r\n.\r\n'", random.Random(3).randbytes(70000)])
def test_a_message_comes_out_as_it_went_in(spool: Spool, envelope: Envelope, content) -> None:
    put = Message("0f" * 16, envelope, content, "2001:db8::1", 1_700_000_000.123456)
    assert spool.add([put]) == {put.id}
    (found,) = spool.oldest(10, ROOM)
    got = message_of(found.id, found.received_at, found.facts, found.content)
    assert got == put
    assert got.envelope.copies == put.envelope.copies == found.weight // max(1, len(content)) or (
        content == b"" and found.weight == 0
    )
    assert found.facts.isascii()


def test_every_field_of_an_envelope_is_kept() -> None:
    """A field that is added one day is written by itself, and these tests should have it, too."""
    rich = ENVELOPES[-1]
    assert all(getattr(rich, name) != default for name, default in Envelope._field_defaults.items())


def test_facts_of_an_older_version_have_defaults() -> None:
    known = json.loads(facts_of(message()))
    for name in Envelope._field_defaults:
        del known[name]
    old = message_of("1", 2.0, json.dumps(known), b"x")
    assert old.envelope == message().envelope


@pytest.mark.parametrize(
    "facts",
    [
        *("", "null", "[]", "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "x": 2}'),
        facts_of(message()).replace('"esmtp"', '"smtpe"'),
        facts_of(message()).replace('[["r0", "example.com"]]', '[["r0"]]'),
        facts_of(message()).replace('[["r0", "example.com"]]', "7"),
    ],
)
def test_facts_that_are_none_are_known_as_such(facts: str) -> None:
    with pytest.raises(UnknownFactsError):
        message_of("1", 2.0, facts, b"x")


# --- the spool ------------------------------------------------------------------------------------


def test_it_is_ours_alone(folder: str, spool: Spool) -> None:
    spool.add(messages(1))
    assert os.stat(folder).st_mode & 0o777 == 0o700
    spool_file.prepare(folder)  # again: what is there stays
    assert spool.figures().messages == 1


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_where_others_write_is_refused(folder: str, mode: int) -> None:
    os.chmod(folder, mode)
    for look in (spool_file.prepare, spool_file.check):
        with pytest.raises(StoreError, match=f"others may write there; .* chmod 700 {folder}"):
            look(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
def test_the_directory_of_another_user_is_refused(folder: str) -> None:
    os.chown(folder, 12345, -1)
    for look in (spool_file.prepare, spool_file.check):
        with pytest.raises(StoreError, match="belongs to another user"):
            look(folder)


def test_what_keeps_it_from_being_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"there is no directory {tmp_path}/none; make it"):
        spool_file.prepare(str(tmp_path / "none" / "spool"))
    with pytest.raises(StoreError, match="is no directory"):
        spool_file.prepare(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="is no directory"):
        spool_file.check(str(tmp_path / "file"))
    spool_file.check(str(tmp_path / "spool"))
    assert not (tmp_path / "spool").exists()


def test_an_id_is_kept_once(spool: Spool) -> None:
    one = message()
    assert spool.add([one]) == spool.add([one]) == {one.id}
    assert spool.figures().messages == 1


def test_it_is_taken_in_order_within_bounds(spool: Spool) -> None:
    put = messages(7)
    spool.add(put[:3])
    spool.add(put[3:])
    assert [each.id for each in spool.oldest(5, ROOM)] == ids(put[:5])
    assert [each.id for each in spool.oldest(5, 1)] == ids(put[:1])
    weight = len(put[0].content)
    assert [each.id for each in spool.oldest(5, 2 * weight)] == ids(put[:2])
    spool.remove(spool.oldest(2, ROOM))
    assert [each.id for each in spool.oldest(10, ROOM)] == ids(put[2:])


@pytest.mark.parametrize("size", [200, 3000, 5000, 90_000])
def test_the_bound_holds_over_all_who_add(make: Callable[..., Spool], folder: str, size) -> None:
    most = 2 << 20
    adders = [make(most) for _ in range(3)]
    kept: list[set[str]] = []

    def fill(one: Spool) -> None:
        while True:
            put = [message(os.urandom(size)) for _ in range(20)]
            kept.append(one.add(put))
            if len(kept[-1]) < len(put):
                return

    threads = [threading.Thread(target=fill, args=(one,)) for one in adders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = make().figures()
    assert figures.messages == sum(map(len, kept))
    assert figures.octets <= most
    assert figures.octets > 0.7 * most
    for one in adders:
        one.close()
    assert os.stat(os.path.join(folder, NAME)).st_size <= most


def test_what_is_small_may_fit_where_large_does_not(make: Callable[..., Spool]) -> None:
    one = make(1 << 20)
    large, small = message(bytes(2 << 20)), message()
    assert one.add([large, small, large]) == {small.id}


def test_room_comes_back(make: Callable[..., Spool], folder: str) -> None:
    one, taker = make(1 << 20), make(0)
    for _ in range(3):
        put = [message(os.urandom(100_000)) for _ in range(8)]
        assert len(one.add(put)) == 8
        assert len(one.add(put[:1])) == 1  # there already
        taker.remove(taker.oldest(100, ROOM))
    taker.shrink()
    assert taker.figures() == (0, 0, 0, None, 0)
    one.close()
    taker.close()
    assert os.stat(os.path.join(folder, NAME)).st_size < 64 << 10


def test_figures_can_be_seen_from_outside(spool: Spool, folder: str, tmp_path: Path) -> None:
    assert spools.look(str(tmp_path / "none"), 7) == (0, 0, 7, None, 0)
    spool.add(messages(3))
    spool.refused(spool.oldest(1, ROOM), 1, 5.0)
    seen = spools.look(folder, ROOM)
    assert seen == spool.figures()
    assert (seen.messages, seen.most, seen.oldest, seen.aside) == (3, ROOM, 1_700_000_000.25, 1)
    assert 0 < seen.octets < 100_000


def test_strange_paths_can_be_looked_at(tmp_path: Path) -> None:
    folder = str(tmp_path / "a%41?mode=rwc#b c")
    spool_file.prepare(folder)
    one = Spool(folder, ROOM)
    one.add(messages(1))
    assert spools.look(folder, ROOM).messages == 1
    one.close()


def test_a_file_that_was_removed_is_made_anew(spool: Spool, folder: str) -> None:
    spool.add(messages(1))
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    again = message()
    assert spool.add([again]) == {again.id}
    assert spools.look(folder, ROOM).messages == 1


def test_a_broken_file_is_trouble_until_it_is_mended(spool: Spool, folder: str) -> None:
    spool.add(messages(1))
    spool.close()
    file = Path(folder) / NAME
    good = file.read_bytes()
    file.write_bytes(b"this is no database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"spool {folder}: file is not a database"):
            spool.add(messages(1))
    file.write_bytes(good)
    spool.add(messages(1))
    assert spool.figures().messages == 2


def test_a_full_disk_is_trouble_and_nothing_is_kept(small_disk: Path) -> None:
    folder = str(small_disk / "spool")
    with pytest.raises(StoreError):
        spool_file.prepare(folder)
        one = Spool(folder, ROOM)
        try:
            one.add([message(os.urandom(100_000))])
        finally:
            one.close()


def test_room_is_left_to_who_takes_mail_out(tmp_path: Path) -> None:
    """A spool that filled its disk could not even be opened again."""
    why: list[str] = []
    with disk(tmp_path / "disk", RESERVE + (8 << 20)) as path:
        spool_file.prepare(folder := str(path / "spool"))
        with closing(Spool(folder, 1 << 30)) as one:
            number = 0
            while not why:
                number += len(one.add([message(os.urandom(100_000)) for _ in range(3)], why.append))
                found = os.statvfs(path)
                assert found.f_bavail * found.f_frsize >= RESERVE
        assert number > 15
        assert set(why) == {"is full; 64 MiB of its file system stay free, to take mail out"}
        with closing(Spool(folder, 1 << 30)) as one:
            one.remove(found_there := one.oldest(1000, ROOM))
            one.shrink()
            assert len(found_there) == number
            assert len(one.add(messages(3))) == 3


def test_taking_out_needs_little_room(spool: Spool, folder: str) -> None:
    """What is deleted is not overwritten: of large mail the journal would be as large again."""
    spool.add([message(os.urandom(4 << 20))])
    spool.close()
    spool.remove(spool.oldest(1, 1))
    assert os.stat(os.path.join(folder, f"{NAME}-wal")).st_size < 400_000


def test_a_disk_that_others_have_filled_is_trouble_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk(tmp_path / "disk", RESERVE + (4 << 20)) as path:
        spool_file.prepare(folder := str(path / "spool"))
        with closing(Spool(folder, ROOM)) as one:
            one.add(messages(3))
        filler = fill(path)
        full = rf"{folder}: its file system is full"
        spool_file.prepare(folder)  # gsmtpd starts, as there is a database as well
        assert re.search(f"{full}; gsmtpd goes on without it", caplog.text)
        with closing(Spool(folder, ROOM)) as one:
            for each in (lambda: one.add(messages(1)), lambda: one.due(0), one.figures):
                with pytest.raises(StoreError, match=full):
                    each()
            filler.unlink()
            assert len(one.add(messages(1))) == 1
            one.remove(one.oldest(2, ROOM))
            assert one.figures().messages == 2


def test_what_is_open_stays_so_while_the_disk_is_full(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", RESERVE + (4 << 20)) as path:
        spool_file.prepare(folder := str(path / "spool"))
        with closing(Spool(folder, ROOM)) as one:
            one.add([put := message(bytes(100_000))])
            filler = fill(path)
            with pytest.raises(StoreError, match="is full"):
                one._change("UPDATE message SET content = randomblob(9000000)", [()])
            assert [each.id for each in one.oldest(2, ROOM)] == [put.id]
            filler.unlink()
            one.remove(one.oldest(1, ROOM))
            assert one.figures().messages == 0


def test_a_file_that_cannot_be_shortened_is_left_as_it_is(spool: Spool, folder: str) -> None:
    """One that was made by the shell of SQLite."""
    spool.add([message(bytes(5000)) for _ in range(20)])
    spool.close()
    path = os.path.join(folder, NAME)
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(f"{path}.new")) as new:
        new.executescript("\n".join(old.iterdump()))
    os.replace(f"{path}.new", path)
    spool.remove(spool.oldest(15, ROOM))
    shrinking = threading.Thread(target=spool.shrink, daemon=True)
    shrinking.start()
    shrinking.join(30)
    assert not shrinking.is_alive()
    assert spool.figures().messages == 5


def test_what_is_in_the_place_of_a_file_is_not_taken_for_it(spool: Spool, folder: str) -> None:
    """Mail of the new file has the same numbers."""
    spool.add(messages(3))
    taken = spool.oldest(3, ROOM)
    os.rename(folder, f"{folder}.old")
    spool_file.prepare(folder)
    spool.add(put := messages(3))
    spool.remove(taken[:2])
    spool.refused(taken[2:], 1, 5.0)
    assert [each.id for each in spool.oldest(10, ROOM)] == ids(put)


def test_the_lock_is_that_of_the_directory_that_is_there(make: Callable[..., Spool]) -> None:
    first, second = make(), make()
    assert first.lock()
    os.rename(first.folder, f"{first.folder}.old")
    spool_file.prepare(first.folder)
    assert second.lock()
    assert not first.lock()
    second.unlock()
    assert first.lock()
    assert not second.lock()


# --- a damaged file -------------------------------------------------------------------------------


def damage(folder: str, page: int) -> bytes:
    """Overwrite that page of the file, counted from 0; what the file is then."""
    path = Path(folder) / NAME
    octets = bytearray(path.read_bytes())
    octets[page * PAGE : (page + 1) * PAGE] = random.Random(1).randbytes(PAGE)
    path.write_bytes(octets)
    return bytes(octets)


def root_page(folder: str, name: str) -> int:
    """The page of the file that the tree of that table or index begins with, counted from 0."""
    with closing(sqlite3.connect(os.path.join(folder, NAME))) as file:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return int(file.execute(sql, (name,)).fetchone()[0]) - 1


def leaf_page(folder: str, text: str) -> int:
    """The page of the file with the row that `text` is in, counted from 0."""
    octets = (Path(folder) / NAME).read_bytes()
    pages = {each.start() // PAGE for each in re.finditer(text.encode(), octets)}
    (found,) = [page for page in pages if octets[page * PAGE] == 0x0D]  # no leaf of an index
    return found


@pytest.mark.parametrize("inside", [False, True])
def test_a_damaged_file_is_said_and_kept(
    folder: str, shelf: Shelf, caplog: pytest.LogCaptureFixture, inside: bool
) -> None:
    with closing(Spool(folder, ROOM)) as one:
        one.add([message(bytes(5000)) for _ in range(100)])
    left = damage(folder, root_page(folder, "message") if inside else 0)
    spool_file.prepare(folder)
    setting = Setting(folder, shelf)
    for _ in range(130):
        assert setting.drainer.step() >= 1.0
        setting.now += 1.0
    said = [each for each in caplog.messages if f"{NAME} is damaged, see gsmtpd.conf(5)" in each]
    assert 3 <= len([each for each in said if "goes on without it" not in each]) <= 4
    shelf.away = True
    assert setting.write(message()) == [AWAY]
    setting.close()
    assert (Path(folder) / NAME).read_bytes() == left
    assert shelf.stored == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    (folder / NAME).mkdir()
    with pytest.raises(StoreError, match="unable to open database file"):
        spool_file.prepare(str(folder))


def test_text_that_is_none_keeps_no_other_message_waiting(setting: Setting, folder: str) -> None:
    setting.shelf.away = True
    setting.write(*(put := messages(3)))
    with closing(sqlite3.connect(os.path.join(folder, NAME))) as file:
        file.execute("UPDATE message SET facts = CAST(x'7bff' AS TEXT) WHERE seq = 2")
        file.commit()
    setting.shelf.away = False
    setting.drain()
    assert setting.shelf.stored == [put[0], put[2]]
    assert setting.inner.figures().aside == 1


def test_what_can_be_read_of_a_damaged_file_is_stored_as_documented(
    folder: str, shelf: Shelf
) -> None:
    if shutil.which("sqlite3") is None:
        lacking("sqlite3")
    page = (Path(__file__).parents[3] / "man" / "gsmtpd.conf.5").read_text()
    (command,) = re.findall(r"^sqlite3 DAMAGED/.*?(?=^\.Ed)", page, re.MULTILINE | re.DOTALL)
    command = command.replace("\\(ha", "^")
    assert "\\" not in command
    with closing(Spool(folder, ROOM)) as one:
        one.add(put := messages(100))
    damage(folder, leaf_page(folder, put[50].id))
    os.rename(folder, f"{folder}.damaged")
    spool_file.prepare(folder)
    os.unlink(os.path.join(folder, NAME))
    subprocess.run(
        ["sh", "-c", command.replace("DAMAGED", f"{folder}.damaged").replace("NEW", folder)],
        check=True,
    )
    setting = Setting(folder, shelf)
    setting.drain()
    setting.close()
    assert set(ids(shelf.stored)) < set(ids(put))
    assert len(shelf.stored) > 80
    assert all(each == put[ids(put).index(each.id)] for each in shelf.stored)


def test_one_process_at_a_time_takes_out(make: Callable[..., Spool]) -> None:
    first, second = make(), make()
    assert first.lock()
    assert first.lock()
    assert not second.lock()
    first.unlock()
    assert second.lock()
    assert not first.lock()
    second.close()
    assert first.lock()


WRITER = """
import sys
from gsmtpd.storage.spool import Spool
from tests.unit.storage.test_spool import message
spool = Spool(sys.argv[1], 1 << 30)
while True:
    made = [message(sys.argv[2].encode() * 1000) for _ in range(3)]
    put = [each._replace(id=sys.argv[2] + each.id) for each in made]
    spool.add(put)
    print(*[each.id for each in put], flush=True)
"""


def test_what_was_kept_survives_kills_and_none_is_there_by_halves(folder: str) -> None:
    said: list[str] = []
    for round_ in range(2):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, folder, f"{round_}{name}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "ab"
        ]
        for writer in writers:
            assert writer.stdout is not None
            said += writer.stdout.readline().split()
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None
            said += [word for line in writer.stdout if line.endswith("\n") for word in line.split()]
            writer.wait()
            writer.stdout.close()
    one = Spool(folder, ROOM)
    found = one.oldest(1_000_000, 1 << 40)
    one.close()
    kept = {each.id for each in found}
    assert set(said) <= kept
    assert len(said) >= 12
    assert len(kept) % 3 == 0
    assert all(each.content == each.id[:2].encode() * 1000 for each in found)


def test_file_and_directory_are_synced_before_it_is_kept(tmp_path: Path) -> None:
    """By the system calls it makes: what holds the message, and the name of that, is synced."""
    if shutil.which("strace") is None:
        lacking("strace")
    program = (
        "import os, sys\n"
        "from gsmtpd.storage import spool, spool_file\n"
        "from tests.unit.storage.test_spool import message\n"
        "spool_file.prepare(sys.argv[1])\n"
        "one = spool.Spool(sys.argv[1], 1 << 30)\n"
        "for n in range(2):\n"
        "    os.write(2, b'BEGIN')\n"
        "    one.add([message(b'TOKEN' * 100)])\n"
        "    os.write(2, b'KEPT')\n"
    )
    folder, trace = tmp_path / "spool", tmp_path / "trace"
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-s", "4096", "-o", trace),
            *("-e", "trace=openat,fsync,fdatasync,write,pwrite64,mkdir"),
            *(sys.executable, "-c", program, folder),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if "PTRACE" in done.stderr:
        lacking("the right to trace")
    assert done.stderr.replace("BEGIN", "").replace("KEPT", "") == ""
    calls = trace.read_text().splitlines()
    text = "\n".join(calls)
    made, first, second = text.split('"BEGIN"')
    assert re.search(rf"fsync\(\d+<{tmp_path}>\) += 0", made.split("mkdir")[1])
    assert re.search(rf"f(data)?sync\(\d+<{folder}>\) += 0", made)
    for part in (first, second):
        before, _, _ = part.partition('"KEPT"')
        written = before.rindex("TOKEN")
        assert "spool.db-wal" in before[before.rindex("\n", 0, written) : written]
        assert re.search(rf"sync\(\d+<{folder}/spool.db-wal>\) += 0", before[written:])
    # The journal is a new file, whose name has to be there, too, after a power cut.
    opened = first.index(f'openat(AT_FDCWD<{os.getcwd()}>, "{folder}/spool.db-wal", O_RDWR|O_CREAT')
    behind = first[opened:].partition('"KEPT"')[0]
    assert re.search(rf"f(data)?sync\(\d+<{folder}>\) += 0", behind)


# --- in front of a store --------------------------------------------------------------------------


def test_it_is_out_of_the_way_while_the_store_is_there(setting: Setting, folder: str) -> None:
    setting.shelf.refuses = {(bad := message()).id}
    good = messages(2)
    assert setting.write(good[0], bad, good[1]) == [STORED, TROUBLE, STORED]
    assert setting.inner.figures().messages == 0


def test_only_what_is_away_is_kept(setting: Setting) -> None:
    put = messages(4)
    setting.shelf.limit = 1
    assert setting.write(*put) == [STORED, SPOOLED, SPOOLED, SPOOLED]
    assert setting.waiting() == ids(put[1:])


@pytest.mark.parametrize("outcome", [TROUBLE, NO_SPACE])
def test_other_trouble_is_answered_as_ever(setting: Setting, outcome: Outcome) -> None:
    setting.shelf.general = outcome
    assert setting.write(*messages(2)) == [outcome, outcome]
    assert setting.waiting() == []


def test_what_the_disk_has_no_room_for_is_answered_as_ever(
    tmp_path: Path, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.away = True
    with disk(tmp_path / "disk", 8 << 20) as path:
        setting = Setting(str(path / "spool"), shelf)
        spool_file.prepare(setting.spool.folder)
        for _ in range(3):
            assert setting.write(message()) == [AWAY]
        setting.close()
    assert caplog.text.count("spool is full; 64 MiB of its file system stay free") == 1


def test_what_does_not_fit_is_answered_as_ever(
    folder: str, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(folder, shelf, 1 << 20)
    shelf.away = True
    for _ in range(3):
        assert setting.write(message(), message(bytes(2 << 20))) == [SPOOLED, AWAY]
    setting.close()
    said = [record.getMessage() for record in caplog.records]
    assert sum(f"{folder} is full" in line for line in said) == 1
    assert sum(f"mail is kept in {folder}" in line for line in said) == 1


def test_a_spool_that_fails_is_answered_as_ever(setting: Setting, folder: str) -> None:
    setting.shelf.away = True
    shutil.rmtree(folder)
    assert setting.write(message()) == [AWAY]
    spool_file.prepare(folder)
    assert setting.write(message()) == [SPOOLED]


# --- draining -------------------------------------------------------------------------------------


def test_all_is_stored_in_order_when_the_store_is_back(setting: Setting, caplog) -> None:
    setting.shelf.away = True
    put = messages(2 * BATCH + 5)
    for n in range(0, len(put), 40):
        setting.write(*put[n : n + 40])
    setting.drain(3)
    assert setting.shelf.stored == []
    setting.shelf.away = False
    setting.shelf.batches.clear()
    setting.drain()
    assert setting.shelf.stored == put  # envelope, times, client and octets
    assert setting.shelf.batches == [BATCH, BATCH, 5]
    assert setting.waiting() == []
    setting.drainer.step()
    assert f"spool: {len(put)} messages were stored in" in caplog.text


def test_nothing_is_asked_where_nothing_waits(setting: Setting) -> None:
    setting.drain(10)
    assert (setting.shelf.asked, setting.shelf.batches) == (0, [])


def test_what_the_database_has_is_not_stored_again(setting: Setting) -> None:
    put = messages(4)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away = False
    setting.shelf.stored = [put[1], put[3]]  # a COMMIT whose answer was lost
    setting.drain()
    assert setting.shelf.stored == [put[1], put[3], put[0], put[2]]
    assert setting.waiting() == []


def test_a_commit_in_doubt_is_not_written_again(setting: Setting) -> None:
    put = messages(3)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away, setting.shelf.doubt = False, True
    setting.drain()
    assert setting.shelf.stored == put
    assert setting.waiting() == []


def test_nothing_is_stored_while_the_database_cannot_tell(setting: Setting) -> None:
    setting.shelf.away = True
    setting.write(*messages(2))
    setting.shelf.away, setting.shelf.fails_to_tell = False, True
    setting.drain(5)
    assert setting.shelf.batches == [2]
    setting.shelf.fails_to_tell = False
    setting.drain()
    assert len(setting.shelf.stored) == 2


def test_it_goes_on_where_the_database_went_away(setting: Setting) -> None:
    put = messages(5)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away, setting.shelf.limit = False, 2
    setting.drain(5)
    assert setting.shelf.stored == put[:2]
    assert setting.waiting() == ids(put[2:])
    setting.shelf.away, setting.shelf.limit = False, None
    setting.drain()
    assert setting.shelf.stored == put


def test_a_message_that_is_refused_is_set_aside(setting: Setting, caplog) -> None:
    put = messages(3 * BATCH)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away, setting.shelf.refuses = False, {put[0].id, put[150].id}
    setting.drain()
    wanted = [each for each in put if each.id not in setting.shelf.refuses]
    assert setting.shelf.stored == wanted
    # The last of them are refused alone by now, and nobody can tell whose fault that is.
    more = messages(10)
    for each in more:
        setting.spool.add([each])
        setting.drain(1)
    setting.drain(20)
    assert setting.shelf.stored == wanted + more
    figures = setting.inner.figures()
    assert (figures.messages, figures.aside, figures.oldest) == (2, 2, None)
    assert caplog.text.count("is refused by the database, and set aside") == 2
    # It is tried again after an hour, and by the next process at once.
    tried = len(setting.shelf.batches)
    setting.drain(20)
    assert len(setting.shelf.batches) == tried
    setting.shelf.refuses = {put[0].id}
    setting.now += ASIDE_FOR + 2
    for _ in range(5):
        setting.drainer.step()
    assert setting.shelf.stored[-1] == put[150]
    setting.shelf.refuses = set()
    later = Drainer(setting.inner, setting.shelf, setting.shelf, wall=lambda: setting.now + 1)
    later.step()
    assert setting.shelf.stored[-1] == put[0]
    assert setting.inner.figures().messages == 0


@pytest.mark.parametrize("bad", [2, BATCH, BATCH + 20])
def test_refused_ones_in_front_do_not_hold_up_the_rest(setting: Setting, bad: int) -> None:
    """However many they are, one that is behind them shows whose fault it is."""
    put = messages(BATCH + bad)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away = False
    setting.shelf.refuses = set(ids(put[:bad]))
    for _ in range(100):
        setting.now += setting.drainer.step()
    assert sorted(ids(setting.shelf.stored)) == ids(put[bad:])


def test_trouble_of_the_database_sets_nothing_aside(setting: Setting) -> None:
    put = messages(20)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away, setting.shelf.general = False, TROUBLE
    for _ in range(3 * TRIES):
        pause = setting.drainer.step()
        assert pause >= LOOK
        setting.now += pause
    assert setting.inner.figures().aside == 0
    setting.shelf.general = None
    setting.drain()
    assert setting.shelf.stored == put


def test_a_full_database_is_waited_for(setting: Setting) -> None:
    put = messages(3)
    setting.shelf.away = True
    setting.write(*put)
    setting.shelf.away, setting.shelf.general = False, NO_SPACE
    setting.drain(10)
    assert setting.waiting() == ids(put)
    setting.shelf.general = None
    setting.drain()
    assert setting.shelf.stored == put


def test_a_message_that_cannot_be_read_is_set_aside(setting: Setting, folder: str, caplog) -> None:
    put = messages(3)
    setting.shelf.away = True
    setting.write(*put)
    file = sqlite3.connect(os.path.join(folder, NAME))
    file.execute("UPDATE message SET facts = '{\"version\": 9}' WHERE id = ?", (put[1].id,))
    file.commit()
    file.close()
    setting.shelf.away = False
    setting.drain()
    assert setting.shelf.stored == [put[0], put[2]]
    assert setting.inner.figures().aside == 1
    assert f"{put[1].id} cannot be read, and is set aside: version 9 is unknown" in caplog.text


def test_a_duplicate_is_stored(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put = message()
    setting.shelf.away = True
    setting.write(put)
    setting.shelf.away = False
    monkeypatch.setattr(setting.shelf, "_write", lambda each: Duplicate("1"))
    setting.drain()
    assert setting.waiting() == []


def test_one_of_several_drains(folder: str, shelf: Shelf) -> None:
    first, second = Setting(folder, shelf), Setting(folder, shelf)
    shelf.away = True
    put = messages(2 * BATCH)
    first.write(*put)
    shelf.away = False
    assert first.drainer.step() == 0.0
    assert second.drainer.step() == LOOK
    assert shelf.stored == put[:BATCH]
    first.drainer.close()  # as at its end, or its death
    second.drain()
    assert shelf.stored == put
    first.close()
    second.close()


def test_a_crash_behind_the_commit_stores_nothing_twice(
    folder: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Setting(folder, shelf)
    put = messages(5)
    shelf.away = True
    first.write(*put)
    shelf.away = False

    def die(self: Spool, done: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            first.drainer.step()
    assert shelf.stored == put
    first.drainer.close()
    second = Setting(folder, shelf)
    second.drain()
    assert shelf.stored == put
    assert second.waiting() == []
    first.close()
    second.close()


@pytest.mark.parametrize("step", [-500.0, 500.0])
def test_a_clock_that_was_set_makes_it_try_neither_always_nor_never(
    setting: Setting, step: float
) -> None:
    setting.shelf.away = True
    setting.write(message())
    (one,) = setting.inner.oldest(1, 1)
    setting.inner.refused([one] * TRIES, TRIES, setting.now - 60.0)
    setting.shelf.away, setting.shelf.general = False, TROUBLE
    setting.shelf.batches.clear()
    setting.now += step
    for _ in range(10):
        setting.drainer.step()
    assert setting.shelf.batches == [1]
    setting.inner.refused([one], TRIES, setting.now + 1e6)
    for _ in range(10):
        setting.drainer.step()
    assert setting.shelf.batches == [1, 1]


class Slow(Shelf):
    """Takes some seconds for each message, by the clock of `setting`, and is given up behind 15."""

    setting: Setting
    seconds = 0.2
    for_one: dict[str, float] = {}  # others, by id

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        needed = sum(self.for_one.get(each.message.id, self.seconds) for each in letters)
        self.setting.now += min(needed, 15.0)
        if needed > 15.0:
            self.batches.append(len(letters))
            return [AWAY] * len(letters)  # and it is well again at once
        return super().write(letters)


@pytest.fixture
def slow(folder: str) -> Iterator[Slow]:
    shelf = Slow()
    shelf.setting = Setting(folder, shelf)
    yield shelf
    shelf.setting.close()


def test_a_slow_database_is_given_what_it_can_take(slow: Slow) -> None:
    Spool(slow.setting.spool.folder, ROOM).add(put := messages(110))
    slow.setting.drain()
    assert slow.stored == put
    assert slow.batches[0] == BATCH
    assert sum(number > 75 for number in slow.batches) == 1
    slow.seconds = 0.0
    slow.batches.clear()
    Spool(slow.setting.spool.folder, ROOM).add(messages(5 * BATCH))
    slow.setting.drain()
    assert BATCH in slow.batches


def test_one_that_takes_too_long_keeps_no_other_waiting(slow: Slow) -> None:
    put = messages(30)
    slow.for_one = {put[0].id: 100.0}
    Spool(slow.setting.spool.folder, ROOM).add(put)
    slow.setting.drain()
    assert sorted(ids(slow.stored)) == ids(put[1:])
    assert slow.setting.inner.figures().aside == 1
    slow.batches.clear()
    for _ in range(60):
        slow.setting.now += slow.setting.drainer.step()
    assert slow.batches == []
    slow.for_one.clear()
    slow.setting.now += ASIDE_FOR
    slow.setting.drain()
    assert len(slow.stored) == 30


def test_one_alone_that_takes_too_long_is_tried_again(slow: Slow) -> None:
    """It may be the database."""
    one = message()
    slow.for_one = {one.id: 100.0}
    Spool(slow.setting.spool.folder, ROOM).add([one])
    for _ in range(20):
        slow.setting.now += slow.setting.drainer.step()
    assert len(slow.batches) > 5
    assert slow.setting.inner.figures().aside == 0
    slow.for_one.clear()
    slow.setting.drain()
    assert slow.stored == [one]


def test_a_store_is_closed_behind_what_is_being_drained(folder: str) -> None:
    """Nothing is written by a store that is closed, and nothing more is begun."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Shelf):
        def write(self, letters: Sequence[Letter]) -> list[Result]:
            inside.set()
            go_on.wait(30)
            assert not self.closed
            return super().write(letters)

    shelf = Slow()
    store, drainer = with_spool(shelf, shelf, shelf, folder, ROOM)
    put = messages(2 * BATCH)
    Spool(folder, ROOM).add(put)
    stepping = threading.Thread(target=drainer.step)
    stepping.start()
    assert inside.wait(30)
    closing = threading.Thread(target=store.close)
    closing.start()
    wait_for(lambda: drainer._retired)
    go_on.set()
    for thread in (stepping, closing):
        thread.join(30)
    assert shelf.closed
    assert shelf.stored == put[:BATCH]
    assert drainer.step() == LOOK
    assert shelf.stored == put[:BATCH]
    drainer.close()


def test_an_import_counts_nothing_that_is_not_stored() -> None:
    """It has no spool in front of its store."""
    assert {each for each in Outcome if not _is_lost(each)} == {STORED, SPOOLED}
