"""Does each input of the fuzzers' corpus still do no harm?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.atheris.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "atheris" / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in FILES} == {*TARGETS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 3, b"\r\n" * 300, bytes(range(256)) * 9])
def test_a_few_octets(name: str, data: bytes) -> None:
    TARGETS[name](data)
