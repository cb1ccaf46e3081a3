"""What will the workers behind a reload be made from? Read, checked and opened before any fork."""

from __future__ import annotations

from collections.abc import Callable

from gsmtpd import app
from gsmtpd.app_listen import make_certificates
from gsmtpd.app_policy import make_policy
from gsmtpd.config import Config, ConfigError
from gsmtpd.logs import LogError
from gsmtpd.policy.lists import ListError
from gsmtpd.privileges import PrivilegeError, check_key
from gsmtpd.server.certificates import CertificateError
from gsmtpd.server.listeners import Listener, ListenError, close_listeners, open_listeners
from gsmtpd.storage.base import StoreError
from gsmtpd.workers import Setup


class NotReloadedError(Exception):
    """The new configuration cannot be taken over. problems: one line for each thing wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def read_anew(current: Setup, load: Callable[[], Config], foreground: bool) -> Setup:
    """By the configuration as it is now, with those sockets of `current` that fit.

    load: reads it. foreground: see Master. Raises NotReloadedError.
    """
    listeners: list[Listener] = []
    status: list[Listener] = []
    held = [*current.listeners, *current.status]
    try:
        config = load()
        _check_spool(current.config, config)
        app.check_hooks(config)
        policy = make_policy(config)
        certificates = make_certificates(config)
        listeners = open_listeners(app.wanted(config), current.listeners)
        status = app.open_status(config, current.status)
        if config.store != current.config.store:
            app.prepare_store(config)
        logs = app.make_logs(config, foreground)
    except (ConfigError, ListError) as error:
        raise NotReloadedError(*error.problems) from error
    except CertificateError as error:
        raise NotReloadedError(f"[tls] {error}") from error
    except (PrivilegeError, ListenError, StoreError, LogError) as error:
        close_listeners([*listeners, *status], but=held)
        raise NotReloadedError(str(error)) from error
    return Setup(config, listeners, logs, policy, certificates, status)


def _check_spool(current: Config, config: Config) -> None:
    """Leave no spool behind that holds mail, or that clients who stay still fill.

    Raises NotReloadedError.
    """
    used = app.spool_of(current)
    if used and app.spool_of(config) != used:
        raise NotReloadedError(
            f"[store] spool: {used} is in use, and what waits there would stay behind; change it"
            " with a stop and a start, once gsmtpctl status says that it is empty"
        )


def renewed(current: Setup, foreground: bool) -> Setup:
    """As `current`, with the certificates as they are now. Raises NotReloadedError."""
    assert current.certificates is not None, "they have changed"
    try:
        for key in current.config.key_files:
            check_key(key)
        certificates = current.certificates.again()
        logs = app.make_logs(current.config, foreground)
    except CertificateError as error:
        raise NotReloadedError(f"[tls] {error}") from error
    except (LogError, PrivilegeError) as error:
        raise NotReloadedError(str(error)) from error
    return current._replace(certificates=certificates, logs=logs)
