"""What does a runner do? It is the process in which one handler acts on one mail after another.

It has no descriptor but its own end of the wire, no password of gsmtpd's, and a limit of memory.
Whatever becomes of it costs the mail that it has, and that one is handed over again.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gsmtpd.handlers.handler import (
    Discard,
    GiveUpError,
    Handler,
    HandlerError,
    Later,
    Result,
    RetryError,
)
from gsmtpd.handlers.loading import load
from gsmtpd.handlers.mail import Facts, Mail
from gsmtpd.handlers.wire import Wire, WireError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NICE = 15  # mail that comes in goes before what can be done with it later


def main() -> None:
    """Serve the wire, whose descriptor is the argument, until it is closed."""
    _die_with_parent()
    # gsmtpd's threads have all signals blocked: alarms, and whoever ends a program, need them.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _stand_back()
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    try:
        task, _ = wire.hear()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        memory = task["memory_limit"]
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        try:
            handler = _prepared(task)
        except (Exception, SystemExit) as error:
            wire.say({"refused": _one_line(_why_refused(error))})
            return
        wire.say({"ready": True})
        while True:
            frame, octets = wire.hear()
            became = _handled(handler, Mail(Facts(**frame["facts"]), octets), task, wire)
            wire.say(became)
            if "spent" in became:
                return
    except WireError:
        pass  # it is closed: there is no more to do


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(0)


def _stand_back() -> None:
    """Take processor time that nobody else wants, as do all whom this process starts."""
    with suppress(OSError):  # a unit of systemd's may forbid it
        os.nice(_NICE)
    # Where each session has its own share of the time, that counts within this one only (sched(7)).
    with suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write(str(_NICE))


def _prepared(task: dict[str, Any]) -> Handler:
    """The handler, with its settings. Raises HandlerError, and what its own code raises."""
    made = load(task["handler"], task["directory"])
    settings: dict[str, str] = task["settings"]
    unknown = [name for name in settings if name not in made.defaults]
    if unknown:
        known = ", ".join(made.defaults) or "none"
        raise HandlerError(f"{unknown[0]}: unknown key; {task['handler']} has {known}")
    if made.replies and not task["smarthost"]:
        raise HandlerError(f"{task['handler']} replies; write smarthost = host:port in [handlers]")
    handler = made()
    handler.settings = {**made.defaults, **settings}
    handler.prepare()
    if made.handle is Handler.handle:
        raise HandlerError(f"{task['handler']} has no method handle; write def handle(self, mail):")
    if inspect.iscoroutinefunction(made.handle):
        raise HandlerError(f"{task['handler']}: handle is async; write it without async")
    return handler


def _why_refused(error: BaseException) -> str:
    """The handler's own words, where it has some: else what was raised is told, too."""
    text = _text(error)
    own = text and isinstance(error, ValueError | HandlerError)
    return text if own else f"{type(error).__name__}: {text}"


def _why(error: BaseException) -> str:
    """The text of an error, or its kind where that says nothing."""
    return _text(error).strip() or type(error).__name__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # it is a stranger's class
        return "it has no text"


def _handled(handler: Handler, mail: Mail, task: dict[str, Any], wire: Wire) -> dict[str, Any]:
    """What has become of `mail`, as a frame."""

    def may_reply(address: str) -> bool:
        wire.say({"ask": "may_reply", "address": address})
        return wire.hear()[0].get("may") is True

    try:
        result = _result(handler, mail)
        if isinstance(result, Later):
            # It is handed over again as if it had never been: so nothing is noted or sent yet.
            return _later(result)
        if result is not None and not isinstance(result, Discard):
            said = f"it returned {type(result).__name__}, which is no result"
            return {"failed": said, "again": False}
        reply = _answered(mail, task, may_reply)
    except WireError:
        raise
    except GiveUpError as error:
        return {"failed": _one_line(_why(error)), "again": False}
    except RetryError as error:
        return {"failed": _one_line(_why(error)), "again": True, "after": _seconds(error.after)}
    except MemoryError:
        gc.collect()
        # What it has leaked would be lacking for the next mail, too: so this process ends.
        said = "MemoryError: it wants more than memory_limit"
        return {"failed": said, "again": True, "spent": True}
    except BaseException as error:
        with suppress(Exception):
            traceback.print_exc()
        return {"failed": _one_line(f"{type(error).__name__}: {_text(error)}"), "again": True}
    discard = result is not None
    return {"done": True, "notes": mail.notes, "discard": discard, "reply": _one_line(reply)}


def _answered(mail: Mail, task: dict[str, Any], may_reply: Callable[[str], bool]) -> str:
    """Send the answer that `mail` was given; see `replying.send`."""
    if mail.answer is None:
        return ""
    from gsmtpd.handlers import replying  # doubles the time of a start: not for who never replies

    return replying.send(mail, task, may_reply)


def _result(handler: Handler, mail: Mail) -> Result:
    """What the handler returns, to this process alone."""
    own = os.getpid()
    try:
        return handler.handle(mail)
    finally:
        if os.getpid() != own:
            os._exit(0)  # it has forked: what this one says would be taken for the next mail's


def _later(result: Later) -> dict[str, Any]:
    seconds = _seconds(result.seconds)
    if seconds is None:
        said = f"it returned Later({result.seconds!r}), which is no number of seconds"
        return {"failed": _one_line(said), "again": False}
    return {"later": seconds}


def _seconds(value: object) -> float | None:
    """`value`, where it is a number of seconds that can be waited for."""
    if isinstance(value, int | float) and 0 <= value < 1e9:
        return float(value)
    return None


def _one_line(text: str) -> str:
    """At most 500 characters that any log and any database takes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:5000]).split())[:500]


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of the handler's do not hold it
