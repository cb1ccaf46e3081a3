"""Is a list file read as it is meant, its mistakes named by line, and its changes seen in time?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsmtpd.policy.lists import MAX_LIST, ListError, Watch, line_of, lines, read_list
from gsmtpd.policy.names import address_item, domain_pattern


@pytest.fixture(name="file")
def make_file(tmp_path: Path) -> Path:
    return tmp_path / "list"


def as_it_is(text: str) -> str:
    """Any text is an item."""
    return text


READ = [
    (b"", []),
    (b"a.example", ["a.example"]),
    (b"a.example\nB.example\n", ["a.example", "b.example"]),
    (b"\xef\xbb\xbfa.example\r\n\r\nb.example\r\n", ["a.example", "b.example"]),
    (b"# head\n  # more\na.example # why\n\tb.example\t#why\n", ["a.example", "b.example"]),
    (b"  a.example  \n\t\n", ["a.example"]),
    ("bücher.example\n".encode(), ["xn--bcher-kva.example"]),
    (b"*\n.a.example\n*.b.example", ["*", ".a.example", "*.b.example"]),
]


@pytest.mark.parametrize(("data", "wanted"), READ)
def test_each_line_is_an_item(file: Path, data: bytes, wanted: list[str]) -> None:
    file.write_bytes(data)
    assert read_list(str(file), domain_pattern) == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a#b@x.example", "a#b@x.example"),
        ("a@x.example #b", "a@x.example"),
        ('"a #b"@x.example # c', '"a #b"@x.example'),
        ('"a \\" #b"@x.example # "c"', '"a \\" #b"@x.example'),
        ('o"brien # c', 'o"brien'),
        ("a\u00a0#b", "a\u00a0#b"),
        ("a\x0b#b", "a\x0b#b"),
        ("a\x85b\u2028c", "a\x85b\u2028c"),
    ],
)
def test_where_a_comment_begins(file: Path, line: str, wanted: str) -> None:
    file.write_text(f"{line}\n", "utf-8", newline="")
    assert read_list(str(file), as_it_is) == [wanted]


def test_lines_have_their_numbers_and_the_white_space_at_their_start(file: Path) -> None:
    file.write_bytes(b"# head\r\na: b,\r\n\r\n   c # and\r\n\td\r\n#\n   \n")
    assert [*lines(str(file))] == [(2, "a: b,"), (4, "   c"), (5, "\td")]


def test_all_that_is_wrong_is_named_with_its_line(file: Path) -> None:
    file.write_text("# head\nok.example\na..b\n\n192.0.2.1 # x\n")
    with pytest.raises(ListError) as caught:
        read_list(str(file), domain_pattern)
    assert caught.value.problems == (
        f'{file}:3: "a..b" is not a domain name; write one like mail.example.com',
        f'{file}:5: "192.0.2.1" is not a domain; write [192.0.2.1]',
    )
    assert str(caught.value).splitlines() == [*caught.value.problems]


def test_of_many_mistakes_ten_are_named(file: Path) -> None:
    file.write_text("a..b\n" * 25)
    with pytest.raises(ListError) as caught:
        read_list(str(file), domain_pattern)
    assert len(caught.value.problems) == 11
    assert caught.value.problems[9].startswith(f"{file}:10: ")
    assert caught.value.problems[10] == "and 15 more"


def test_what_is_not_utf8_is_named_with_its_line(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfa.example\nb\xfccher.example\n")
    with pytest.raises(ListError) as caught:
        read_list(str(file), domain_pattern)
    wanted = f"{file}:2: byte 0xfc is not UTF-8; save the file as UTF-8"
    assert caught.value.problems == (wanted,)


def problem_of(path: Path | str) -> str:
    """The one thing that is wrong with a file."""
    with pytest.raises(ListError) as caught:
        lines(str(path))
    (problem,) = caught.value.problems
    assert problem.isprintable()
    return problem


def test_what_cannot_be_read_says_why(tmp_path: Path, file: Path) -> None:
    assert problem_of(file) == f"{file}: there is no such file; make it, or name another"
    assert problem_of(tmp_path) == f"{tmp_path}: is not a file; name one that holds a list"
    os.mkfifo(tmp_path / "fifo")
    assert "is not a file; name one" in problem_of(tmp_path / "fifo")
    assert "is not a file; name one" in problem_of("/dev/zero")
    (tmp_path / "other").touch()
    assert "cannot be read: Not a directory" in problem_of(tmp_path / "other" / "below")
    assert "cannot be read: " in problem_of("/a\0b")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read: " in problem_of(tmp_path / "loop")
    with file.open("wb") as large:
        large.truncate(MAX_LIST + 1)
    assert problem_of(file) == f"{file}: is larger than 64 MiB; make several files of it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(file: Path) -> None:
    file.write_text("a.example\n")
    file.chmod(0)
    assert "permission denied; let the user that gsmtpd runs as read it" in problem_of(file)


def test_the_line_of_an_item(file: Path) -> None:
    file.write_text("# head\na..b\nU@Example.com\nu@example.com\n")
    assert line_of(str(file), address_item, "u@example.com") == 3
    assert line_of(str(file), address_item, "v@example.com") == 0
    with pytest.raises(ListError):
        line_of(f"{file}x", address_item, "u@example.com")


@given(data=st.binary(max_size=60) | st.text('ab.@*"\\# \t\r\n\u2028', max_size=60).map(str.encode))
def test_no_file_raises_anything_but_list_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-list"
    file.write_bytes(data)
    for parse in (domain_pattern, address_item, as_it_is):
        try:
            found = read_list(str(file), parse)
        except ListError as error:
            assert all(p.startswith((f"{file}:", "and ")) for p in error.problems)
        else:
            assert found == [parse(line.strip(" \t\r")) for _, line in lines(str(file))]


def test_a_change_is_seen_once_it_is_whole(file: Path) -> None:
    file.write_text("a.example\n")
    watch = Watch([str(file)])
    assert not watch.changed()
    assert not watch.changed()
    file.write_text("a.example\nb.ex")
    assert not watch.changed()
    file.write_text("a.example\nb.example\n")
    assert not watch.changed()  # it was other at the look before
    assert watch.changed()
    assert watch.changed()  # until it is read again
    assert not Watch([str(file)]).changed()


def test_a_change_between_watch_and_reading_is_seen(file: Path) -> None:
    file.write_text("a.example\n")
    watch = Watch([str(file)])
    file.write_text("a.example\nb.example\n")
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_file_put_in_the_place_of_another_is_seen(tmp_path: Path, file: Path) -> None:
    file.write_text("a.example\n")
    os.utime(file, (1, 1))
    watch = Watch([str(file)])
    new = tmp_path / "new"
    new.write_text("b.example\n")
    os.utime(new, (1, 1))
    new.replace(file)
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_change_that_was_undone_is_none(file: Path) -> None:
    file.write_text("a.example\n")
    os.utime(file, (1, 1))
    watch = Watch([str(file)])
    os.utime(file, (2, 2))
    assert not watch.changed()
    os.utime(file, (1, 1))
    assert not watch.changed()
    assert not watch.changed()


def test_one_of_two_files_is_enough_once_both_rest(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other"
    file.write_text("a.example\n")
    other.write_text("b.example\n")
    watch = Watch([str(file), str(other)])
    file.write_text("longer.a.example\n")
    assert not watch.changed()
    other.write_text("longer.b.example\n")
    assert not watch.changed()
    assert watch.changed()


def test_a_file_that_is_another_at_each_look_is_read_in_the_end(file: Path) -> None:
    file.write_text("a.example\n")
    watch = Watch([str(file)])
    looks = 0
    while not watch.changed():
        looks += 1
        file.write_text("a.example\n" * (looks + 1))
        assert looks < 10
    assert looks > 3


def test_a_vanished_file_has_not_changed_until_it_is_back(file: Path) -> None:
    file.write_text("a.example\n")
    os.utime(file, (1, 1))
    watch = Watch([str(file)])
    file.unlink()
    assert [watch.changed(), watch.changed(), watch.changed()] == [False] * 3
    assert watch.missing() == [str(file)]
    file.write_text("b.example\n")
    assert not watch.changed()
    assert watch.missing() == []
    assert watch.changed()


def test_nothing_to_watch() -> None:
    assert not Watch([]).changed()
    assert Watch(["/a\0b"]).missing() == ["/a\0b"]
