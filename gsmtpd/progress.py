"""How far has long work got? Said on stderr where that is a terminal, and nowhere else.

The bar is tqdm's: one module, which Debian has and which needs no other. Without it there are
plain lines now and then.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FIRST = 0.5  # seconds; what is done by then needs no bar
_EACH = 0.25  # seconds between two looks of a bar
_PLAIN = 3.0  # seconds between two plain lines
_KNOWN = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
_UNKNOWN = "{desc}, {elapsed}"


class Progress:
    """How far it is: this one tells nobody."""

    def at(self, place: float, said: str) -> None:
        """It has come to `place` of the total. said: the same for people, as "exported 7 mails"."""

    def say(self, line: str) -> None:
        """Write a line to stderr."""
        print(line, file=sys.stderr)

    def close(self) -> None:
        """It is done: nothing of it stays on the terminal."""


class _Told(Progress):
    """A thread tells how far it is, also while nothing comes to an end."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._place, self._said = 0.0, ""
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def at(self, place: float, said: str) -> None:
        self._place, self._said = place, said

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = _FIRST
        while not self._over.wait(pause):
            pause = self._pause
            if self._said:
                with self._lock:
                    self._tell(self._place, self._said)

    def _tell(self, place: float, said: str) -> None:
        raise NotImplementedError


class _Bar(_Told):
    def __init__(self, module: Any, total: float | None) -> None:
        self._module = module
        self._total = total
        self._bar: Any = None
        super().__init__(_EACH)

    def say(self, line: str) -> None:
        with self._lock:
            self._module.tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        super().close()
        if self._bar is not None:
            self._bar.close()

    def _tell(self, place: float, said: str) -> None:
        if self._bar is None:
            self._bar = self._make()
        self._bar.n = place if self._total is None else min(place, self._total)
        self._bar.set_description_str(said, refresh=True)

    def _make(self) -> Any:
        self._module.tqdm.monitor_interval = 0  # no thread of its own
        return self._module.tqdm(
            total=self._total,
            bar_format=_UNKNOWN if self._total is None else _KNOWN,
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
        )


class _Lines(_Told):
    def __init__(self, total: float | None) -> None:
        self._total = total
        super().__init__(_PLAIN)

    def _tell(self, place: float, said: str) -> None:
        share = f" ({min(place / self._total, 1):.0%})" if self._total else ""
        print(f"gsmtpctl: {said}{share}", file=sys.stderr)


@contextmanager
def progress(total: float | None = None, shown: bool = True) -> Iterator[Progress]:
    """How far the work within has got. total: where it ends, None where nobody knows.

    shown: whether it is to be seen at all.
    """
    told = _make(total) if shown and sys.stderr.isatty() else Progress()
    try:
        yield told
    finally:
        told.close()


def is_watched() -> bool:
    """Whether somebody is told: else a total need not be looked for."""
    return sys.stderr.isatty()


def _make(total: float | None) -> Progress:
    try:
        # No import statement: it has no types, and is there only where somebody wants it.
        return _Bar(importlib.import_module("tqdm"), total)
    except ImportError:
        return _Lines(total)
