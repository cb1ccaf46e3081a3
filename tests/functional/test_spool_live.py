"""Is mail that came while the database was away kept, and stored when it is back, exactly once?"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.accounting import Ledger, Load, MySQLTable, count, rows, send, to_several, with_token
from tests.conftest import make_schema
from tests.servers import (
    Gsmtpd,
    MariaDB,
    ServerError,
    environment,
    merge,
    mysql_store,
    wait_for,
)
from tests.unit.storage.test_spool import disk, fill

SCHEMA = "spooled"
DRAINED = 60.0  # seconds


@pytest.fixture(scope="module")
def _fragile() -> Iterator[MariaDB]:
    with MariaDB(durable=True) as server:
        yield server


@pytest.fixture
def fragile(_fragile: MariaDB) -> MariaDB:
    """A running MariaDB that a test may kill, with an empty schema."""
    if not _fragile.running:
        _fragile.start()
    make_schema(_fragile, SCHEMA)
    return _fragile


@pytest.fixture
def table(fragile: MariaDB) -> MySQLTable:
    return MySQLTable(fragile, SCHEMA)


def settings(database: MariaDB, folder: Path, **more: Any) -> dict[str, Any]:
    spool = {"store": {"spool": folder, **more}, "server": {"processes": 2}}
    return merge(mysql_store(database, SCHEMA), spool)


def spool_of(daemon: Gsmtpd) -> dict[str, Any]:
    """What gsmtpctl says of the spool."""
    found: dict[str, Any] = daemon.status()["spool"]
    return found


def empty(daemon: Gsmtpd) -> bool:
    return spool_of(daemon)["messages"] == 0


def send_spooled(daemon: Gsmtpd, number: int = 1) -> list[str]:
    """Send mails one after another, all of which are answered with 250; their ids."""
    replies = [send(daemon.address, with_token())[0] for _ in range(number)]
    return [reply.id for reply in replies]


def put(directory: Path, step: str) -> Path:
    """Have the next process that passes `step` die there; the file, gone once one has."""
    file = directory / step
    file.with_suffix(".new").write_text("die")
    file.with_suffix(".new").rename(file)
    return file


def test_mail_waits_and_is_stored_in_order(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    with Gsmtpd(settings(fragile, tmp_path / "spool")) as daemon:
        assert "Spool:      empty" in daemon.ctl("status")
        early = send_spooled(daemon, 1)
        fragile.kill()
        late = send_spooled(daemon, 5)
        said = spool_of(daemon)
        assert (said["messages"], said["aside"]) == (5, 0)
        assert re.search(r"Spool:      5 messages, [0-9.]+ KiB of 1 GiB, oldest [0-9]+ s\n",
                         daemon.ctl("status"))  # fmt: skip
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        assert [row.hash for row in rows(table)] == early + late
        wait_for(lambda: "5 messages were stored" in daemon.log.read_text())
        lines = [line for line in daemon.log.read_text().splitlines() if "spooled=yes" in line]
        assert [f"result=accepted id={id_}" in line for id_, line in zip(late, lines, strict=True)]


def test_it_waits_through_restarts_and_kills(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    """The database is away from the start on, so that not even its table is known."""
    chosen = settings(fragile, tmp_path / "spool")
    fragile.kill()
    with Gsmtpd(chosen) as daemon:
        ids = send_spooled(daemon, 3)
        received = time.time()
        daemon.stop()
        daemon.start()
        ids += send_spooled(daemon, 3)
        daemon.kill()
        daemon.start()
        assert spool_of(daemon)["messages"] == 6
        time.sleep(2)  # stored is later than received
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
    stored = rows(table)
    assert [row.hash for row in stored] == ids
    assert [row.problem() for row in stored] == [None] * 6
    dates = table.query("SELECT UNIX_TIMESTAMP(CONVERT_TZ(`date`, '+00:00', @@time_zone)) FROM"
                        " new_mail ORDER BY mail_id")  # fmt: skip
    assert all(abs(float(date) - received) < 60 for (date,) in dates[:3])
    assert float(dates[0][0]) <= received


def test_a_stop_does_not_wait_for_it(fragile: MariaDB, tmp_path: Path) -> None:
    with Gsmtpd(settings(fragile, tmp_path / "spool")) as daemon:
        fragile.kill()
        send_spooled(daemon, 1)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log.read_text()


def test_a_worker_dies_at_each_step_of_it(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    points = tmp_path / "points"
    points.mkdir()
    ledger = Ledger()
    armed = {"GSMTPD_FAILPOINTS": str(points)}
    with (
        Gsmtpd(settings(fragile, tmp_path / "spool"), variables=armed) as daemon,
        Load(daemon.address, ledger, sessions=3, make=to_several, pause=0.01) as load,
    ):
        load.wait_for(5)
        fragile.kill()
        for step in ("spooling", "spooled"):
            load.wait_for(5)
            file = put(points, step)
            wait_for(lambda file=file: not file.exists())
        load.wait_for(5)
        for step in ("draining", "drained"):
            wait_for(lambda: spool_of(daemon)["messages"] > 0)
            file = put(points, step)
            fragile.start()
            wait_for(lambda file=file: not file.exists())
            load.wait_for(5)
            fragile.kill()
            load.wait_for(5)
        fragile.start()
        wait_for(lambda: daemon.status()["replaced"] == 4)
        load.wait_for(5)
        wait_for(lambda: empty(daemon), DRAINED)
    ledger.check(rows(table))


def test_a_database_killed_again_and_again_loses_and_doubles_nothing(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    """Under load, with workers that are killed as well."""
    ledger = Ledger()
    with Gsmtpd(settings(fragile, tmp_path / "spool")) as daemon:
        with Load(daemon.address, ledger, make=to_several, pause=0.002) as load:
            for _ in range(4):
                load.wait_for(50)
                fragile.kill()
                load.wait_for(50)
                os.kill(daemon.workers[0], signal.SIGKILL)
                load.wait_for(20)
                fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        assert "spooled=yes" in daemon.log.read_text()
    ledger.check(rows(table))


def test_what_does_not_fit_is_sent_back(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    ledger = Ledger()
    with Gsmtpd(settings(fragile, tmp_path / "spool", spool_size="1M")) as daemon:
        fragile.kill()
        for _ in range(30):
            mail = with_token(100_000)
            (reply,) = send(daemon.address, mail)
            ledger.note(mail, reply, dot=True)
        codes = [attempt.reply.code for attempt in ledger.attempts if attempt.reply]
        assert 5 < codes.count(250) < 11
        assert codes.count(451) == 30 - codes.count(250)
        wait_for(lambda: "is full; see [store] spool_size" in daemon.log.read_text())
        assert 0 < spool_of(daemon)["octets"] <= spool_of(daemon)["most"] == 1 << 20
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        assert send(daemon.address, with_token(100_000))[0].code == 250
        wait_for(lambda: count(table) == codes.count(250) + 1, DRAINED)  # may be spooled once more
    assert (tmp_path / "spool" / "spool.db").stat().st_size < 100_000


def test_a_disk_that_the_spool_fills_is_emptied_again(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    with (
        disk(tmp_path / "disk", 72 << 20) as path,
        Gsmtpd(settings(fragile, path / "spool")) as daemon,
    ):
        fragile.kill()
        codes = [send(daemon.address, with_token(200_000))[0].code for _ in range(40)]
        assert 5 < codes.count(250) < 40
        assert codes.count(250) + codes.count(451) == 40
        said = "spool is full; 64 MiB of its file system stay free"
        wait_for(lambda: said in daemon.log.read_text())
        daemon.stop()
        daemon.start()
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        assert count(table) == codes.count(250)


def test_a_disk_that_others_have_filled_costs_no_service(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    with (
        disk(tmp_path / "disk", 72 << 20) as path,
        Gsmtpd(settings(fragile, path / "spool")) as daemon,
    ):
        fragile.kill()
        ids = send_spooled(daemon, 2)
        daemon.stop()
        filler = fill(path)
        daemon.start()
        said = f"nothing is taken out of it: spool {path}/spool: its file system is full"
        wait_for(lambda: said in daemon.log.read_text())
        assert send(daemon.address, with_token())[0].code == 451
        fragile.start()
        wait_for(lambda: send(daemon.address, with_token())[0].code == 250)
        assert set(ids).isdisjoint(row.hash for row in rows(table))
        filler.unlink()
        wait_for(lambda: set(ids) <= {row.hash for row in rows(table)}, DRAINED)
        fragile.kill()
        send_spooled(daemon, 1)
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)


def test_a_damaged_file_costs_no_service(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    (folder / "spool.db").write_bytes(bad := b"this is no database" * 1000)
    with Gsmtpd(settings(fragile, folder)) as daemon:
        said = f"spool {folder}: file is not a database; spool.db is damaged"
        wait_for(lambda: said in daemon.log.read_text())
        assert send(daemon.address, with_token())[0].code == 250
        fragile.kill()
        assert send(daemon.address, with_token())[0].code == 451
        assert (folder / "spool.db").read_bytes() == bad
        (folder / "spool.db").unlink()
        send_spooled(daemon, 1)
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
    assert count(table) == 2


def test_a_reload_begins_it_and_a_restart_ends_it(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    chosen = settings(fragile, tmp_path / "spool")
    without = merge(chosen, {"store": {"spool": "no"}})
    with Gsmtpd(without) as daemon:
        assert "Spool:      off" in daemon.ctl("status")
        fragile.kill()
        assert send(daemon.address, with_token())[0].code == 451
        daemon.configure(chosen)
        daemon.ctl("reload")
        send_spooled(daemon, 2)
        for other in (without, settings(fragile, tmp_path / "other")):
            daemon.configure(other)
            with pytest.raises(ServerError, match=r"what waits there would stay behind"):
                daemon.ctl("reload")
        send_spooled(daemon, 1)
        daemon.configure(chosen)
        daemon.ctl("reload")
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        daemon.stop()
        daemon.configure(without)
        daemon.start()
        assert send(daemon.address, with_token())[0].code == 250
        assert count(table) == 4


def test_what_is_wrong_with_it_is_said_at_once(fragile: MariaDB, tmp_path: Path) -> None:
    folder = tmp_path / "none" / "spool"
    daemon = Gsmtpd(settings(fragile, folder))
    try:
        said = f"spool {folder}: there is no directory {folder.parent}; make it"
        with pytest.raises(ServerError, match=re.escape(said)):
            daemon.start()
        daemon.arguments = ["-t"]
        done = subprocess.run(daemon.command(), check=False, capture_output=True, text=True)
        assert done.returncode == 0
        assert said in done.stderr
    finally:
        daemon.close()


def test_who_serves_one_client_spools_nothing(fragile: MariaDB, tmp_path: Path) -> None:
    """Nobody would be there to store it later."""
    daemon = Gsmtpd(settings(fragile, tmp_path / "spool"))
    fragile.kill()
    try:
        said = b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        command = [sys.executable, "-m", "gsmtpd", "--inetd", "-c", str(daemon.conf)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            answers = iter(process.stdout.readline, b"")
            assert next(answers).startswith(b"220")
            process.stdin.write(said)
            process.stdin.flush()
            assert any(line.startswith(b"354") for line in answers)
            process.stdin.write(b"\r\nx\r\n.\r\nQUIT\r\n")
            process.stdin.flush()
            assert next(answers).startswith(b"451")
    finally:
        daemon.close()


def test_a_spool_that_is_lost_costs_no_service(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    with Gsmtpd(settings(fragile, folder)) as daemon:
        folder.rename(tmp_path / "lost")  # at once: workers that start make files in it
        shutil.rmtree(tmp_path / "lost", ignore_errors=True)
        assert send(daemon.address, with_token())[0].code == 250
        fragile.kill()
        assert send(daemon.address, with_token())[0].code == 451
        wait_for(lambda: f"{folder}: unable to open database file" in daemon.log.read_text())
        folder.mkdir(mode=0o700)
        send_spooled(daemon, 1)
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
        assert count(table) == 2


def test_what_is_kept_after_its_client_heard_451_is_told(
    fragile: MariaDB, table: MySQLTable, tmp_path: Path
) -> None:
    impatient = "import gsmtpd.server.connection as c; c.GIVE_UP_AFTER = 0.1"
    chosen = settings(fragile, tmp_path / "spool")
    with Gsmtpd(chosen, before=impatient) as daemon:
        fragile.kill()
        ids = send_spooled(daemon)
        locker = sqlite3.connect(tmp_path / "spool" / "spool.db")
        locker.execute("BEGIN IMMEDIATE")
        assert send(daemon.address, with_token())[0].code == 451
        locker.rollback()
        locker.close()
        wait_for(lambda: "result=stored_unheard" in daemon.log.read_text())
        fragile.start()
        wait_for(lambda: empty(daemon), DRAINED)
    assert count(table) == 2
    assert rows(table)[0].hash == ids[0]
