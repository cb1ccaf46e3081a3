"""Does mail that an SMTP thread stores by itself survive what goes wrong with its connection?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from gsmtpd.faultlab.mysql_proxy import Action, MySQLProxy, Point
from tests.accounting import (
    Client,
    Ledger,
    Load,
    Mail,
    MySQLTable,
    count,
    rows,
    send,
    simple,
    to_several,
    with_token,
)
from tests.servers import Gsmtpd, MariaDB, mysql_store, wait_for

NONE = "lanes: 0"
WITH_A_FILE = (
    "Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n\r\nx"
)


class Way(NamedTuple):
    """gsmtpd, which reaches its database through the proxy only, and has a lane."""

    daemon: Gsmtpd
    proxy: MySQLProxy
    table: MySQLTable


@pytest.fixture
def way(mariadb: MariaDB, schema: str) -> Iterator[Way]:
    with MySQLProxy(mariadb.address) as proxy:
        settings = mysql_store(mariadb, schema, host=f"127.0.0.1:{proxy.port}")
        with Gsmtpd(settings) as daemon:
            daemon.wait_for_lane()
            yield Way(daemon, proxy, MySQLTable(mariadb, schema))


def later(daemon: Gsmtpd, mail: Mail, codes: list[int]) -> threading.Thread:
    """Send `mail` meanwhile; its code comes into `codes`."""
    thread = threading.Thread(target=lambda: codes.append(send(daemon.address, mail)[0].code))
    thread.start()
    return thread


def test_one_that_is_lost_is_opened_again(way: Way) -> None:
    for _ in range(3):
        way.proxy.reset()
        wait_for(lambda: NONE in way.daemon.dump())
        assert send(way.daemon.address, with_token())[0].code == 250
        way.daemon.wait_for_lane()
        assert send(way.daemon.address, with_token())[0].code == 250
    assert count(way.table) == 6


def test_others_do_not_wait_behind_a_commit_that_takes_long(way: Way) -> None:
    way.proxy.arm(Point.COMMIT_REPLY, Action.DELAY, seconds=6)
    codes: list[int] = []
    slow = later(way.daemon, with_token(), codes)
    wait_for(lambda: way.proxy.happened)
    assert send(way.daemon.address, with_token())[0].code == 250
    assert codes == []
    slow.join()
    assert codes == [250]
    assert count(way.table) == 2


def test_a_stop_brings_home_what_is_on_it(way: Way) -> None:
    way.proxy.arm(Point.BEFORE_COMMIT, Action.DELAY, seconds=2)
    codes: list[int] = []
    slow = later(way.daemon, with_token(), codes)
    wait_for(lambda: way.proxy.happened)
    assert way.daemon.stop() == 0
    slow.join()
    assert codes == [250]
    assert count(way.table) == 1


def test_a_stop_brings_home_what_it_gives_up(way: Way) -> None:
    """The client has gone, so that nobody but the writer is waited for."""
    way.proxy.arm(Point.BEFORE_COMMIT, Action.DELAY, seconds=1)
    with Client(way.daemon.address) as client:
        client.hello().begin(simple("x"))
        client.send(b"x\r\n.\r\n")
        wait_for(lambda: way.proxy.happened)
    way.proxy.arm(Point.COMMIT_REPLY, Action.KILL)
    assert way.daemon.stop() == 0
    assert len(way.proxy.happened) == 2
    assert count(way.table) == 1
    assert "looking its mail up" in way.daemon.log.read_text()


def test_plain_mail_goes_on_while_writers_are_stuck(
    way: Way, mariadb: MariaDB, schema: str
) -> None:
    """What is behind a lock here only writer threads write to, and there are two."""
    with_a_file = simple("x")._replace(content=WITH_A_FILE.encode() + b"\r\n")
    codes: list[int] = []
    with mariadb.connect(database=schema) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLES mail_attachment WRITE")
        stuck = []
        for number in (1, 2):
            stuck.append(later(way.daemon, with_a_file, codes))
            wait_for(lambda number=number: f"writers at work: {number} of 2" in way.daemon.dump())
        for _ in range(5):
            assert send(way.daemon.address, with_token())[0].code == 250
        assert codes == []
        cursor.execute("UNLOCK TABLES")
    for thread in stuck:
        thread.join()
    assert codes == [250, 250]
    assert count(way.table) == 7


def test_mail_with_attachments_goes_another_way(way: Way, mariadb: MariaDB, schema: str) -> None:
    ledger = Ledger()

    def every_other() -> Mail:
        mail = to_several()
        if len(ledger.attempts) % 2:
            content = b"X-Token: " + mail.content.replace(b"\r\n", b" ") + b"\r\n"
            mail = mail._replace(content=content + WITH_A_FILE.encode() + b"\r\n")
        return mail

    with Load(way.daemon.address, ledger, make=every_other) as load:
        load.wait_for(200)
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0
    listed = mariadb.query(
        "SELECT COUNT(*) FROM new_mail JOIN mail_attachment USING (mail_id)", database=schema
    )
    assert listed == [(sum(b"filename=a.pdf" in row.content for row in stored),)]
    assert 0 < listed[0][0] < len(stored)


@pytest.mark.parametrize(
    "point",
    [Point.BEFORE_BEGIN, Point.AFTER_BEGIN, Point.BETWEEN_INSERTS, Point.BEFORE_COMMIT,
     Point.COMMIT_REPLY],
)  # fmt: skip
def test_killed_again_and_again_under_load(way: Way, point: Point) -> None:
    ledger = Ledger()
    with Load(way.daemon.address, ledger, make=to_several) as load:
        for _ in range(4):
            way.daemon.wait_for_lane()
            before = len(way.proxy.happened)
            way.proxy.arm(point, Action.KILL)
            wait_for(lambda before=before: len(way.proxy.happened) > before)
            load.wait_for(20)
    stored = rows(way.table)
    ledger.check(stored)
    assert ledger.duplicates(stored) == 0


def test_where_it_would_be_the_only_connection_there_is_none(mariadb: MariaDB, schema: str) -> None:
    with Gsmtpd(mysql_store(mariadb, schema, connections=1)) as daemon:
        assert send(daemon.address, with_token())[0].code == 250
        time.sleep(1.5)
        assert NONE in daemon.dump()
        ids = "SELECT id FROM information_schema.processlist WHERE db = %s"
        assert len(mariadb.query(ids, (schema,))) <= 2  # with that of upkeep


def test_connections_are_as_many_as_before(mariadb: MariaDB, schema: str) -> None:
    ledger = Ledger()
    with Gsmtpd(mysql_store(mariadb, schema, connections=2)) as daemon:
        daemon.wait_for_lane()
        with Load(daemon.address, ledger, make=to_several) as load:
            load.wait_for(100)
            ids = "SELECT id FROM information_schema.processlist WHERE db = %s"
            assert len(mariadb.query(ids, (schema,))) <= 3  # with that of upkeep
