"""Is old mail forgotten, by the daemon and by hand, and no other?"""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from gsmtpd.storage.partitions import clause
from tests.accounting import MySQLTable, Table, table_of
from tests.servers import Gsmtpd, MariaDB, ServerError, merge, mysql_store, wait_for

WITH_FILE = (
    b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\nx\r\n--b\r\nContent-Type: application/pdf\r\n\r\nx\r\n--b--\r\n"
)
OLD = "2026-01-02 03:04:05"  # in the past of any run of these tests


class Mailbox(NamedTuple):
    """A daemon, and its tables."""

    daemon: Gsmtpd
    table: Table

    def send(self, *recipients: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.daemon.port) as client:
            for recipient in recipients:
                client.sendmail("a@example.org", [recipient], WITH_FILE)

    def grow_old(self) -> None:
        """All mail that is there has been there for long."""
        self.table.query(f"UPDATE new_mail SET date = '{OLD}'")

    def recipients(self, table: str = "new_mail") -> list[str]:
        found = self.table.query(f"SELECT recipient FROM {table} ORDER BY mail_id")
        return [str(name) for (name,) in found]

    def attached(self) -> int:
        sql = "SELECT COUNT(*) FROM mail_attachment a JOIN new_mail m ON m.mail_id = a.mail_id"
        left = self.table.query("SELECT COUNT(*) FROM mail_attachment")[0][0]
        assert self.table.query(sql)[0][0] == left  # none without its mail
        return int(left)


SETTINGS = {"domains": {"accept": "example.com, example.net, example.org"}}
Start = Callable[..., Mailbox]


@pytest.fixture(params=["sqlite", "mariadb"])
def start(request: pytest.FixtureRequest, mariadb: MariaDB) -> Iterator[Start]:
    """Starts a daemon with the [store] settings it is given."""
    running: list[Gsmtpd] = []

    def begin(**store: object) -> Mailbox:
        settings = merge(SETTINGS, {"store": store})
        if request.param == "sqlite":
            running.append(Gsmtpd(settings))
            running[0].start()
            return Mailbox(running[0], table_of(running[0]))
        schema = request.getfixturevalue("schema")
        running.append(Gsmtpd(merge(settings, mysql_store(mariadb, schema))))
        running[0].start()
        return Mailbox(running[0], MySQLTable(mariadb, schema))

    yield begin
    for daemon in running:
        daemon.close()


def test_the_daemon_forgets_old_mail(start: Start) -> None:
    box = start(keep="1h, example.net forever, example.org 9h")
    box.send("old@example.com", "kept@example.net", "old@example.org")
    box.daemon.stop()
    box.grow_old()
    box.daemon.start()
    box.send("new@example.com", "new@example.org")
    left = ["kept@example.net", "new@example.com", "new@example.org"]
    wait_for(lambda: box.recipients() == left, 30)
    assert box.attached() == 3


def test_without_keep_nothing_goes_but_by_hand(start: Start) -> None:
    box = start()
    box.send("a@example.com", "b@example.net")
    box.grow_old()
    box.send("c@example.com")
    with pytest.raises(ServerError, match="keep says no time; say one by --older-than"):
        box.daemon.ctl("purge")
    assert box.daemon.ctl("purge", "--older-than", "1h", "--dry-run") == "would delete 2 mails\n"
    assert len(box.recipients()) == 3
    purge = ("purge", "--older-than", "1h", "--domain")
    assert box.daemon.ctl(*purge, "example.org") == "deleted 0 mails\n"
    assert box.daemon.ctl(*purge, "Example.NET") == "deleted 1 mails\n"
    assert box.recipients() == ["a@example.com", "c@example.com"]
    assert box.daemon.ctl("purge", "--older-than", "30d") == "deleted 1 mails\n"
    assert box.recipients() == ["c@example.com"]
    assert box.attached() == 1


def test_purge_does_what_keep_says(start: Start) -> None:
    box = start(keep="forever, example.net 1h")
    box.daemon.stop()  # else it may be first
    box.daemon.start()
    box.send("a@example.com", "b@example.net")
    box.daemon.stop()
    box.grow_old()
    assert box.daemon.ctl("purge") == "deleted 1 mails\n"
    assert box.recipients() == ["a@example.com"]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--older-than", "never"], '"never" is not a duration'),
        (
            ["--older-than", "1h", "--domain", "*.example"],
            "write each domain here by its",
        ),
        (["--domain", "example.com"], "--domain is for --older-than"),
    ],
)
def test_what_is_wrong_is_said(start: Start, arguments: list[str], wrong: str) -> None:
    box = start()
    with pytest.raises(ServerError) as refused:
        box.daemon.ctl("purge", *arguments)
    assert wrong in str(refused.value)


def made_ahead(table: Table) -> bool:
    """Whether there is a partition for the time being."""
    newest = "MAX(TRIM(BOTH '\\'' FROM partition_description))"
    (found,) = table.query(
        f"SELECT {newest} > UTC_TIMESTAMP() FROM information_schema.partitions"
        " WHERE table_schema = DATABASE() AND partition_description <> 'MAXVALUE'"
    )
    return bool(found[0])


def test_whole_hours_go_with_partitions(mariadb: MariaDB, schema: str) -> None:
    """The table has hours of long ago; the daemon makes new ones, and drops those with mail."""
    table = MySQLTable(mariadb, schema)
    settings = merge(SETTINGS, mysql_store(mariadb, schema, partition="hour"))
    with Gsmtpd(settings) as daemon:
        box = Mailbox(daemon, table)
        wait_for(lambda: "has no partitions by `date`" in daemon.log.read_text())
        box.send("old@example.com")
        box.grow_old()
    table.query(
        "ALTER TABLE new_mail DROP PRIMARY KEY, ADD PRIMARY KEY (mail_id, date) "
        + clause(1_767_300_000, hours=2)  # from 2026-01-01 20:40 on
    )
    with Gsmtpd(merge(settings, {"store": {"keep": "1h"}})) as daemon:
        box = Mailbox(daemon, table)
        wait_for(lambda: box.recipients() == [])
        wait_for(lambda: box.attached() == 0)
        wait_for(lambda: made_ahead(table))
        box.send("new@example.com")
        assert box.recipients() == ["new@example.com"]
        assert box.recipients("new_mail PARTITION (pmax)") == []


def test_purge_looks_after_partitions_and_the_counter(mariadb: MariaDB, schema: str) -> None:
    """As it must where each client has a process of its own, and no daemon runs."""
    table = MySQLTable(mariadb, schema)
    table.query(
        "ALTER TABLE new_mail DROP PRIMARY KEY, ADD PRIMARY KEY (mail_id, date) "
        + clause(1_767_300_000, hours=2)
    )
    for _ in range(3):
        table.query("INSERT INTO gm2_received (messages) SELECT 1 FROM seq_1_to_700")
    settings = mysql_store(mariadb, schema, partition="hour")
    daemon = Gsmtpd(merge(SETTINGS, settings))  # which is not started
    assert daemon.ctl("purge", "--older-than", "1h") == "deleted 0 mails\n"
    daemon.close()
    assert made_ahead(table)
    oldest = "SELECT MIN(partition_description) FROM information_schema.partitions"
    found = table.query(f"{oldest} WHERE table_schema = DATABASE()")
    assert str(found[0][0]) > "'2026-01-02"
    assert table.query("SELECT setting_value FROM gm2_setting") == [(2100,)]
    assert table.query("SELECT COUNT(*) FROM gm2_received") == [(0,)]
