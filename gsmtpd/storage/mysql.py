"""Mail in MySQL or MariaDB, by PyMySQL through DBUtils' PooledDB: 250 only after the COMMIT.

The rules that keep a message from being lost, stored by halves or stored twice:
* Always `begin()`: without it DBUtils executes again on a fresh connection, and what was inserted
  before the loss is silently missing.
* Any error behind BEGIN is followed by ROLLBACK: error 1205 undoes one statement only.
* Where the answer to a COMMIT is lost, the session it was sent on is killed, so that nothing more
  can come of it, and the batch's own ids are looked up.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import pymysql

from gsmtpd.message.body import NOTHING
from gsmtpd.message.row import Message, RowMaker
from gsmtpd.storage.base import Health, Letter, OnStored, Outcome, Result, StoreError
from gsmtpd.storage.dedupe import COLUMNS, MAX_CANDIDATES, Copy, Key, candidates, rows_of
from gsmtpd.storage.mysql_beside import Beside
from gsmtpd.storage.mysql_connection import (
    ALTERED,
    DENIED,
    LOST,
    NO_SPACE,
    READ_ONLY,
    REFUSED,
    RETRY,
    ROLLED_BACK,
    STALE,
    Database,
    Host,
    close,
    code_of,
    driver,
    explain,
    store_error,
)
from gsmtpd.storage.mysql_doubt import (
    Ambiguous,
    Doubts,
    Look,
    is_safe,
    session_of,
)
from gsmtpd.storage.mysql_hosts import Hosts, OnAway
from gsmtpd.storage.mysql_lane import MySQLLane, make_ready
from gsmtpd.storage.mysql_look import check_settings, read_columns
from gsmtpd.storage.mysql_pool import FAILURES, PooledDB
from gsmtpd.storage.mysql_query import Queries
from gsmtpd.storage.mysql_table import MailTable
from gsmtpd.storage.reader import Bodies, SQLReader

_log = logging.getLogger(__name__)

_TRIES = 3
_LOOKUP_PAUSES = (0.0, 0.5, 1.5, 3.0)  # seconds before each look for an ambiguous batch
_STATEMENT_BYTES = 4 * 1024 * 1024
_ROOM_FOR_TYPES = 8192  # octets of a packet in front of its values


OnCapacity = Callable[[int], None]


class MySQLStore:
    """Keeps mail in the table of `database`, through a pool of at most `connections`.

    warn: say in the log what `prepare` finds; one worker of several is enough for that.
    strict: also say where the server's settings do not make a COMMIT durable. lookups: how many
    threads use `query`, whose connections come on top.
    on_capacity: called with the largest message, in octets, that the server is sure to take.
    on_away, lock: see Hosts; with a lock there is one connection. on_stored: see OnStored.
    """

    def __init__(
        self,
        database: Database,
        rows: RowMaker,
        connections: int,
        warn: bool = True,
        strict: bool = True,
        on_capacity: OnCapacity = lambda size: None,
        lookups: int = 0,
        on_away: OnAway = lambda bits: None,
        lock: str = "",
        on_stored: OnStored = lambda owed: None,
    ) -> None:
        self._database = database
        self._rows = rows
        self._warn = warn
        self._strict = strict
        self._on_capacity = on_capacity
        self._health = Health("mysql")
        self._on_stored = on_stored
        self._lock = threading.Lock()
        self._table: MailTable | None = None
        self._statement_bytes = _STATEMENT_BYTES
        # Over another connection what is known of the mail may be another thing.
        self._tries = 1 if lock else _TRIES
        self._hosts = Hosts(database, warn, on_away, lock)
        self.can_write = self._hosts.can_write
        self._beside = Beside(database.table, warn, rows.has_handlers)
        self._said_as_it_is = False
        self._doubts = Doubts(database.table, self._ask)
        # Batches of lanes whose COMMIT is in doubt, by the id of their first message.
        self._in_doubt: dict[str, Ambiguous] = {}
        self._queries = Queries(database, max(1, lookups), self._hosts)
        # No ping, no reset: each costs a round trip per batch. A dead connection shows at BEGIN,
        # and a rollback that fails lets DBUtils connect again.
        self._pool = PooledDB(
            self._hosts.connect,
            maxconnections=connections,
            reset=False,
            ping=0,
            failures=FAILURES,
        )

    def prepare(self) -> None:
        """Connect, read the table's columns, check the settings that durability needs."""
        try:
            with self._connection() as connection:
                self._known_table(connection)
        except (pymysql.MySQLError, OSError) as error:
            trouble = store_error(error, self._database)
            self._say_trouble(trouble)
            raise trouble from error
        except StoreError as error:
            self._say_trouble(error)
            raise
        self._health.well()

    def _say_trouble(self, trouble: StoreError) -> None:
        if self._warn:
            self._health.trouble(str(trouble))

    def read(self, message: Message) -> Letter:
        """Read `message`, for all its rows."""
        return Letter(message, self._rows.read(message), deliveries=self._rows.deliveries(message))

    def encode(self, message: Message) -> Letter:
        """Make the SQL values of `message`, if the table's columns are known by now."""
        letter = self.read(message)
        table = self._table
        if table is None:
            return letter
        return letter._replace(form=(table, list(self._values(table, letter))))

    def write(self, letters: Sequence[Letter]) -> list[Result]:
        """Store `letters` in one transaction."""
        if self._in_doubt and (lost := self._in_doubt.pop(letters[0].message.id, None)):
            return self._settle(letters, lost)
        try:
            self._write(letters)
        except Ambiguous as doubt:
            return self._settle(letters, doubt)
        except (pymysql.MySQLError, StoreError, OSError) as error:
            return self._after_error(letters, error)
        self._stored(letters)
        return [Outcome.STORED] * len(letters)

    def _stored(self, letters: Sequence[Letter]) -> None:
        self._health.well()
        self._on_stored(any(letter.deliveries for letter in letters))

    def open_lane(self) -> MySQLLane | None:
        """A connection for one thread that must not wait; None if that is not enough here.

        A batch that it gives up goes, as it is, to `write`. Raises StoreError.
        """
        try:
            connection = self._hosts.connect()
            try:
                table = self._known_table(connection)
                if not self._beside.comes_behind:
                    make_ready(connection, table)
                    return MySQLLane(
                        connection,
                        table,
                        self._statement_bytes,
                        self._beside,
                        self._is_current,
                        self._stored,
                        self._doubt,
                    )
            except BaseException:
                close(connection)
                raise
        except (pymysql.MySQLError, OSError) as error:
            raise store_error(error, self._database) from error
        close(connection)
        return None

    def _is_current(self, host: Host, table: MailTable) -> bool:
        return table is self._table and not self._hosts.leaves(host)

    def _doubt(self, letters: Sequence[Letter], doubt: Ambiguous) -> None:
        self._in_doubt[letters[0].message.id] = doubt

    def copies(self, keys: Sequence[Key], since: float) -> list[Copy]:
        """All rows of the messages that may be one of `keys`, received since that Unix time.

        None while it is not sure that they are synced. Raises StoreError, also where the table
        lacks a column that tells.
        """
        table = self._database.table
        try:
            with self._connection() as connection, connection.cursor() as cursor:
                self._known_table(connection).require(COLUMNS)
                cursor.execute(*candidates(table, "%s", keys, since))
                ids = [number for (number,) in cursor.fetchall()]
                if not 0 < len(ids) <= MAX_CANDIDATES:
                    return []
                cursor.execute(rows_of(table, "%s", ids), ids)
                found = [Copy(*row) for row in cursor.fetchall()]
                return found if is_safe(driver(connection)) else []
        except (pymysql.MySQLError, OSError) as error:
            raise store_error(error, self._database) from error

    def query(self, sql: str) -> Callable[[str], bool]:
        """Whether the statement finds a row for its parameter. What is called raises StoreError."""
        return partial(self._queries.finds, sql)

    def close(self) -> None:
        """Close the pool's connections."""
        if self._beside.uncounted:
            with suppress(pymysql.MySQLError, OSError), self._connection() as connection:
                self._beside.count(connection)
        self._hosts.close()
        self._queries.close()
        self._pool.close()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection of the pool, to the host that is to be used now."""
        connection = self._pool.connection()
        try:
            if self._hosts.leaves(driver(connection).to_host):
                self._connect_again(connection)
            yield connection
        finally:
            connection.close()  # back into the pool

    def _connect_again(self, connection: Any) -> None:
        """Leave the host that `connection` leads to, unless that is done."""
        self._table = None  # on another server it may be another
        close(driver(connection))
        with suppress(pymysql.MySQLError, OSError):
            connection.rollback()  # DBUtils connects where the connection is lost

    def _note(self, connection: Any, used: Any, error: Exception) -> None:
        """Make `connection` fit for another try after `error` on the driver's own, `used`."""
        if code_of(error) in READ_ONLY:
            self._hosts.failed(used.to_host, error)
            # DBUtils may have connected again by now, perhaps to the same host.
            if driver(connection).to_host == used.to_host:
                close(driver(connection))
        with suppress(pymysql.MySQLError, OSError):
            connection.rollback()  # connects again if the connection was lost

    def _write(self, letters: Sequence[Letter]) -> None:
        """Try the whole transaction, again where another try can help."""
        with self._connection() as connection:
            for left in reversed(range(self._tries)):
                used = driver(connection)
                try:
                    self._transaction(connection, letters)
                    self._beside.stored(connection, len(letters))
                    return
                except Ambiguous as doubt:
                    self._note(connection, used, doubt.error)
                    raise
                except (pymysql.MySQLError, OSError) as error:
                    code = code_of(error)
                    self._note(connection, used, error)
                    if code in STALE:
                        used.statements.clear()
                    elif code in ALTERED | DENIED | LOST | READ_ONLY:
                        self._table = None  # a table, server or packet size that is another now
                    elif code not in RETRY:
                        raise
                    if not left:
                        raise
                    if code in RETRY:
                        time.sleep(random.uniform(0.01, 0.1))
                except BaseException:
                    # In the pool, the next BEGIN would commit the part that was inserted.
                    with suppress(pymysql.MySQLError, OSError):
                        connection.rollback()
                    raise

    def _transaction(self, connection: Any, letters: Sequence[Letter]) -> None:
        table = self._known_table(connection)
        connection.begin()
        used = driver(connection)
        values = chain.from_iterable(self._values(table, letter) for letter in letters)
        for rows in table.groups(values, self._statement_bytes):
            used.execute(table.insert(len(rows)), table.types, rows)
        with connection.cursor() as cursor:
            self._beside.write(cursor, letters)
        session = session_of(used)
        try:
            connection.commit()
        except Exception as error:
            if code_of(error) in ROLLED_BACK:
                raise
            raise Ambiguous(error, session) from error

    def _values(self, table: MailTable, letter: Letter) -> Iterable[bytes]:
        if letter.form is not None and letter.form[0] is table:
            made: list[bytes] = letter.form[1]
            return made
        reading, held = letter.reading, letter.held
        if (held or reading.packed) and not self._can_say_how(table):
            reading, held = reading._replace(packed=None), ""
        return map(table.values, self._rows.rows(letter.message, reading, held))

    def _can_say_how(self, table: MailTable) -> bool:
        """Whether a row can tell its readers that `mail` is not the mail as it is."""
        if table.has("mail_encoding") or (self._rows.marks_encoding and table.has("body")):
            return True
        if self._warn and not self._said_as_it_is:
            self._said_as_it_is = True
            _log.warning(
                "mysql: table %s has no column mail_encoding, so mail is stored there as it is,"
                " whatever compress and [[body]] say",
                self._database.table,
            )
        return False

    def _settle(self, letters: Sequence[Letter], doubt: Ambiguous) -> list[Result]:
        """Find out whether an ambiguous COMMIT was carried out; if surely not, try once more."""
        over, outcomes = self._look_up(letters, doubt)
        if not over or Outcome.STORED in outcomes:
            return [*outcomes]
        try:
            self._write(letters)
        except Ambiguous as second:
            return [*self._look_up(letters, second)[1]]
        except (pymysql.MySQLError, StoreError, OSError) as error:
            return self._after_error(letters, error)
        self._stored(letters)
        return [Outcome.STORED] * len(letters)

    def _look_up(self, letters: Sequence[Letter], doubt: Ambiguous) -> tuple[bool, list[Outcome]]:
        """Whether the session of the COMMIT is over, and what is stored of `letters`."""
        text = explain(doubt.error, self._database)
        _log.warning("mysql: the answer to a COMMIT was lost (%s); looking its mail up", text)
        ids = [letter.message.id for letter in letters]
        for pause in _LOOKUP_PAUSES:
            time.sleep(pause)
            try:
                over, stored = self._doubts.look_up(ids, doubt.session)
            except StoreError as error:
                text = str(error)
            except (pymysql.MySQLError, OSError) as error:
                text = explain(error, self._database)
            else:
                return over, [
                    Outcome.STORED if number in stored else Outcome.TROUBLE for number in ids
                ]
        # Never AWAY: what goes into the spool must not be stored by anybody else.
        self._health.trouble(text)
        return False, [Outcome.TROUBLE] * len(letters)

    def _trouble(self) -> Outcome:
        return Outcome.TROUBLE if self._hosts.can_write() else Outcome.AWAY

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the message `ids` that are stored. Raises StoreError, also while in doubt."""
        try:
            return self._doubts.known(ids)
        except (pymysql.MySQLError, OSError) as error:
            raise store_error(self._hosts.trouble() or error, self._database) from error

    def _ask(self, look: Look) -> Any:
        """What `look` finds over a driver's connection; over a fresh one where that was lost."""
        with self._connection() as connection:
            for last in (False, True):
                used = driver(connection)
                try:
                    return look(used)
                except (pymysql.MySQLError, OSError) as error:
                    self._note(connection, used, error)
                    if last or code_of(error) not in LOST | READ_ONLY:
                        raise
        raise AssertionError("one of two tries ends this")

    def _after_error(self, letters: Sequence[Letter], error: Exception) -> list[Result]:
        code = code_of(error)
        if code in REFUSED:
            if len(letters) > 1:
                # One message is at fault: halves find it, and it stands alone.
                middle = len(letters) // 2
                return self.write(letters[:middle]) + self.write(letters[middle:])
            (letter,) = letters
            if letter.reading.body != NOTHING:
                # What is told of a message must not cost it.
                _log.warning(
                    "mysql: message %s is not taken: %s; trying it without its text and the list"
                    " of its attachments",
                    letter.message.id,
                    explain(error, self._database),
                )
                bare = letter.reading._replace(body=NOTHING)
                return self.write([letter._replace(reading=bare, form=None)])
            _log.error(
                "mysql: message %s refused: %s; answering 451",
                letter.message.id,
                explain(error, self._database),
            )
            return [Outcome.TROUBLE]
        if code in LOST:
            error = self._hosts.trouble() or error  # DBUtils raises only that one was lost
        text = str(error) if isinstance(error, StoreError) else explain(error, self._database)
        self._health.trouble(text)
        return [Outcome.NO_SPACE if code in NO_SPACE else self._trouble()] * len(letters)

    def _known_table(self, connection: Any) -> MailTable:
        table = self._table
        if table is None:
            with self._lock:
                table = self._table
                if table is None:
                    table = self._read_table(connection)
                    self._table = table
        return table

    def _read_table(self, connection: Any) -> MailTable:
        name = self._database.table
        cursor = connection.cursor()
        columns = read_columns(cursor, name)
        packet = check_settings(cursor, name, self._warn, self._strict)
        # 64 KiB for the other columns; the text of a mail is cut where it leaves less room.
        self._statement_bytes = min(_STATEMENT_BYTES, packet - 65536)
        self._on_capacity(packet - 65536)
        table = MailTable(name, columns, packet - _ROOM_FOR_TYPES)
        self._beside.look(cursor, table)
        cursor.close()
        return table


def open_reader(database: Database, bodies: Bodies | None = None) -> SQLReader:
    """A reader of the mail table. bodies: the body store, if there is one. Raises StoreError."""
    hosts = Hosts(database)
    try:
        connection = hosts.connect()
    except pymysql.MySQLError as error:
        raise store_error(error, database) from error
    finally:
        hosts.close()  # nobody tries those that do not answer: who reads connects anew
    return SQLReader(
        connection, database.table, "%s", lambda error: store_error(error, database), bodies
    )
