"""Do the files of the page keep what its policy and its makers promise?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gsmtpd.status

PAGE = Path(gsmtpd.status.__file__).with_name("page")
FILES = sorted(path.name for path in PAGE.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]


def text_of(name: str) -> str:
    """A file of the page."""
    return (PAGE / name).read_text("utf-8")


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = text_of(name).replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_strangers_write_never_becomes_html(name: str) -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b"
    assert not re.findall(rf"{ways}|new Function|createContextualFragment", text_of(name))


def test_scripts_and_styles_are_files() -> None:
    html = text_of("index.html")
    assert re.findall(r"<script\b[^>]*>[^<]*", html) == [
        '<script type="module" src="static/main.js">'
    ]
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html)


def test_every_file_is_asked_for() -> None:
    """And all that is asked for is there."""
    asked = {"index.html", *re.findall(r'(?:src|href)="static/([^"]+)"', text_of("index.html"))}
    for name in SCRIPTS:
        asked |= set(re.findall(r'from "\./([^"]+)"', text_of(name)))
    assert asked == set(FILES)


def test_every_part_that_is_looked_for_is_there() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', text_of("index.html")))
    for name in SCRIPTS:
        assert set(re.findall(r'byId\("([^"]+)"\)', text_of(name))) <= ids


@pytest.mark.parametrize("name", FILES)
def test_lines_are_short(name: str) -> None:
    assert [line for line in text_of(name).splitlines() if len(line) > 100] == []
    assert len(text_of(name).splitlines()) < 400
