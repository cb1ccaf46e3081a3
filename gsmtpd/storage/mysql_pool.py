"""Where is DBUtils, and which errors make it connect again?"""

from __future__ import annotations

import sys

import pymysql

try:
    from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped]
    from dbutils.steady_db import SteadyDBConnection  # type: ignore[import-untyped]
except ModuleNotFoundError:  # the Debian package brings it: Debian 12 has none
    sys.path.append(f"{sys.prefix}/share/gsmtpd/vendor")
    from dbutils.pooled_db import PooledDB
    from dbutils.steady_db import SteadyDBConnection

__all__ = ["FAILURES", "PooledDB", "SteadyDBConnection"]

FAILURES = (
    pymysql.err.OperationalError,
    pymysql.err.InterfaceError,
    pymysql.err.InternalError,
)
