"""How does the running gsmtpd do from second to second? gsmtpctl top."""

from __future__ import annotations

import argparse
import locale
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from gsmtpd import cli
from gsmtpd.control import ControlError, ask
from gsmtpd.ctl_arguments import control_socket
from gsmtpd.ctl_top_screen import BLOCKS, PLAIN, SORTS, Style, View, screen

_ASK_WITHIN = 2.0  # seconds
_BOARD = 2.5  # seconds until sessions are there, which are noted only while somebody looks
_MOST_COLUMNS = 240  # of a curve
_LONGEST = 60  # lines of --once
_UNKNOWN = "unknown command"  # says a server that is older


def add(verbs: Any) -> None:
    """Add it to the commands."""
    top_ = verbs.add_parser("top", help="watch how the running gsmtpd does, until q")
    top_.add_argument("-d", metavar="SECONDS", dest="delay", type=_delay, default=1.0,
                      help="how often it is asked (default: 1)")  # fmt: skip
    top_.add_argument("--once", action="store_true", help="print one screen as text")
    top_.set_defaults(run=top)


def _delay(text: str) -> float:
    """Seconds between two looks. Raises argparse.ArgumentTypeError."""
    with suppress(ValueError):
        if 0.1 <= float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time from 0.1 to 3600 seconds")


def top(options: argparse.Namespace) -> int:
    """gsmtpctl top: returns the exit code."""
    looked = _Looked(control_socket(options), options.delay)
    if options.once:
        return _once(looked)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        wrong = "top needs a terminal; for one screen as text: gsmtpctl top --once"
        raise cli.Stop(cli.EX_USAGE, wrong)
    try:
        import curses  # only here: not each Python has it
    except ImportError:
        wrong = "this Python has no module curses; for one screen as text: gsmtpctl top --once"
        raise cli.Stop(cli.EX_UNAVAILABLE, wrong) from None
    looked.look(80)
    if looked.view.trouble:
        raise ControlError(looked.view.trouble, looked.is_forbidden)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it has to restore the terminal
    # Who has started this may have blocked it, and then no other size would ever be noticed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)  # likewise where they are exported, see ncurses(3)
    try:
        curses.wrapper(lambda window: _Top(curses, window, looked, options.delay).run())
    except curses.error as error:
        wrong = f"this terminal cannot be used: {error}; is TERM right?"
        raise cli.Stop(cli.EX_USAGE, wrong) from None
    return cli.EX_OK


def _once(looked: _Looked) -> int:
    width = shutil.get_terminal_size((100, 0)).columns
    looked.look(width)
    if looked.view.trouble:
        raise ControlError(looked.view.trouble, looked.is_forbidden)
    until = time.monotonic() + _BOARD
    while looked.waits_for_sessions and time.monotonic() < until:
        time.sleep(0.2)
        looked.look(width)
    for line in screen(looked.view, width, _LONGEST):
        print(line.text.rstrip())
    return cli.EX_OK


class _Looked:
    """What the server that is asked at `path` has said last. delay: seconds between two looks."""

    def __init__(self, path: str, delay: float) -> None:
        self._path = path
        self._step = max(1, round(delay))
        self.is_forbidden = False
        blocks = BLOCKS if _encoding().upper().replace("-", "") == "UTF8" else PLAIN
        self.view = View({}, {}, {}, time.time(), blocks=blocks)

    def look(self, width: int) -> None:
        """Ask for what fits in `width` columns; what was seen last stays where nobody answers."""
        span = min(max(width, 60), _MOST_COLUMNS) * self._step
        self.view = self.view._replace(now=time.time())
        try:
            status = ask(self._path, "status", _ASK_WITHIN)
            history = self._known("history", f"{span} {self._step}")
            sessions = self._known("sessions")
        except ControlError as error:
            self.view = self.view._replace(trouble=str(error))
            self.is_forbidden = error.permission
        else:
            self.view = self.view._replace(
                status=status, history=history, sessions=sessions, trouble=""
            )

    def _known(self, command: str, about: str = "") -> dict[str, Any]:
        """The answer to a command that an older server has not. Raises ControlError."""
        try:
            return ask(self._path, command, _ASK_WITHIN, about)
        except ControlError as error:
            if _UNKNOWN in str(error):
                return {}
            raise

    @property
    def waits_for_sessions(self) -> bool:
        """Whether there are some, of which nothing is known yet."""
        clients, told = self.view.status["clients"], self.view.sessions
        return bool(clients and "sessions" in told and not told["sessions"])


def _encoding() -> str:
    with suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "")
    return locale.nl_langinfo(locale.CODESET)


class _Top:
    """The program on the terminal."""

    def __init__(self, curses: Any, window: Any, looked: _Looked, delay: float) -> None:
        self._curses = curses
        self._window = window
        self._looked = looked
        self._delay = delay
        self._encoding = _encoding()
        with suppress(curses.error):
            curses.curs_set(0)
        alarm = curses.A_BOLD
        with suppress(curses.error):
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
            alarm |= curses.color_pair(1)
        self._looks = {
            Style.USUAL: curses.A_NORMAL,
            Style.HEAD: curses.A_REVERSE,
            Style.TITLE: curses.A_BOLD,
            Style.ALARM: alarm,
            Style.DIM: curses.A_DIM,
        }

    def run(self) -> None:
        """Show it until it is enough."""
        due = 0.0
        while True:
            height, width = self._window.getmaxyx()
            now = time.monotonic()
            if not self._looked.view.is_paused and now >= due:
                self._looked.look(width)
                due = time.monotonic() + self._delay
            self._draw(width, height)
            left = due - time.monotonic()
            paused = self._looked.view.is_paused
            self._window.timeout(1000 if paused else max(1, int(left * 1000)))
            if self._pressed(self._window.getch()):
                return

    def _pressed(self, key: int) -> bool:
        """Do what a key is for; whether it is the end."""
        view = self._looked.view
        if key in (ord("q"), ord("Q")):
            return True
        if key == ord("p"):
            view = view._replace(is_paused=not view.is_paused)
        elif key == ord("s"):
            view = view._replace(sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)])
        elif key in (ord("h"), ord("?")):
            view = view._replace(helps=not view.helps)
        self._looked.view = view
        return False

    def _draw(self, width: int, height: int) -> None:
        self._window.erase()
        # The last cell of the last line cannot be written to.
        for number, line in enumerate(screen(self._looked.view, width - 1, height)):
            text = line.text.encode(self._encoding, "replace").decode(self._encoding)
            with suppress(self._curses.error):  # it became smaller meanwhile
                self._window.addnstr(number, 0, text, width - 1, self._looks[line.style])
        self._window.refresh()
