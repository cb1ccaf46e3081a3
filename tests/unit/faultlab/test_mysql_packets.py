"""Are the packets of MySQL's protocol told apart, however they arrive?"""

from __future__ import annotations

import pytest

from gsmtpd.faultlab.mysql_packets import Command, Splitter, command_of, error, packet


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7, 64, 67, 68, 69, 1000])
def test_packets_in_pieces(cut: int) -> None:
    payloads = [b"\x03COMMIT", b"", b"\x03INSERT " + b"x" * 3000, b"\x01"]
    stream = b"".join(packet(payload, 0) for payload in payloads)
    splitter = Splitter()
    passed, begun = b"", []
    for at in range(0, len(stream), cut):
        splitter.feed(stream[at : at + cut])
        while (piece := splitter.next()) is not None:
            passed += piece.data
            if piece.first is not None:
                begun.append(piece.first[:7])
                assert piece.is_command
    assert passed == stream
    assert splitter.whole
    assert begun == [payload[:7] for payload in payloads]


@pytest.mark.parametrize(
    ("payload", "command"),
    [
        (b"\x03BEGIN", Command.BEGIN),
        (b"\x03start  transaction", Command.BEGIN),
        (b"\x03START SLAVE", Command.OTHER),
        (b"\x03COMMIT", Command.COMMIT),
        (b"\x03commit;", Command.COMMIT),
        (b"\x03ROLLBACK", Command.ROLLBACK),
        (b"\x03insert into x", Command.INSERT),
        (b"\x03 UPDATE x", Command.INSERT),
        (b"\x03REPLACE x", Command.INSERT),
        (b"\x03OTHER", Command.OTHER),
        (b"\x03", Command.OTHER),
        (b"\x03SELECT 'COMMIT'", Command.OTHER),
        (b"\x0e", Command.OTHER),
        (b"\x02COMMIT", Command.OTHER),
        (b"", Command.OTHER),
    ],
)
def test_commands_are_told_apart(payload: bytes, command: Command) -> None:
    assert command_of(payload) is command


def test_an_error_is_as_a_server_says_it() -> None:
    assert error(1213, "x", 1) == b"\x0a\0\0\x01\xff\xbd\x04#40001x"
    assert error(1040, "x", 0) == b"\x04\0\0\0\xff\x10\x04x"
