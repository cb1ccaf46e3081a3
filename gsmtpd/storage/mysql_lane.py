"""How does one thread write batches to a database without ever waiting for it?

Over a connection of its own a batch goes out at once: BEGIN, its INSERTs, and what stands beside
them; COMMIT when all are answered, as what one of them refuses must not be stored by halves.
Whatever goes wrong ends the connection, and with it a transaction that is open, and leaves the
batch to `MySQLStore.write`, which may wait, try again and look up.

Nothing is connected to or asked here; its statements were prepared by `make_ready`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import pymysql

from gsmtpd.storage.base import Letter
from gsmtpd.storage.mysql_beside import Beside
from gsmtpd.storage.mysql_connection import READ_TIMEOUT, ROLLED_BACK, Host, code_of
from gsmtpd.storage.mysql_doubt import Ambiguous, session_of
from gsmtpd.storage.mysql_table import ROWS, MailTable
from gsmtpd.storage.mysql_wire import Connection, execution, query

_log = logging.getLogger(__name__)

_DONTWAIT = int(socket.MSG_DONTWAIT)
_BEGIN, _COMMIT = query("BEGIN"), query("COMMIT")
_HEADER = 4  # octets in front of what a packet says
_OK, _ERROR = 0x00, 0xFF  # what it begins with
_ANSWERS = 4096  # octets of one recv; an answer has 11 or so

OnDoubt = Callable[[Sequence[Letter], Ambiguous], None]


class MySQLLane:
    """One connection, `used`, and the batch that is under way on it. For one thread.

    used: made ready for `table`. limit: octets of the rows of one INSERT. current: whether the
    connection leads where it should, to a table that is still `table`. on_stored: called with a
    batch that is committed. on_doubt: called where it is not known whether it was.
    """

    def __init__(
        self,
        used: Connection,
        table: MailTable,
        limit: int,
        beside: Beside,
        current: Callable[[Host, MailTable], bool],
        on_stored: Callable[[Sequence[Letter]], None],
        on_doubt: OnDoubt,
    ) -> None:
        assert used._sock is not None
        self._used = used
        self._socket = used._sock
        self._session = session_of(used)
        self._table = table
        self._limit = limit
        self._beside = beside
        self._current = current
        self._on_stored = on_stored
        self._on_doubt = on_doubt
        self._letters: Sequence[Letter] = ()
        self._unsent: bytes | memoryview = b""
        self._heard = b""  # the part that has come of an answer
        self._open_answers = 0
        self._committing = False
        self._since = 0.0  # monotonic seconds: when it was last heard, or given something to do

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether it waits for room to send, and not for answers."""
        return bool(self._unsent)

    def fits(self) -> bool:
        """Whether it leads to the right host and table still."""
        return self._current(self._used.to_host, self._table)

    def takes(self, letter: Letter) -> bool:
        """Whether its values are made, and nothing is to be asked for it."""
        form = letter.form
        return form is not None and form[0] is self._table and not self._beside.asks(letter)

    def write(self, letters: Sequence[Letter]) -> None:
        """Begin to store what it `takes`. Raises OSError and pymysql.err.Error."""
        self._letters = letters
        parts: list[bytes] = [_BEGIN]
        answers = 1
        values = chain.from_iterable(letter.form[1] for letter in letters)
        for rows in self._table.groups(values, self._limit):
            statement = self._used.statements[self._table.insert(len(rows))]
            packet = execution(statement, self._table.types, rows)
            if packet is None:
                raise pymysql.err.OperationalError(1153, "more than a packet")
            parts += packet
            answers += 1
        for sql in self._beside.statements(letters):
            parts.append(query(sql))
            answers += 1
        self._ask(b"".join(parts), answers)

    def _ask(self, octets: bytes, answers: int) -> None:
        self._since = time.monotonic()
        self._open_answers = answers
        self._unsent = octets
        self._send()

    def _send(self) -> None:
        try:
            sent = self._socket.send(self._unsent, _DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        whole = sent == len(self._unsent)
        self._unsent = b"" if whole else memoryview(self._unsent)[sent:]

    def go_on(self) -> bool:
        """Send and hear what can be; True once the batch is committed.

        Raises OSError and pymysql.err.Error. Then, as where anything else is raised, `give_up`.
        """
        if self._unsent:
            self._send()
        self._hear()
        if self._open_answers or not self._letters:
            return False
        if self._committing:
            return True
        self._commit()
        return False

    def _commit(self) -> None:
        self._committing = True
        self._ask(_COMMIT, 1)

    def _hear(self) -> None:
        """Take the answers that have come."""
        try:
            octets = self._socket.recv(_ANSWERS, _DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        if not octets:
            raise pymysql.err.OperationalError(2013, "Lost connection to MySQL server")
        self._since = time.monotonic()
        heard = self._heard + octets
        at = 0
        while len(heard) - at > _HEADER:
            end = at + _HEADER + int.from_bytes(heard[at : at + 3], "little")
            if len(heard) < end:
                break
            self._answered(heard[at + _HEADER : end])
            at = end
        self._heard = heard[at:]

    def _answered(self, answer: bytes) -> None:
        if answer[:1] == bytes([_ERROR]):
            pymysql.err.raise_mysql_exception(answer)
        if answer[:1] != bytes([_OK]) or not self._open_answers:
            raise pymysql.err.OperationalError(2014, "an answer to nothing that was asked")
        self._open_answers -= 1

    def done(self) -> None:
        """The batch is committed, and another may come."""
        assert self._committing and not self._open_answers
        self._committing = False
        stored, self._letters = self._letters, ()
        self._on_stored(stored)

    def check_time(self, now: float) -> None:
        """Raises TimeoutError where the server takes too long. now: monotonic seconds."""
        if self._letters and now - self._since > READ_TIMEOUT:
            raise self._socket.too_late()

    def give_up(self, error: Exception) -> bool:
        """Close it for `error`; whether MySQLStore.write has to find out what became of its batch.

        Else that is not stored.
        """
        if not isinstance(error, pymysql.MySQLError | OSError):
            _log.error("store: unexpected trouble with a lane", exc_info=error)
        in_doubt = self._committing and code_of(error) not in ROLLED_BACK
        if in_doubt:
            self._on_doubt(self._letters, Ambiguous(error, self._session))
        self.close()
        return in_doubt

    def close(self) -> None:
        """End the connection, and the transaction that is open on it."""
        # Not by QUIT: behind what could not be sent that would make the thread wait.
        with suppress(OSError):
            self._used._force_close()


def make_ready(connection: Any, table: MailTable) -> None:
    """Make the driver's `connection` fit for a lane. Raises OSError and pymysql.err.Error."""
    for rows in ROWS:
        connection.prepare(table.insert(rows))
    # Were BEGIN refused, as a query that is killed, the INSERTs behind it would be committed.
    connection.autocommit(False)
