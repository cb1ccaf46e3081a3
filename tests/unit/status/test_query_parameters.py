"""What does a request ask for, and what is it told where that cannot be?"""

from __future__ import annotations

import pytest

from gsmtpd.status import parameters
from gsmtpd.status.mail_json import to_be_saved


@pytest.mark.parametrize("text", ["0", "30", "0.5", "299.99999999999999", "1e-05", "300"])
def test_seconds(text: str) -> None:
    assert parameters.seconds(300)(text) == float(text)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1_0", " 1", "300.1", "1e9", "٣", "0x1"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds from 0 to 300"):
        parameters.seconds(300)(text)


@pytest.mark.parametrize("text", ["", "0", "501", "-1", "1.0", "٣", "9" * 5000])
def test_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number from 1 to 500"):
        parameters.number(1, 500)(text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.pdf", "attachment; filename=\"a.pdf\"; filename*=UTF-8''a.pdf"),
        ("../../etc/passwd", "attachment; filename=\"passwd\"; filename*=UTF-8''passwd"),
        ("c:\\x\\y.exe", "attachment; filename=\"y.exe\"; filename*=UTF-8''y.exe"),
        ("ü.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"),
        ('a"b;c', "attachment; filename=\"a_b_c\"; filename*=UTF-8''a%22b%3Bc"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a__b"),
        ("..", "attachment; filename=\"attachment\"; filename*=UTF-8''attachment"),
        ("\u202egnp.exe", "attachment; filename=\"_gnp.exe\"; filename*=UTF-8''_gnp.exe"),
    ],
)
def test_the_name_of_a_file(name: str, wanted: str) -> None:
    assert to_be_saved(name) == wanted
