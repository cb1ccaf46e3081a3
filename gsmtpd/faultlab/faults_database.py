"""Which faults has a database server, and how are they brought about?"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pymysql

from gsmtpd.faultlab.fault import BrokenPromiseError, DidNotHappenError, Dose, Fault, fault_of
from gsmtpd.faultlab.lab import SCHEMA, Lab
from gsmtpd.faultlab.lossyfs_disk import KEEPS
from gsmtpd.faultlab.mysql_proxy import Action, Point
from gsmtpd.faultlab.servers import MariaDB

_TOO_MANY = 1040  # ER_CON_COUNT_ERROR
_HOG, _HOGS = "hog", 400
_POISONED = 10  # one row in so many


def down_at_start(lab: Lab, dose: Dose) -> str:
    """The database is away while gsmtpd starts"""
    lab.gsmtpd.stop()
    lab.database.kill()
    mark, refused = lab.mark(), lab.senders.refused
    lab.gsmtpd.start()
    dose.wait(lambda: lab.said('level=error msg="mysql: ', mark), "gsmtpd missed no database")
    dose.wait(lambda: lab.senders.refused > refused, "no mail was refused")
    dose.hold(0.5, 2)
    lab.database.start()
    dose.over()
    return "started without a database, and said so"


def sigkill_loop(lab: Lab, dose: Dose) -> str:
    """The database is killed again and again under load"""
    killed = []
    for _ in range(3):
        lab.await_load(5)
        killed.append(lab.database.pid)
        lab.database.kill()
        dose.hold(0.1, 1)
        lab.database.start()
    dose.over()
    return f"MariaDB killed as {killed}"


def killed_before_begin(lab: Lab, dose: Dose) -> str:
    """The database is killed while a writer is about to send BEGIN"""
    lab.arm("before_begin", "stall 1.5")
    dose.wait(lambda: not lab.armed("before_begin"), "no writer was before BEGIN")
    lab.database.kill()
    dose.hold(1.5, 2.5)
    lab.database.start()
    dose.over()
    return "killed while a writer was before BEGIN"


def _killed_at(point: Point, name: str, where: str, armed: bool = False) -> Fault:
    """The fault that the database is killed when `point` comes by in the proxy."""

    def inject(lab: Lab, dose: Dose) -> str:
        pid = lab.database.pid
        dead = threading.Event()

        def kill() -> None:
            lab.database.kill()
            dead.set()

        lab.proxy.arm(point, Action.CALL, function=kill)
        dose.wait(dead.is_set, f"no {point.name} came by")
        dose.hold(0.1, 1)
        lab.database.start()
        dose.over()
        return f"MariaDB {pid} killed at {point.name}"

    return fault_of(inject, name, f"the database is killed {where}", armed=armed)


def kill_connection(lab: Lab, dose: Dose) -> str:
    """KILL CONNECTION for all connections of gsmtpd, again and again"""
    killed = 0
    for _ in range(5):
        dose.hold(0.05, 0.3)
        killed += lab.kill_connections()
    dose.over()
    if not killed:
        raise DidNotHappenError("gsmtpd had no connection")
    return f"{killed} connections killed"


def wait_timeout(lab: Lab, dose: Dose) -> str:
    """Connections are closed by the database for being idle, with wait_timeout=1"""
    lab.database.query("SET GLOBAL wait_timeout=1")
    lab.kill_connections()
    lab.await_load(5)
    before = lab.database_status("Aborted_clients")
    lab.senders.pause()
    try:
        dose.wait(lambda: lab.database_status("Aborted_clients") > before, "none was closed")
    finally:
        lab.senders.resume()
    dose.over()
    closed = lab.database_status("Aborted_clients") - before
    lab.database.query("SET GLOBAL wait_timeout=28800")
    return f"{closed} connections closed"


def lock_wait(lab: Lab, dose: Dose) -> str:
    """Rows are locked by somebody else until gsmtpd's waits end in error 1205"""
    before = lab.database_status("Innodb_row_lock_waits")
    with lab.database.connect(database=SCHEMA) as connection, connection.cursor() as cursor:
        connection.begin()
        # A lock on the end of the table is enough, and no row need be read for it.
        cursor.execute("SELECT mail_id FROM new_mail WHERE mail_id > 4294967295 FOR UPDATE")
        dose.hold(6, 7)  # longer than gsmtpd's innodb_lock_wait_timeout, 5 s
        connection.rollback()
    dose.over()
    waits = lab.database_status("Innodb_row_lock_waits") - before
    if not waits:
        raise DidNotHappenError("nobody waited for the lock")
    return f"{waits} waits for a lock that was held for over 5 s"


