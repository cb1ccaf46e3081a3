"""How do stored mails begin? For what their header says and no column has."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate

from gsmtpd.storage.mail_rows import MailRows, StoredMail, octets_of, text_of

HEAD = 16384  # octets of a mail that are looked at
_MOST = 1 << 20  # octets of a mail: a database reads all of it for its beginning
_IN_ALL = 8 << 20
_EITHER = 32 + zlib.MAX_WBITS  # gzip's header or zlib's, whichever comes
_COMPRESSED = (b"\x78", b"\x1f")


def heads(rows: MailRows, mails: Sequence[StoredMail]) -> dict[int, bytes]:
    """The first `HEAD` octets, or some more, of those `mails`, by their ids. Raises StoreError.

    Without those that the table does not hold itself, and without large ones, or ones whose size
    it does not say: this is for lists, which are to come soon.
    """
    if not {"mail", "size"} <= rows.columns():
        return {}
    small = [mail for mail in mails if mail.size <= _MOST]
    sums = accumulate(mail.size for mail in small)
    chosen = [mail.mail_id for mail, octets in zip(small, sums, strict=True) if octets <= _IN_ALL]
    if not chosen:
        return {}
    found = rows.query(
        f"SELECT mail_id, {rows.names('mail_encoding')}, SUBSTR(`mail`, 1, {HEAD})"
        f" FROM `{rows.table}` WHERE mail_id IN ({rows.marks(chosen)})",
        *chosen,
    )
    return {
        mail_id: _plain(octets_of(head), text_of(encoding)) for mail_id, encoding, head in found
    }


def _plain(head: bytes, encoding: str) -> bytes:
    """What a mail begins with. Guerrilla SMTPd says elsewhere what it has compressed."""
    if encoding or head[:1] in _COMPRESSED:
        try:
            return zlib.decompressobj(_EITHER).decompress(head, HEAD)
        except zlib.error:
            pass
    return b"" if encoding else head
