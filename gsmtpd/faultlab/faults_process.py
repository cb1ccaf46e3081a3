"""How may gsmtpd's own processes end, be stopped, or run out of something?"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from gsmtpd.faultlab.fault import Dose, Fault, fault_of
from gsmtpd.faultlab.lab import PROCESSES, Lab

STEPS = (
    *("connected", "mail", "recipient", "data", "dot", "queued", "encoded", "taken"),
    *("before_begin", "after_begin", "between_inserts", "before_commit", "committed"),
    *("handed_back", "before_reply", "replied", "logged"),
)
"""The steps of gsmtpd.failpoints that a mail passes while the database answers."""
SPOOL_STEPS = ("spooling", "spooled")
DRAIN_STEPS = ("draining", "drained")
_CROWD = 40  # connections
_GRAVE = 30.0  # seconds that a worker without master may take to end


def _worker_killed_at(step: str) -> Fault:
    """The fault that a worker is killed when it passes `step`."""

    def inject(lab: Lab, dose: Dose) -> str:
        killed = _kill_at(lab, dose, step)
        dose.over()
        return killed

    description = f"a worker is killed at the step {step}"
    return fault_of(inject, f"worker_killed_at_{step}", description, kills=True, armed=True)


def _kill_at(lab: Lab, dose: Dose, step: str, then: Callable[[], None] = lambda: None) -> str:
    """Have a worker die at `step`. then: what has it come there."""
    lab.await_workers()
    before = {*lab.gsmtpd.workers}
    lab.arm(step, "die")
    then()
    # The senders keep their connections, and all other steps are passed with each mail.
    with _clients(lab, 4 if step == "connected" else 0):
        dose.wait(lambda: before - {*lab.gsmtpd.workers}, f"no worker died at {step}")
    return f"worker {min(before - {*lab.gsmtpd.workers})} died at {step}"


def _with_spool(lab: Lab) -> contextlib.AbstractContextManager[None]:
    return lab.reconfigured({"store": {"spool": lab.kept / "spool"}})


def _killed_while_away(step: str) -> Fault:
    """The fault that a worker is killed at a step of the spool, while the database is away."""

    def inject(lab: Lab, dose: Dose) -> str:
        with _with_spool(lab):
            lab.database.kill()
            killed = _kill_at(lab, dose, step)
            dose.over()  # the spool takes mail although the database is away
            lab.await_load(20)
            lab.database.start()
            dose.wait(lambda: lab.spooled() == 0, "the spool was not drained")
        return killed

    description = f"a worker is killed at the step {step}, while the database is away"
    return fault_of(inject, f"worker_killed_at_{step}", description, kills=True, armed=True)


def _killed_while_draining(step: str) -> Fault:
    """The fault that a worker is killed at a step of draining, when the database is back."""

    def inject(lab: Lab, dose: Dose) -> str:
        with _with_spool(lab):
            lab.database.kill()
            dose.wait(lambda: lab.spooled() >= 20, "nothing was spooled")
            killed = _kill_at(lab, dose, step, lab.database.start)
            dose.over()
            dose.wait(lambda: lab.spooled() == 0, "the spool was not drained")
        return killed

    description = f"a worker is killed at the step {step}, when the database is back"
    return fault_of(inject, f"worker_killed_at_{step}", description, kills=True, armed=True)


def spool(lab: Lab, dose: Dose) -> str:
    """The database is away, and mail is acknowledged into the spool; gsmtpd is killed as well"""
    with _with_spool(lab):
        lab.database.kill()
        dose.wait(lambda: lab.spooled() >= 20, "nothing was spooled")
        kept = lab.spooled()
        lab.gsmtpd.kill()
        lab.gsmtpd.start()
        dose.hold(0.5, 2)
        lab.database.start()
        dose.over()
        dose.wait(lambda: lab.spooled() == 0, "the spool was not drained")
    return f"{kept} mails were in the spool when gsmtpd was killed"


def worker_hangs(lab: Lab, dose: Dose) -> str:
    """An SMTP thread hangs, until the master ends its worker"""
    lab.await_workers()
    before = {*lab.gsmtpd.workers}
    lab.arm("mail", "stall 60")
    dose.wait(lambda: before - {*lab.gsmtpd.workers}, "the worker was not ended")
    dose.over()
    return f"worker {min(before - {*lab.gsmtpd.workers})} was ended by its master"


def worker_raises(lab: Lab, dose: Dose) -> str:
    """Exceptions that nobody foresaw, before BEGIN and before COMMIT"""
    mark = lab.mark()
    for step in ("before_begin", "before_commit"):
        lab.arm(step, "raise")
        dose.wait(lambda: not lab.armed(step), f"nobody passed {step}")  # noqa: B023
    dose.wait(lambda: lab.said("RuntimeError: failpoint", mark), "nothing was raised")
    dose.over()
    return "RuntimeError in the log"


def workers_killed(lab: Lab, dose: Dose) -> str:
    """Workers are killed one after the other, at any moment"""
    killed = []
    for _ in range(2):
        lab.await_workers()
        killed.append(dose.random.choice(lab.gsmtpd.workers))
        os.kill(killed[-1], signal.SIGKILL)
        dose.wait(lambda: killed[-1] not in lab.gsmtpd.workers, "a worker survived SIGKILL")
        dose.hold(0.1, 0.5)
    dose.over()
    return f"killed {killed}"


def master_killed(lab: Lab, dose: Dose) -> str:
    """The master is killed, and a supervisor starts gsmtpd again when its workers have ended"""
    pids = lab.gsmtpd.pids()
    os.kill(lab.gsmtpd.pid, signal.SIGKILL)
    dose.wait(lambda: not lab.gsmtpd.running, "the master survived SIGKILL")
    # Workers that see no master end by themselves: mail past its dot is still acknowledged.
    dose.wait(lambda: not any(map(_lives, pids)), "the workers stayed behind")
    lab.gsmtpd.start()
    dose.over()
    return f"master {pids[0]} killed, and its workers ended"


def all_killed(lab: Lab, dose: Dose) -> str:
    """Master and workers are killed in one moment, and started again"""
    pids = lab.gsmtpd.pids()
    lab.gsmtpd.kill()
    dose.hold(0, 0.5)
    lab.gsmtpd.start()
    dose.over()
    return f"killed {pids}"


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def term(lab: Lab, dose: Dose) -> str:
    """gsmtpd is stopped by TERM and started again"""
    lab.stop_gsmtpd()
    lab.gsmtpd.start()
    dose.over()
    return "ended with status 0"


def hup(lab: Lab, dose: Dose) -> str:
    """gsmtpd is given new configurations by HUP"""
    for number in range(3):
        lab.reload({"server": {"host_name": f"mx{number}.example.com", "processes": 1 + number}})
        dose.hold(0, 0.3)
    lab.reload({})
    dose.over()
    return "4 reloads, as the log says"


@contextlib.contextmanager
def _clients(lab: Lab, number: int) -> Iterator[list[socket.socket]]:
    """Connections of clients that say nothing."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            client = stack.enter_context(socket.socket())
            client.settimeout(10)
            client.connect(lab.gsmtpd.address)
            clients.append(client)
        yield clients


