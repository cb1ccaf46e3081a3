"""Who sends mail and keeps account of it, while something is being broken?

`Senders` starts processes (`gsmtpd.faultlab.sender`), each with its ledger and many SMTP sessions,
and shares a page of memory with them: they count there, and are told there what to do.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from gsmtpd.faultlab import ledger
from gsmtpd.faultlab.processes import environment
from gsmtpd.faultlab.shared import Command, Page

SESSIONS_PER_PROCESS = 32
MAX_SIZE = 200 * 1024
TIMEOUT = 90.0
_POLL = 0.01  # seconds between looks at what the processes have counted


class SendersError(Exception):
    """A sender has ended by a fault of its own, or did not end; the text has its last words."""


class Senders:
    """Processes that send mail until they are stopped, each mail until it is acknowledged.

    On entry they start; on leaving they bring their mail home (`stop`), or are killed if there is
    an exception. Mail that is refused with 4xx, or whose connection is lost, is sent again.

    address: of an SMTP server. ledgers: the directory for their ledgers. seed: makes sizes,
    recipients, contents, and what is broken off. sessions: of all processes together.
    rate: mails a second of all together, None for as many as are taken. messages: how many in all,
    None for no end. recipients: addresses to send to, 1 to 4 at a time; None for 16 in
    `recipients_domain` that only these senders use. break_off: the share, 0.0 to 1.0, of attempts
    whose connection is reset in the middle of the data or behind it. max_size: octets of a message.
    timeout: seconds of silence after which a connection counts as lost.
    """

    def __init__(
        self,
        address: tuple[str, int],
        ledgers: Path,
        seed: int,
        *,
        processes: int = 1,
        sessions: int = 8,
        rate: float | None = None,
        messages: int | None = None,
        recipients_domain: str = "example.com",
        recipients: Sequence[str] | None = None,
        sender: str = "faultlab@example.org",
        break_off: float = 0.0,
        max_size: int = MAX_SIZE,
        timeout: float = TIMEOUT,
    ) -> None:
        if processes < 1 or sessions < processes:
            raise ValueError("each process needs a session")
        self.run = os.urandom(4).hex()
        """What all ids of these senders begin with."""
        self._ledgers = ledgers
        self._processes: list[subprocess.Popen[bytes]] = []
        self.files: list[Path] = []
        """Their ledgers, once they are started."""
        self._errors: list[Path] = []  # where each process says what ends it
        self._memory = -1
        self._map: mmap.mmap | None = None
        self._page: Page | None = None
        self._break_off = break_off
        self._rate = rate
        if recipients is None:
            recipients = [f"fl-{self.run}-{n}@{recipients_domain}" for n in range(16)]
            own = True
        else:
            own = False
        self._common = {
            "run": self.run,
            "seed": seed,
            "address": [*address],
            "recipients": [*recipients],
            "own": own,
            "from": sender,
            "max_size": max_size,
            "timeout": timeout,
        }
        self._sessions = _shares(sessions, processes)
        self._messages = _shares(messages, processes) if messages is not None else None

    # --- what they have done ------------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        """How many mails were answered with 250 so far."""
        return self._sum("acknowledged")

    @property
    def attempts(self) -> int:
        """How many times the end of a mail's data has left so far."""
        return self._sum("attempts")

    @property
    def refused(self) -> int:
        """How many attempts were answered with 4xx or 5xx so far."""
        return self._sum("refused")

    @property
    def lost(self) -> int:
        """How many attempts have lost their connection so far; not those that were broken off."""
        return self._sum("lost")

    @property
    def abandoned(self) -> int:
        """How many attempts were broken off on purpose so far."""
        return self._sum("abandoned")

    @property
    def connections(self) -> int:
        """How many connections are greeted and open now."""
        return self._sum("connections")

    @property
    def last_acknowledged(self) -> float:
        """When the last 250 came, as time.monotonic() says it; 0.0 if none did."""
        return self._latest("last")

    @property
    def last_trouble(self) -> float:
        """When an attempt was last refused or lost, as time.monotonic() says it, or 0.0."""
        return self._latest("trouble")

    @property
    def running(self) -> bool:
        """Whether any of the processes still runs; with `messages` they end by themselves."""
        return any(process.poll() is None for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """The processes, in the order of their ledgers."""
        return [process.pid for process in self._processes]

    # --- what they are told -------------------------------------------------------------------

    @property
    def break_off(self) -> float:
        """The share of attempts that is broken off; may be set at any time."""
        return self._shared.break_off

    @break_off.setter
    def break_off(self, share: float) -> None:
        self._shared.break_off = share

    @property
    def rate(self) -> float | None:
        """Mails a second of all together, None without a limit; may be set at any time."""
        return self._shared.rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self._shared.rate = rate

    def pause(self) -> None:
        """Have no attempt begin; those under way come to their end."""
        self._shared.command = Command.PAUSE

    def resume(self) -> None:
        """Have attempts begin again."""
        self._shared.command = Command.SEND

    def wait_for(self, more: int, seconds: float = 60.0) -> None:
        """Wait until so many further mails were acknowledged. Raises SendersError."""
        goal = self.acknowledged + more
        deadline = time.monotonic() + seconds
        while self.acknowledged < goal:
            self._see_that_none_failed()
            if time.monotonic() > deadline:
                missing = goal - self.acknowledged
                raise SendersError(
                    f"{missing} of {more} mails were not acknowledged in {seconds:g} s"
                )
            if not self.running:
                self._see_that_none_failed()  # since the last look
                raise SendersError("the senders have ended")
            time.sleep(_POLL)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all have ended; False if they have not after so many seconds.

        Raises SendersError if one has failed.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.running:
            self._see_that_none_failed()
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        self._see_that_none_failed()
        return True

    def stop(self, finish: float = 60.0) -> None:
        """Have no new mail begin, bring those under way home, and end.

        What is not acknowledged after `finish` seconds is given up. Raises SendersError if a
        process has failed or does not end.
        """
        self._shared.finish = finish
        self._shared.command = Command.STOP
        if not self.wait(finish + 30.0):
            self.kill()
            raise SendersError("the senders did not end")

    def kill(self) -> None:
        """End the processes by SIGKILL, as a crash of the client would."""
        for process in self._processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Kill what still runs, and give back what is held."""
        self.kill()
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        for path in self._errors:
            if not path.stat().st_size:
                path.unlink()
        self._errors.clear()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, trouble: type[BaseException] | None, *_: object) -> None:
        try:
            if trouble is None and self.running:
                self.stop()
            elif trouble is None:
                self._see_that_none_failed()
        finally:
            self.close()

    def _start(self) -> None:
        number = len(self._sessions)
        self._memory = os.memfd_create("faultlab")
        os.ftruncate(self._memory, Page.size(number))
        self._map = mmap.mmap(self._memory, Page.size(number))
        self._page = Page(memoryview(self._map), number)
        self._page.break_off = self._break_off
        self._page.rate = self._rate
        try:
            for place in range(number):
                self._processes.append(self._process(place))
        except BaseException:
            self.close()
            raise

    def _process(self, place: int) -> subprocess.Popen[bytes]:
        """Start the process that counts at `place`."""
        number, file = ledger.create(self._ledgers)
        self.files.append(self._ledgers / f"sender-{number}.jsonl")
        settings: dict[str, Any] = self._common | {
            "sender": number,
            "place": place,
            "places": len(self._sessions),
            "memory": self._memory,
            "ledger": file,
            "sessions": self._sessions[place],
            "messages": self._messages[place] if self._messages is not None else None,
        }
        words = [sys.executable, "-m", "gsmtpd.faultlab.sender", json.dumps(settings)]
        path = self._ledgers / f"sender-{number}.errors"
        self._errors.append(path)
        with path.open("wb") as errors:
            try:
                return subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,  # that it ends is the end of us
                    stderr=errors,
                    env=environment(),
                    pass_fds=(self._memory, file),
                )
            finally:
                os.close(file)

    @property
    def _shared(self) -> Page:
        if self._page is None:
            raise SendersError("the senders were not started")
        return self._page

    def _sum(self, what: str) -> int:
        page = self._shared
        return sum(int(page.get(place, what)) for place in range(len(self._sessions)))

    def _latest(self, what: str) -> float:
        page = self._shared
        return max(page.get(place, what) for place in range(len(self._sessions)))

    def _see_that_none_failed(self) -> None:
        for process in self._processes:
            status = process.poll()
            if status:
                raise SendersError(
                    f"sender {process.pid} ended with status {status}: {self._words()}"
                )

    def _words(self) -> str:
        said = (path.read_text(errors="replace") for path in self._errors)
        return "\n".join(filter(None, (text[-2000:].strip() for text in said)))


def _shares(whole: int, parts: int) -> list[int]:
    return [whole // parts + (part < whole % parts) for part in range(parts)]
