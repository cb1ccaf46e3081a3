"""How is the page looked at in a real browser? Debian's Chromium, headless, driven by Selenium.

Everything whose name ends in `.trap.example` is a trap that listens on 127.0.0.1: who calls it was
told to by a page. What ends in `.canary.example` is another one, to see that calls are heard.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers import MissingProgramError, find_program, wait_for

PHONE = (390, 844)
DESKTOP = (1280, 900)


class Trap:
    """Listens, and remembers who is called: hosts by the first line and the Host field."""

    SILENT = "somebody, by a connection that says nothing"

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._calls: list[list[str]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                call = [self.SILENT]
                self._calls.append(call)
                threading.Thread(target=self._hear, args=(client, call), daemon=True).start()

    def _hear(self, client: socket.socket, call: list[str]) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(10)
            if said := client.recv(4096):
                call[:] = [_host(said)]
            client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nheard")

    @property
    def heard(self) -> set[str]:
        """Who was called so far."""
        return {call[0] for call in self._calls}

    def has_heard(self, host: str) -> bool:
        """Whether it was called."""
        return host in self.heard

    def forget(self) -> None:
        """What was heard so far, and what those say who have called."""
        self._calls.clear()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


def _host(said: bytes) -> str:
    """Whom a client calls: by HTTP, or by the name in its TLS hello."""
    for line in said.split(b"\r\n"):
        if line.lower().startswith(b"host:"):
            return line[5:].strip().decode().partition(":")[0]
    at = said.find(b".trap.example")
    if at < 0:
        return repr(said[:40])
    start = max(said.rfind(bytes([octet]), 0, at) for octet in range(32)) + 1
    return (said[start:at] + b".trap.example").decode("latin-1")


class Browser:
    """A Chromium of its own, with nothing in it that was there before.

    Raises MissingProgramError where Chromium, its driver or Selenium is missing.
    """

    def __init__(self, trap: Trap, canary: Trap) -> None:
        try:
            from selenium import webdriver
        except ImportError as error:
            raise MissingProgramError("selenium (pip install selenium)") from error
        self._folder = tempfile.TemporaryDirectory(prefix="gsmtpd-chromium-")
        self.netlog = Path(self._folder.name) / "netlog.json"
        options = webdriver.ChromeOptions()
        options.binary_location = find_program("chromium")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--force-prefers-reduced-motion",
            f"--user-data-dir={self._folder.name}/profile",
            f"--host-resolver-rules=MAP *.trap.example 127.0.0.1:{trap.port},"
            f"MAP *.canary.example 127.0.0.1:{canary.port}",
            f"--log-net-log={self.netlog}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        for argument in arguments:
            options.add_argument(argument)
        service = webdriver.ChromeService(find_program("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.trap, self.canary = trap, canary
        self.look(DESKTOP)

    def look(self, size: tuple[int, int], dark: bool = False) -> None:
        """See the page in a window of `size` from now on, by day or by night."""
        width, height = size
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def devtools(self, command: str, **parameters: Any) -> Any:
        """What a command of the DevTools protocol answers."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def open(self, url: str) -> None:
        """Show a page, and not just another place in the one that is shown."""
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body of JavaScript returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any, seconds: float = 20) -> Any:
        """Wait until an expression of JavaScript is true; what it is then."""
        found: list[Any] = []

        def is_so() -> bool:
            found[:] = [self.run(f"return {script}", *arguments)]
            return bool(found[0])

        wait_for(is_so, seconds)
        return found[0]

    def text(self, selector: str) -> str:
        """The text of an element as it is shown; "" without it."""
        text: str = self.run(f"return document.querySelector({json.dumps(selector)})?.innerText")
        return text or ""

    def complaints(self) -> list[str]:
        """What stands in the console since it was asked last: errors, refused loads."""
        entries: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    def picture(self, path: Path) -> None:
        """Save what is shown as a PNG."""
        data = self.devtools("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End it."""
        self.driver.quit()
        self._folder.cleanup()


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser and its traps; see Browser."""
    with (
        contextlib.closing(Trap()) as trap,
        contextlib.closing(Trap()) as canary,
        contextlib.closing(Browser(trap, canary)) as browser,
    ):
        yield browser
