"""What can become of what gsmtpd and its database say to each other on their way?"""

from __future__ import annotations

from gsmtpd.faultlab.fault import BrokenPromiseError, DidNotHappenError, Dose, Fault, fault_of
from gsmtpd.faultlab.lab import Lab
from gsmtpd.faultlab.mysql_proxy import Action, Point

_BLACK_HOLE = 20.0  # seconds: longer than gsmtpd waits for an answer
_SLOW = 10.0  # seconds


def _at(point: Point, action: Action, name: str, description: str, most: int = 3) -> Fault:
    """The fault that `action` happens to what is at `point`, up to `most` times in a row."""

    def inject(lab: Lab, dose: Dose) -> str:
        times = dose.random.randint(1, most)
        seconds = dose.random.uniform(0.2, 3.0)
        before = len(lab.proxy.happened)
        lab.proxy.arm(point, action, times=times, seconds=seconds)
        dose.wait(lambda: len(lab.proxy.happened) >= before + times, f"no {point.name} came by")
        late = f" {seconds:.1f} s" if action in (Action.DELAY, Action.HOLD) else ""
        if late:
            dose.hold(seconds)
        dose.over()
        return f"{times} times {action.name}{late} at {point.name}"

    return fault_of(inject, name, description, armed=point is Point.BETWEEN_INSERTS)


def slow(lab: Lab, dose: Dose) -> str:
    """Each answer of the database to a COMMIT takes 10 s"""
    seconds = _SLOW * dose.scale
    before = len(lab.proxy.happened)
    lab.proxy.arm(Point.COMMIT_REPLY, Action.DELAY, times=1000, seconds=seconds)
    try:
        dose.wait(lambda: len(lab.proxy.happened) >= before + 2, "no COMMIT came by")
        dose.hold(2 * seconds)
    finally:
        lab.proxy.disarm()
    happened = len(lab.proxy.happened) - before
    dose.hold(seconds)  # those that are under way
    dose.over()
    return f"{happened} answers came {seconds:g} s late"


def black_hole(lab: Lab, dose: Dose) -> str:
    """The network to the database swallows all for 20 s: nothing passes, and nothing is reset"""
    lab.proxy.black_hole()
    try:
        dose.hold(0.3)
        held = lab.senders.acknowledged
        dose.hold_long(_BLACK_HOLE)
        late = lab.senders.acknowledged - held
    finally:
        lab.proxy.heal()
    dose.over()
    if late:
        raise BrokenPromiseError(f"{late} mails acknowledged while no octet reached a database")
    return "nothing was acknowledged meanwhile"


def refused(lab: Lab, dose: Dose) -> str:
    """The database's host refuses connections, and those there are are reset"""
    before = lab.proxy.connections
    lab.proxy.refuse()
    lab.proxy.reset()
    dose.hold(0.5, 2)
    lab.proxy.heal()
    dose.over()
    if not before:
        raise DidNotHappenError("there was no connection to reset")
    return f"{before} connections reset, and new ones refused"


FAULTS = (
    _at(
        Point.COMMIT_REPLY,
        Action.KILL,
        "commit_reply_lost",
        "a COMMIT is carried out, and the connection lost before its answer",
    ),
    _at(
        Point.BEFORE_COMMIT, Action.KILL, "commit_lost", "the connection is lost before the COMMIT"
    ),
    _at(
        Point.BEFORE_COMMIT,
        Action.CUT,
        "commit_cut",
        "a COMMIT is passed on, and the connection lost in the same moment",
    ),
    _at(
        Point.BEFORE_COMMIT,
        Action.HOLD,
        "commit_late",
        "the connection is lost, and the COMMIT still arrives, seconds later",
    ),
    _at(Point.BEFORE_COMMIT, Action.DELAY, "commit_delayed", "a COMMIT arrives seconds late"),
    _at(
        Point.BETWEEN_INSERTS,
        Action.KILL,
        "cut_between_inserts",
        "the connection is lost between the INSERTs of a message",
    ),
    _at(Point.AFTER_BEGIN, Action.KILL, "cut_after_begin", "the connection is lost behind BEGIN"),
    fault_of(slow, long=40.0),
    fault_of(black_hole, long=20.0),
    fault_of(refused),
)