def _error(number: int, name: str, description: str, point: Point) -> Fault:
    """The fault that the database answers with an error, at `point`, one to four times."""

    def inject(lab: Lab, dose: Dose) -> str:
        times = dose.random.randint(1, 4)
        before = len(lab.proxy.happened)
        lab.proxy.arm(point, Action.ERROR, times=times, errno=number)
        dose.wait(lambda: len(lab.proxy.happened) >= before + times, f"no {point.name} came by")
        dose.over()
        return f"{times} times error {number}"

    return fault_of(inject, name, description, armed=point is Point.BETWEEN_INSERTS)


def disk_full(lab: Lab, dose: Dose) -> str:
    """The disk of the database is full"""
    mark = lab.mark()
    with lab.full_disk() as how:
        dose.wait(lambda: lab.said(r"full|No space|error (1021|1114|28)\b", mark), "nothing full")
        dose.hold(0.5, 2)
    dose.over()
    return how


def power_loss(lab: Lab, dose: Dose) -> str:
    """The power of gsmtpd and its database is cut, and what was not synced is gone"""
    keep = dose.random.choice(KEEPS)
    servers = [lab.gsmtpd, lab.database]
    loss = lab.lossy.power_cut(servers, keep, seed=dose.random.randrange(2**31))
    lab.lossy.remount()
    lab.database.start()
    lab.gsmtpd.start()
    dose.over()
    return f"{loss}, as the disk kept {keep}"


def read_only(lab: Lab, dose: Dose) -> str:
    """The database is set read-only and back (1290)"""
    mark = lab.mark()
    lab.database.query("SET GLOBAL read_only=1")
    dose.wait(lambda: lab.said("error 1290|read.only", mark), "nobody was told 1290")
    dose.hold(0.5, 2)
    lab.database.query("SET GLOBAL read_only=0")
    dose.over()
    return "gsmtpd was told 1290"


def read_only_failover(lab: Lab, dose: Dose) -> str:
    """The first of two hosts turns read-only, as after a failover, and the second takes over"""
    second = lab.second()
    hosts = f"{lab.host}, {second.socket}"
    with lab.reconfigured({"store": {"mysql": {"host": hosts}}}):
        lab.await_load(5)
        before = _rows(second)
        lab.database.query("SET GLOBAL read_only=1")
        # The other host is there, so the service is to go on while this one is read-only.
        dose.over()
        dose.wait(lambda: _rows(second) > before, "the second host took nothing")
        dose.hold(0.5, 2)
        lab.database.query("SET GLOBAL read_only=0")
    return f"{_rows(second) - before} rows went to the second host"


def _rows(server: MariaDB) -> int:
    count: int = server.query(f"SELECT COUNT(*) FROM {SCHEMA}.new_mail")[0][0]
    return count


def stopped(lab: Lab, dose: Dose) -> str:
    """The database is stopped (SIGSTOP) for 120 s: it takes connections and never answers"""
    pid = lab.database.pid
    acknowledged = lab.senders.acknowledged
    os.kill(pid, signal.SIGSTOP)
    try:
        dose.hold(0.5)
        held = lab.senders.acknowledged
        dose.hold_long(120)
        late = lab.senders.acknowledged - held
    finally:
        os.kill(pid, signal.SIGCONT)
    dose.over()
    if late:
        raise BrokenPromiseError(f"{late} mails acknowledged while the database was stopped")
    return f"stopped after {acknowledged} mails, and none acknowledged meanwhile"