def emfile(lab: Lab, dose: Dose) -> str:
    """The workers may open no more files, and lose their connections to the database as well"""
    # It says so once, until there were enough again.
    dose.wait(lambda: not lab.gsmtpd.status()["overload"], "the last shortage is not over")
    mark = lab.mark()
    usual: dict[int, tuple[int, int]] = {}
    try:
        for pid in lab.gsmtpd.workers:
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            # A new descriptor is given the lowest number that is free, which is below the limit.
            taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            lowest = next(number for number in itertools.count() if number not in taken)
            usual[pid] = limits
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
        lab.kill_connections()
        with _clients(lab, _CROWD):
            dose.wait(lambda: lab.said("cannot accept clients now", mark), "no worker met EMFILE")
            dose.hold(0.5, 2)
    finally:
        for pid, limits in usual.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    dose.over()
    return "Too many open files, as the log says"


def memory_limit(lab: Lab, dose: Dose) -> str:
    """What clients may have buffered is used up (max_memory)"""
    with lab.reconfigured({"limits": {"max_memory": "1M"}}):
        lab.await_load(5)
        mark = lab.mark()
        with _clients(lab, 12) as clients:
            for client in clients:
                client.sendall(
                    b"EHLO hog.example\r\nMAIL FROM:<hog@example.org>\r\n"
                    b"RCPT TO:<hog@example.com>\r\nDATA\r\n"
                )
                _until(client, b"354")
                with contextlib.suppress(OSError):  # it is sent away
                    client.sendall(b"x" * 70 + b"\r\n" + 5000 * (b"y" * 70 + b"\r\n"))
            dose.wait(lambda: lab.said("max_memory reached", mark), "max_memory was not reached")
            dose.hold(0.5, 2)
    dose.over()
    return "max_memory was reached, as the log says"


def _until(client: socket.socket, code: bytes) -> None:
    """Read until a reply begins with `code`, or the server hangs up."""
    heard = b""
    while not any(line.startswith(code) for line in heard.split(b"\r\n")):
        with contextlib.suppress(ConnectionError):
            more = client.recv(4096)
            heard += more
            if more:
                continue
        return


FAULTS = (
    *map(_worker_killed_at, STEPS),
    *map(_killed_while_away, SPOOL_STEPS),
    *map(_killed_while_draining, DRAIN_STEPS),
    fault_of(spool, kills=True),
    fault_of(workers_killed, kills=True),
    fault_of(worker_hangs, takes=20.0, kills=True, armed=True),
    fault_of(worker_raises, kills=True, armed=True),
    fault_of(master_killed, kills=True),
    fault_of(all_killed, kills=True),
    fault_of(term, kills=True),
    fault_of(hup, kills=True),
    fault_of(emfile),
    fault_of(memory_limit, kills=True),  # by the restart
)
assert PROCESSES > 1
