"""Does gsmtpd become whom it is told to, for good, and who may read its secrets?"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from gsmtpd.privileges import (
    Identity,
    PrivilegeError,
    check_key,
    check_secret,
    find,
    intended,
    make_directory,
    ours,
)
from tests.servers import ROOT

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Ids that nobody has, so that owner and group are neither root's nor ours.
US, OUR_GROUP, SECOND_GROUP, STRANGER = 64001, 64002, 64003, 64004
KEY = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"
IDENTITY = Identity("mail", "mail", US, OUR_GROUP, (OUR_GROUP, SECOND_GROUP))


# --- who ------------------------------------------------------------------------------------------


def test_the_group_of_a_user_is_its_own() -> None:
    entry = pwd.getpwnam("nobody")
    found = find("nobody", "")
    assert (found.user, found.uid, found.gid) == ("nobody", entry.pw_uid, entry.pw_gid)
    assert found.groups == (entry.pw_gid,)


def test_but_another_may_be_named() -> None:
    gid = grp.getgrnam("mail").gr_gid
    found = find("nobody", "mail")
    assert found.gid == gid
    assert gid in found.groups
    assert pwd.getpwnam("nobody").pw_gid not in found.groups


def test_the_user_is_in_all_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, SECOND_GROUP])
    assert set(find("nobody", "mail").groups) == {grp.getgrnam("mail").gr_gid, SECOND_GROUP}


@pytest.mark.parametrize(
    ("user", "group", "said"),
    [
        ("no-such-user", "", r'no user "no-such-user"; make it \(adduser .* no-such-user\)'),
        ("nobody", "no-such-group", r'no group "no-such-group"; make it \(addgroup .*\)'),
        ("", "", 'no user ""'),
        ("0", "", 'no user "0"'),  # a name, never an id
    ],
)
def test_unknown_names(user: str, group: str, said: str) -> None:
    with pytest.raises(PrivilegeError, match=said) as caught:
        find(user, group)
    assert "\n" not in str(caught.value)


def test_only_root_becomes_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert intended("no-such-user", "") == ours()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PrivilegeError):
        intended("no-such-user", "")


# --- become ---------------------------------------------------------------------------------------

_BECOME = """
import os
from gsmtpd.privileges import become, find
become(find({user!r}, {group!r}))
print(open('/proc/self/status').read())
print(open('/proc/self/limits').read())
"""
_CONFINE = """
from gsmtpd.privileges import confine
confine()
print(open('/proc/self/status').read())
print(open('/proc/self/limits').read())
"""


def became(user: str, group: str = "", *through: str) -> dict[str, str]:
    """What the kernel says of a process that became `user`. through: the command it runs in."""
    return told([*through, sys.executable, "-c", _BECOME.format(user=user, group=group)])


def told(command: list[str]) -> dict[str, str]:
    """What the kernel says of the process of that command, by its own account."""
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    status, limits = done.stdout.split("\nLimit ")
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    return {"core": core[18:]} | dict(line.split(":\t", 1) for line in status.splitlines())


@root
def test_all_ids_and_no_capability() -> None:
    status = became("nobody")
    entry = pwd.getpwnam("nobody")
    assert status["Uid"].split() == [str(entry.pw_uid)] * 4
    assert status["Gid"].split() == [str(entry.pw_gid)] * 4
    assert status["Groups"].split() == [str(entry.pw_gid)]
    assert {status[f"Cap{which}"] for which in ("Prm", "Eff", "Inh", "Amb")} == {"0" * 16}
    assert_confined(status)


def assert_confined(status: dict[str, str]) -> None:
    """No rights by programs that it executes, and no core dump; neither can be had again."""
    assert status["NoNewPrivs"] == "1"
    assert status["core"].split()[:2] == ["0", "0"]


def test_whoever_is_confined() -> None:
    assert_confined(told([sys.executable, "-c", _CONFINE]))


@root
def test_a_group_of_its_own() -> None:
    status = became("nobody", "mail")
    gid = str(grp.getgrnam("mail").gr_gid)
    assert status["Gid"].split() == [gid] * 4
    assert status["Groups"].split() == [gid]


@root
def test_root_stays_root() -> None:
    status = became("root")
    assert status["Uid"].split() == ["0"] * 4
    assert int(status["CapEff"], 16) != 0
    assert_confined(status)


@root
def test_capabilities_that_would_outlive_the_change() -> None:
    """Without set-user-ID fixups, see capabilities(7), the kernel would leave them all."""
    status = became("nobody", "", "setpriv", "--securebits=+no_setuid_fixup")
    assert {status[f"Cap{which}"] for which in ("Prm", "Eff", "Inh", "Amb")} == {"0" * 16}


@root
def test_no_way_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BECOME.format(user="nobody", group="") + "os.setuid(0)\n"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert "PermissionError" in done.stderr


@root
def test_inheritable_capabilities_go_as_well() -> None:
    status = became("nobody", "", "setpriv", "--inh-caps=+net_bind_service")
    assert status["CapInh"] == "0" * 16


# --- secrets --------------------------------------------------------------------------------------


@root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "cure"),
    [
        # root's, and we get at it by a group of ours
        (0, OUR_GROUP, 0o640, None),
        (0, SECOND_GROUP, 0o640, None),
        (0, OUR_GROUP, 0o440, None),
        (0, OUR_GROUP, 0o600, None),
        (0, OUR_GROUP, 0o644, "640"),
        (0, OUR_GROUP, 0o604, "640"),
        # root's, and we would not get at it any more
        (0, STRANGER, 0o640, "640 to our group"),
        (0, 0, 0o640, "640 to our group"),
        (0, 0, 0o644, "640 to our group"),
        (0, 0, 0o600, None),
        # ours: our group is others
        (US, OUR_GROUP, 0o600, None),
        (US, OUR_GROUP, 0o400, None),
        (US, OUR_GROUP, 0o640, "600"),
        (US, OUR_GROUP, 0o644, "600"),
        (US, 0, 0o640, "600"),
        # nobody can read it, not even we
        (0, 0, 0o000, None),
        (0, STRANGER, 0o620, None),
    ],
)
def test_who_may_read_a_secret(
    tmp_path: Path, owner: int, group: int, mode: int, cure: str | None
) -> None:
    path = tmp_path / "password"
    path.write_text("secret")
    os.chown(path, owner, group)
    path.chmod(mode)
    if cure is None:
        check_secret(str(path), IDENTITY)
        return
    with pytest.raises(PrivilegeError) as caught:
        check_secret(str(path), IDENTITY)
    said = str(caught.value)
    assert said.startswith(f"{path}: holds a password, and ")
    assert ("everybody" if mode & 0o004 else "its group") in said
    assert f"mode {mode:04o}" in said
    new, _, to_us = cure.partition(" ")
    first = f"chgrp mail {path} && " if to_us else ""
    assert said.endswith(f"cure it with: {first}chmod {new} {path}")
    if to_us:
        os.chown(path, -1, OUR_GROUP)
    path.chmod(int(new, 8))
    check_secret(str(path), IDENTITY)


@root
def test_a_link_is_as_good_as_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "password", tmp_path / "link"
    path.write_text("secret")
    link.symlink_to(path)
    path.chmod(0o644)
    with pytest.raises(PrivilegeError, match="everybody"):
        check_secret(str(link), IDENTITY)
    path.chmod(0o600)
    check_secret(str(link), IDENTITY)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440, 0o400, 0o620, 0o602, 0o000])
def test_a_key_that_is_not_for_everybody(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    path.write_text(KEY)
    path.chmod(mode)
    check_key(str(path))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o004, 0o777])
def test_a_key_that_everybody_can_read(tmp_path: Path, mode: int) -> None:
    """Also by a link, as certbot lays them."""
    path, link = tmp_path / "key.pem", tmp_path / "live.pem"
    path.write_text(KEY)
    link.symlink_to(path)
    path.chmod(mode)
    with pytest.raises(PrivilegeError) as caught:
        check_key(str(link))
    said = str(caught.value)
    assert said.startswith(f"{link}: holds a private key, and everybody can read it (mode 0")
    assert f"(mode {mode:04o})" in said
    subprocess.run(said.rpartition("cure it with: ")[2].split(), check=True)
    check_key(str(link))
    assert path.stat().st_mode & 0o777 == mode & 0o770


@pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n", "KEY"])
def test_a_file_that_holds_no_key(tmp_path: Path, content: str) -> None:
    """There is nothing to hide in it. A certificate is everybody's, also in the key's place."""
    path = tmp_path / "certificate.pem"
    path.write_text(content)
    path.chmod(0o644)
    check_key(str(path))


def test_a_key_behind_its_certificate(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n" * 1000 + KEY)
    path.chmod(0o644)
    with pytest.raises(PrivilegeError, match="holds a private key"):
        check_key(str(path))


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    """Who loads it says what is wrong."""
    check_key(str(tmp_path / "missing" / "key.pem"))


# --- /run -----------------------------------------------------------------------------------------


def test_no_directory_is_made_elsewhere(tmp_path: Path) -> None:
    make_directory(str(tmp_path / "missing"), IDENTITY)
    make_directory("", IDENTITY)
    assert not (tmp_path / "missing").exists()


@root
def test_a_directory_below_run() -> None:
    path = Path(f"/run/gsmtpd-test-{os.getpid()}")
    try:
        make_directory(str(path), IDENTITY)
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (US, OUR_GROUP)
        assert status.st_mode & 0o022 == 0
        path.chmod(0o700)
        make_directory(str(path), Identity("other", "other", 1, 1, (1,)))
        assert path.stat().st_uid == US, "one that is there is left alone"
    finally:
        path.rmdir()
