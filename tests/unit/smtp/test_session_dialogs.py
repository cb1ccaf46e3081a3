"""Does the pure Session say what the dialogs expect? And does their reader read them aright?"""

from __future__ import annotations

import pytest

from tests.dialogs import HERE, DialogError, Options, load, names, parse, reply_lines
from tests.dialogs.pure import client_of

GREETING = "S: 220 mx.example.com ESMTP gsmtpd\n"


def hold(dialog_text: str) -> None:
    """Hold the conversation `dialog_text` with a Session."""
    converse("test", dialog_text)


def converse(name: str, text: str | None = None) -> None:
    """Hold the dialog `name`, or the one written as `text`; raises DialogError at a difference."""
    dialog = load(name) if text is None else parse(name, text)
    client = client_of(dialog.options)
    for turn in dialog.turns:
        stored = len(client.messages)
        said = client.send(turn.sent) if turn.sent else client.session.take_output()
        dialog.check(turn, [*reply_lines(said)])
        if turn.messages:
            assert client.messages[stored:] == [*turn.messages]
    assert client.session.closing == dialog.closed


@pytest.mark.parametrize("name", names())
def test_dialog(name: str) -> None:
    converse(name)


# What stands behind DATA or QUIT is out of turn only in the same burst.
@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("out_of_turn")])
def test_dialog_byte_by_byte(name: str) -> None:
    dialog = load(name)
    client = client_of(dialog.options)
    for turn in dialog.turns:
        if len(turn.sent) < 100_000:
            said = client.send(*(turn.sent[i : i + 1] for i in range(len(turn.sent))))
        else:
            said = client.send(turn.sent)
        dialog.check(turn, [*reply_lines(said)])
    assert client.session.closing == dialog.closed


def test_there_are_dialogs() -> None:
    assert len(names()) > 50


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("S: 220 mx.example.net\nS: <open>\n", "test:1: '220 mx.example.net' expected, '220 mx."),
        ("S: 220 mx.example.com...\nS: 250 more\nS: <open>\n", "test:2: '250 more' expected"),
        (GREETING + "C: NOOP\nS: <nothing>\nS: <open>\n", "nothing expected, '250 2.0.0 Ok' said"),
        (GREETING + "C*2: NOOP\nS: 250 2.0.0 Ok\nS: <open>\n", "test:3: then nothing expected"),
        (GREETING + "C: NOOP\nS: 250 2.0.0\nS: <open>\n", "test:3: '250 2.0.0' expected"),
        (GREETING + "C: NOOP\n", "neither <open> nor <closed>"),
        (GREETING + "S: <open>\nC: NOOP\n", "test:3: the dialog goes on behind its end"),
        (GREETING + "X: NOOP\nS: <open>\n", "test:2: not of the form"),
        ("# option: max_sise=1\nS: <open>\n", "test:1: no option"),
        ("# option: max_size 1\nS: <open>\n", "test:1: no option"),
    ],
)
def test_a_difference_is_told_with_its_place(text: str, trouble: str) -> None:
    with pytest.raises(DialogError) as error:
        hold(text)
    assert trouble in str(error.value)


def test_a_session_left_open_or_closed_is_a_difference() -> None:
    with pytest.raises(AssertionError):
        hold(GREETING + "S: <closed>\n")
    with pytest.raises(AssertionError):
        hold(GREETING + "C: QUIT\nS: 221 2.0.0 Bye\nS: <open>\n")


def test_another_message_is_a_difference() -> None:
    text = (HERE / "empty_message.txt").read_text("utf-8").replace("\nM:", "\nM: x")
    with pytest.raises(AssertionError):
        hold(text)


def test_reading() -> None:
    dialog = parse(
        "test",
        "# comment\n# option: max_size=65536\nS: 220 ...\n\nC: A\nC*2: B\nC<*2: \\x00\\r\\n\n"
        "S*2: 250 ...\nS: 251\nM: a\\r\\nb\nM:\nC:\nS: <nothing>\nC: ü\nS: <closed>\n",
    )
    assert dialog.options == Options(max_size=65536)
    assert [turn.sent for turn in dialog.turns] == [
        b"",
        b"A\r\nB\r\nB\r\n\0\r\n\0\r\n",
        b"\r\n",
        b"\xc3\xbc\r\n",
    ]
    assert [[line.text for line in turn.expected] for turn in dialog.turns] == [
        ["220 ..."],
        ["250 ...", "250 ...", "251"],
        [],
        [],
    ]
    assert [turn.messages for turn in dialog.turns] == [(), (b"a\r\nb", b""), (), ()]
    assert dialog.closed
    assert [turn.expected[0].line_number for turn in dialog.turns if turn.expected] == [3, 8]
