"""Is a certificate complained of when its time is over, or soon will be, and only then?"""

from __future__ import annotations

import re
import ssl
import time
from pathlib import Path

import pytest

from gsmtpd.server.certificates import CertificateError, Certificates, Pair
from gsmtpd.server.validity import SOON, complaint
from tests.certificates import Authority

NAME = "mail.example.org"
DAYS = SOON / 86400


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def said(pair: Pair) -> str:
    return complaint(Certificates(pair, {}).context, pair.certificate)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("days", [(-1, DAYS + 0.01), (-1, 400), (-0.001, 30)])
def test_a_good_one(authority: Authority, kind: str, days: tuple[float, float]) -> None:
    pair = authority.pair(NAME, kind=kind, days=days)  # type: ignore[arg-type]
    assert said(pair) == ""


def test_one_that_has_expired(authority: Authority) -> None:
    for days in ((-10, -1), (-400, -0.001)):
        pair = authority.pair(NAME, days=days)
        assert said(pair) == (
            f"{pair.certificate}: the certificate has expired; clients that look will not go on"
        )


def test_one_that_is_not_valid_yet(authority: Authority) -> None:
    pair = authority.pair(NAME, days=(0.01, 10))
    assert said(pair) == (
        f"{pair.certificate}: the certificate is not valid yet; is the clock right?"
    )


@pytest.mark.parametrize("left", [0.001, 1, DAYS - 0.01])
def test_one_that_ends_soon(authority: Authority, left: float) -> None:
    pair = authority.pair(NAME, days=(-1, left))
    found = re.fullmatch(
        re.escape(pair.certificate)
        + r": the certificate expires on (\d{4}-\d\d-\d\d \d\d:\d\d) UTC; was it not renewed\?",
        said(pair),
    )
    assert found is not None
    end = ssl.cert_time_to_seconds(
        time.strftime("%b %d %H:%M:00 %Y GMT", time.strptime(found[1], "%Y-%m-%d %H:%M"))
    )
    assert abs(end - (time.time() + left * 86400)) < 3600


def test_one_that_nobody_else_has_signed(tmp_path: Path) -> None:
    """Nor one whose CA is nowhere to be found, nor one with a chain, which stands behind it."""
    authority = Authority(tmp_path)
    pair = authority.pair(NAME, days=(-10, -1), one_file=True)
    path = Path(pair.certificate)
    assert "has expired" in said(pair)
    path.write_bytes(path.read_bytes() + authority.file.read_bytes())
    assert "has expired" in said(pair)
    good = authority.pair(NAME, one_file=True)
    path.write_bytes(path.read_bytes() + authority.file.read_bytes())
    assert said(good) == ""


def test_what_cannot_be_asked_is_no_complaint(authority: Authority) -> None:
    """It was loaded; since then its file may have gone."""
    pair = authority.pair(NAME, days=(-10, -1))
    context = Certificates(pair, {}).context
    Path(pair.certificate).unlink()
    assert complaint(context, pair.certificate) == ""


def test_each_of_several_is_told(authority: Authority) -> None:
    good, old, other = (
        authority.pair(NAME),
        authority.pair("old.example.org", days=(-10, -1)),
        authority.pair("*.example.net", days=(1, 10), file="other"),
    )
    names = {"mail.example.net": good, "old.example.org": old, "*.example.net": other}
    found = Certificates(good, names).complaints()
    assert [line.partition(": ")[0] for line in found] == [old.certificate, other.certificate]
    assert "has expired" in found[0]
    assert "not valid yet" in found[1]
    (first,) = Certificates(old, {"a.example.org": good}).complaints()
    assert first == found[0]
    assert Certificates(good, {"a.example.org": good}).complaints() == []


def test_asking_tells_nobody_else(authority: Authority) -> None:
    """No session is kept of it that a client could take up."""
    certificates = Certificates(authority.pair(NAME), {})
    for _ in range(10):
        assert certificates.complaints() == []
    assert certificates.context.session_stats()["number"] == 0


# --- what stands in the wrong place ---------------------------------------------------------------


@pytest.mark.parametrize("without_key", [False, True])
def test_a_key_where_the_certificate_should_be(authority: Authority, without_key: bool) -> None:
    pair = authority.pair(NAME)
    swapped = Pair(pair.key, "" if without_key else pair.certificate)
    with pytest.raises(CertificateError) as caught:
        Certificates(swapped, {})
    assert str(caught.value) == (
        f"{pair.key}: no certificate in PEM in it; PEM is text, with -----BEGIN CERTIFICATE-----;"
        " are certificate and key swapped, or is key = missing?"
    )


def test_a_certificate_where_the_key_should_be(authority: Authority) -> None:
    pair = authority.pair(NAME)
    for key in ("", pair.certificate):
        with pytest.raises(CertificateError) as caught:
            Certificates(Pair(pair.certificate, key), {})
        assert str(caught.value).startswith(f"{pair.certificate}: no private key in PEM in it; ")
        assert str(caught.value).endswith("; are certificate and key swapped, or is key = missing?")


def test_what_is_no_pem_at_all_is_not_swapped(authority: Authority) -> None:
    pair = authority.pair(NAME)
    Path(pair.certificate).write_bytes(b"\x30\x82\x01\x0a")
    with pytest.raises(CertificateError) as caught:
        Certificates(pair, {})
    assert "swapped" not in str(caught.value)
