"""Is a certificate valid now, and for how long? Asked as a client would, in memory."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress

SOON = 7 * 86400.0  # seconds before its end from which on a certificate is complained of
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_…, x509_vfy.h
_ROUNDS = 8  # of a handshake; TLS 1.3 takes two


def complaint(context: ssl.SSLContext, certificate: str) -> str:
    """What is wrong with the time of the certificate that `context` shows; "" if nothing.

    certificate: the path of its file.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it
    try:
        client.load_verify_locations(cafile=certificate)
        not_after = _not_after(client, context)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            return f"{certificate}: the certificate has expired; clients that look will not go on"
        if error.verify_code == _NOT_YET:
            return f"{certificate}: the certificate is not valid yet; is the clock right?"
        return ""
    except (ssl.SSLError, OSError):
        return ""  # no question of time
    left = not_after - time.time()
    if left > SOON:
        return ""
    day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(not_after))
    return f"{certificate}: the certificate expires on {day} UTC; was it not renewed?"


def _not_after(client: ssl.SSLContext, server: ssl.SSLContext) -> float:
    """The end of the certificate's time, as Unix time. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    for _ in range(_ROUNDS):
        try:
            theirs.do_handshake()
            break
        except ssl.SSLWantReadError:
            pass
        with suppress(ssl.SSLWantReadError):
            ours.do_handshake()
    shown = theirs.getpeercert()
    return ssl.cert_time_to_seconds(str(shown["notAfter"])) if shown else float("inf")
