"""Who does gsmtpd run as, and who else may read its secrets?"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import stat
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39  # linux/prctl.h
_MAX_KEY = 1 << 20  # octets of a file with a key that are read
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


class PrivilegeError(Exception):
    """gsmtpd cannot, or must not, run so; the text is one clear line."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user with its group and all its groups."""

    user: str
    group: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def ours() -> Identity:
    """Who we are now."""
    uid, gid = os.geteuid(), os.getegid()
    groups = tuple({gid, *os.getgroups()})
    return Identity(str(uid), str(gid), uid, gid, groups)


def find(user: str, group: str) -> Identity:
    """The identity named so; an empty `group` is the user's own. Raises PrivilegeError."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f'there is no user "{user}"; make it (adduser --system --group {user}), or set'
            " [server] user to the user that gsmtpd is to become"
        ) from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
        group = group or grp.getgrgid(gid).gr_name
    except KeyError:
        raise PrivilegeError(
            f'there is no group "{group}"; make it (addgroup --system {group}), or leave'
            " [server] group empty for the user's own"
        ) from None
    groups = tuple(os.getgrouplist(user, gid))
    return Identity(user, group, entry.pw_uid, gid, groups)


def intended(user: str, group: str) -> Identity:
    """Who the daemon is going to be: only root becomes somebody else. Raises PrivilegeError."""
    return find(user, group) if os.geteuid() == 0 else ours()


def become(identity: Identity) -> None:
    """Become `identity` for good, confined. Raises PrivilegeError if there is any doubt of that."""
    os.setgroups(list(identity.groups))
    os.setgid(identity.gid)
    os.setuid(identity.uid)
    confine()
    if identity.uid == 0:
        return
    # setuid() has cleared the effective and permitted ones, but for special securebits.
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _succeed(_libc().capset(header, none), "give up all capabilities")
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise PrivilegeError(f"could not become {identity.user} for good; not going on")
    for way_back in (os.setuid, os.seteuid):
        try:
            way_back(0)
        except PermissionError:
            continue
        raise PrivilegeError(f"root could be had again as {identity.user}; not going on")


def confine() -> None:
    """Give up for good what gsmtpd never needs, whoever it runs as. Raises PrivilegeError.

    No program that it executed would have more rights than itself. No core dump is written, as the
    passwords and keys in memory would be in it; the log has where each thread was. Debuggers of
    the same user still get at it: to forbid those would hide its /proc as well.
    """
    libc = _libc()
    _succeed(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given_up = libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
    if not given_up or resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise PrivilegeError("new privileges or core dumps could not be given up; not going on")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check_program(module: str) -> None:
    """Whether we, who may have become somebody else, can read `module` and the standard library.

    Not all of a program is read when it starts. Raises PrivilegeError.
    """
    for path in (module, os.__file__):
        if not os.access(path, os.R_OK):
            raise PrivilegeError(
                f"the user {pwd.getpwuid(os.geteuid()).pw_name} cannot read the program,"
                f" {path}; install it where every user can read it"
            )


def _succeed(result: int, what: str) -> None:
    if result:
        raise PrivilegeError(f"cannot {what}: {os.strerror(ctypes.get_errno())}; not going on")


def check_secret(path: str, identity: Identity) -> None:
    """Whether only `identity` (and root) can read the file `path`, which holds a password.

    Its group may read it where that is how `identity` does: root:gsmtpd with mode 0640. Raises
    PrivilegeError with the command that cures it.
    """
    status = os.stat(path)
    mode = stat.S_IMODE(status.st_mode)
    by_group = status.st_uid != identity.uid and status.st_gid in identity.groups
    allowed = stat.S_IRGRP if by_group else 0
    if mode & (stat.S_IRGRP | stat.S_IROTH) & ~allowed:
        who = "everybody" if mode & stat.S_IROTH else "its group"
        cure = f"chmod 640 {path}"
        if status.st_uid == identity.uid:
            cure = f"chmod 600 {path}"
        elif not by_group:  # who serves has to read it, too
            cure = f"chgrp {identity.group} {path} && {cure}"
        raise PrivilegeError(
            f"{path}: holds a password, and {who} can read it (mode {mode:04o}); cure it with:"
            f" {cure}"
        )


def check_key(path: str) -> None:
    """Whether the file `path`, which holds a private key, is not everybody's to read.

    Its group may read it: so Debian's group ssl-cert does. What is missing or out of reach is
    not judged here. Raises PrivilegeError with the command that cures it.
    """
    try:
        # A pipe that nobody writes to would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode)
            if not stat.S_ISREG(found.st_mode) or b"PRIVATE KEY-----" not in file.read(_MAX_KEY):
                return  # then there is nothing to hide, and somebody else says so
    except OSError:
        return
    if mode & stat.S_IROTH:
        raise PrivilegeError(
            f"{path}: holds a private key, and everybody can read it (mode {mode:04o}); cure it"
            f" with: chmod o= {path}"
        )


def make_directory(path: str, identity: Identity) -> None:
    """Make the directory `path` below /run for `identity`, where it is missing and we are root.

    /run is empty after each boot; any other directory is the administrator's to make.
    """
    if os.geteuid() == 0 and path.startswith("/run/") and not os.path.exists(path):
        with suppress(OSError):  # whoever wants to write there says what is wrong
            os.mkdir(path, 0o755)
            os.chown(path, identity.uid, identity.gid)
