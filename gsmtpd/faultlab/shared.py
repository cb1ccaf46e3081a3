"""What do the senders and those who watch them tell each other while they run?

A page of memory that all of them map: no system call, no lock. Each number has one writer.
"""

from __future__ import annotations

from enum import IntEnum

_SLOT = 8  # octets of each number
_FRONT = 8  # slots for all processes
_EACH = 8  # slots of each process
_COMMAND, _BREAK_OFF, _RATE, _FINISH = range(4)
COUNTS = (
    *("acknowledged", "attempts", "last", "refused", "lost", "abandoned", "connections"),
    "trouble",
)
"""What each process says: numbers, but `last` and `trouble`, which are monotonic seconds."""


class Command(IntEnum):
    """What the senders are told."""

    SEND = 0
    PAUSE = 1
    STOP = 2


class Page:
    """The numbers, all floating: exact up to 2**53. processes: how many senders count here."""

    def __init__(self, memory: memoryview, processes: int) -> None:
        self._slots = memory[: self.size(processes)].cast("d")
        self._base = {name: _FRONT + offset for offset, name in enumerate(COUNTS)}

    @staticmethod
    def size(processes: int) -> int:
        """How many octets the page has."""
        return _SLOT * (_FRONT + _EACH * processes)

    def get(self, place: int, what: str) -> float:
        """One of `COUNTS` of the process at `place`."""
        return self._slots[self._base[what] + _EACH * place]

    def put(self, place: int, what: str, value: float) -> None:
        """Say one of `COUNTS` of the process at `place`."""
        self._slots[self._base[what] + _EACH * place] = value

    @property
    def command(self) -> Command:
        """What the senders shall do."""
        return Command(int(self._slots[_COMMAND]))

    @command.setter
    def command(self, command: Command) -> None:
        self._slots[_COMMAND] = command

    @property
    def break_off(self) -> float:
        """The share of attempts that they shall break off, 0.0 to 1.0."""
        return self._slots[_BREAK_OFF]

    @break_off.setter
    def break_off(self, share: float) -> None:
        self._slots[_BREAK_OFF] = share

    @property
    def rate(self) -> float | None:
        """Mails a second of all together, None without a limit."""
        return self._slots[_RATE] or None

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self._slots[_RATE] = rate or 0.0

    @property
    def finish(self) -> float:
        """Seconds that they have behind STOP to bring their mail home."""
        return self._slots[_FINISH]

    @finish.setter
    def finish(self, seconds: float) -> None:
        self._slots[_FINISH] = seconds
