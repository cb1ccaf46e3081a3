"""Who is let in, and who is not?"""

from __future__ import annotations

import base64

import pytest

from gsmtpd.status.access import PAUSE, WRONG_AT_ONCE, Door

PASSWORD = "secret: ü"
CLIENT = "192.0.2.1"


def basic(password: str, name: str = "anybody") -> dict[str, str]:
    """A header with that password."""
    said = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Host": "status.example.com", "Authorization": f"Basic {said}"}


def refused(door: Door, headers: dict[str, str], method: str = "GET", path: str = "/") -> int:
    """The status that refuses it; 0 if nothing does."""
    refusal = door.refusal(method, path, headers, CLIENT)
    return 0 if refusal is None else refusal.status


# --- the password ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "admin", "ü"])
def test_the_password_with_any_name(name: str) -> None:
    assert refused(Door(PASSWORD, []), basic(PASSWORD, name)) == 0


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer secret",
        "Basic",
        "Basic !",
        "Basic " + base64.b64encode(PASSWORD.encode()).decode(),
        "Basic " + base64.b64encode(b"name").decode(),
        "Digest " + PASSWORD,
        PASSWORD,
        "Bearer " + PASSWORD + "x",
    ],
)
def test_what_is_not_the_password(said: str) -> None:
    assert refused(Door(PASSWORD, []), {"Host": "x", "Authorization": said}) == 401


def test_a_token() -> None:
    said = {"Host": "x", "Authorization": f"bearer  {PASSWORD} "}
    assert refused(Door(PASSWORD, []), said) == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_anybodys(path: str) -> None:
    assert refused(Door(PASSWORD, []), {"Host": "x"}, path=path) == 0
    assert refused(Door("", []), {"Host": "x"}, path=path) == 0


def test_wrong_passwords_are_not_looked_at_for_ever() -> None:
    now = [1000.0]
    door = Door(PASSWORD, [], lambda: now[0])
    wrong = [refused(door, basic(f"guess {n}")) for n in range(WRONG_AT_ONCE + 3)]
    assert wrong == [401] * (WRONG_AT_ONCE + 1) + [429] * 2
    assert refused(door, basic(PASSWORD)) == 429, "else a guess would show by its answer"
    assert door.refusal("GET", "/", basic(PASSWORD), "192.0.2.2") is None
    now[0] += PAUSE
    assert refused(door, basic("again")) == 401
    assert refused(door, basic("and again")) == 429
    now[0] += PAUSE
    assert refused(door, basic(PASSWORD)) == 0


def test_a_network_of_ipv6_is_one_client() -> None:
    door = Door(PASSWORD, [])
    said = [door.refusal("GET", "/", basic("x"), f"2001:db8::{n:x}") for n in range(20)]
    assert said[-1] is not None
    assert said[-1].status == 429
    assert door.refusal("GET", "/", basic(PASSWORD), "2001:db8:0:1::1") is None


def test_others_who_guess_do_not_make_room_for_more_guesses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsmtpd.status.access._MOST", 3)
    door = Door(PASSWORD, [])
    for number in range(5):
        door.refusal("GET", "/", basic("x"), f"192.0.2.{number + 10}")
    wrong = [refused(door, basic(f"guess {n}")) for n in range(WRONG_AT_ONCE + 2)]
    assert wrong[-1] == 429


def test_who_has_said_nothing_yet_has_not_guessed() -> None:
    door = Door(PASSWORD, [])
    assert {refused(door, {"Host": "x"}) for _ in range(100)} == {401}
    assert refused(door, basic(PASSWORD)) == 0


# --- names, and other websites --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True),
        ("LOCALHOST:8025", True),
        ("localhost.:8025", True),
        ("127.0.0.1:8025", True),
        ("127.1.2.3", True),
        ("[::1]:8025", True),
        ("[::1]", True),
        ("status.local:80", True),
        ("", False),
        ("evil.example", False),
        ("evil.example:8025", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.1", False),
        ("[2001:db8::1]", False),
        ("[", False),
        ("[::1].evil.example", False),
        ("localhost:@evil.example", False),
        ("localhost:8025@evil.example", False),
    ],
)
def test_without_a_password_only_our_own_names(host: str, good: bool) -> None:
    """A page whose name leads here all of a sudden (DNS rebinding) still says its own name."""
    assert refused(Door("", ["status.local"]), {"Host": host}) == (0 if good else 403)
    assert refused(Door(PASSWORD, []), {"Host": host} | basic(PASSWORD) | {"Host": host}) == 0


LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("password", ["", PASSWORD])
@pytest.mark.parametrize(
    ("method", "headers", "good"),
    [
        ("GET", {}, True),
        ("DELETE", {}, True),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, True),
        ("DELETE", {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ("GET", {"Sec-Fetch-Site": "none"}, True),
        ("GET", {"Sec-Fetch-Site": "cross-site"} | LINK, True),
        ("GET", {"Sec-Fetch-Site": "same-site"} | LINK, True),
        ("POST", {"Sec-Fetch-Site": "cross-site"} | LINK, False),
        ("DELETE", {"Sec-Fetch-Site": "cross-site"} | LINK, False),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, False),
        ("GET", {"Sec-Fetch-Site": "cross-site"} | LINK | {"Sec-Fetch-Dest": "iframe"}, False),
        ("GET", {"Origin": "http://localhost:8025"}, True),
        ("GET", {"Origin": "http://localhost:3000"}, False),
        ("GET", {"Origin": "null"}, False),
        ("GET", {"Origin": "http://["}, False),
        ("DELETE", {"Origin": "http://evil.example"}, False),
    ],
)
def test_other_websites(password: str, method: str, headers: dict[str, str], good: bool) -> None:
    said = basic(password) | {"Host": "localhost:8025"} | headers
    assert refused(Door(password, []), said, method) == (0 if good else 403)