def max_connections(lab: Lab, dose: Dose) -> str:
    """All connections that the database may have are taken by others (1040)"""
    mark = lab.mark()
    taken = 0
    lab.database.query(f"CREATE OR REPLACE USER {_HOG}@localhost")
    with contextlib.ExitStack() as stack:
        # Made before: of those beyond the limit, one is for an administrator.
        admin = stack.enter_context(lab.database.connect()).cursor()
        admin.execute("SELECT @@global.max_connections")
        ((usual,),) = admin.fetchall()
        admin.execute("SET GLOBAL max_connections=20")
        stack.callback(admin.execute, "SET GLOBAL max_connections=%s", (usual,))

        def met() -> int:
            nonlocal taken
            taken += _take_connections(lab, stack)
            lab.kill_connections(admin)
            taken += _take_connections(lab, stack)
            return lab.said("error 1040|Too many connections", mark)

        dose.wait(met, "gsmtpd met no 1040")
        dose.hold(0.5, 2)
    dose.over()
    return f"{taken} connections taken by others"


def _take_connections(lab: Lab, stack: contextlib.ExitStack) -> int:
    """Connect until there is no connection to be had, and stay until `stack` ends; how many."""
    for number in range(_HOGS):
        try:
            stack.enter_context(lab.database.connect(user=_HOG))
        except pymysql.MySQLError as error:
            if error.args[0] == _TOO_MANY:
                return number
            raise
    return _HOGS


def poison(lab: Lab, dose: Dose) -> str:
    """Some rows are refused by the database, and each time they are tried again"""
    mark = lab.mark()
    lab.database.query(
        "CREATE TRIGGER poison BEFORE INSERT ON new_mail FOR EACH ROW"
        f" IF CRC32(NEW.content_hash) %% {_POISONED} = 0"
        " THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'poison'; END IF",
        database=SCHEMA,
    )
    try:
        dose.wait(lambda: lab.said("refused: ", mark), "no row was refused")
        dose.hold(0.5, 2)
    finally:
        lab.database.query("DROP TRIGGER poison", database=SCHEMA)
    dose.over()
    return f"{lab.said('refused: ', mark)} refusals in the log"


FAULTS = (
    fault_of(down_at_start, kills=True),
    fault_of(killed_before_begin, armed=True),
    _killed_at(
        Point.BETWEEN_INSERTS, "killed_between_inserts", "between two INSERTs of a message", True
    ),
    _killed_at(Point.BEFORE_COMMIT, "killed_before_commit", "before COMMIT reaches it"),
    _killed_at(Point.COMMIT_REPLY, "killed_after_commit", "after COMMIT, before its answer"),
    fault_of(sigkill_loop),
    fault_of(kill_connection),
    fault_of(wait_timeout),
    _error(
        1213, "deadlock", "a transaction is the victim of a deadlock (1213)", Point.BEFORE_COMMIT
    ),
    fault_of(lock_wait, takes=8.0),
    _error(
        1205,
        "lock_wait_half",
        "error 1205 between the INSERTs of a message, which undoes one alone",
        Point.BETWEEN_INSERTS,
    ),
    _error(
        1153,
        "packet_too_big",
        "a statement is larger than the database takes (1153)",
        Point.BETWEEN_INSERTS,
    ),
    fault_of(disk_full, disk=True),
    fault_of(power_loss, kills=True, lossy=True, takes=8.0),
    fault_of(read_only),
    fault_of(read_only_failover, kills=True),  # by the restart
    fault_of(stopped, long=120.0),
    fault_of(max_connections),
    fault_of(poison),
)
