"""Builds and installs gsmtpd; the metadata stands here and nowhere else."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def files(pattern: str) -> list[str]:
    """Paths as setuptools wants them: relative to here."""
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))


setup(
    name="gsmtpd",
    version=re.search(r'__version__ = "(.+)"', (HERE / "gsmtpd/__init__.py").read_text())[1],
    description="Receives large volumes of mail over SMTP and keeps it in MySQL, MariaDB or SQLite",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["gsmtpd", "gsmtpd.*"]),
    package_data={
        "gsmtpd": ["*.configspec"],
        "gsmtpd.status": ["page/*", "*.json"],
        "gsmtpd.storage.schema": ["*/*.sql"],
    },
    install_requires=[
        "configobj>=5.0.6",
        "DBUtils>=3.0",
        "PyMySQL[rsa]>=1.0.2",  # with rsa for the passwords of MySQL 8, which it encrypts
        "python-daemon>=2.3",
    ],
    extras_require={
        "bench": ["matplotlib>=3.6"],  # of scripts/bench --plot
        "dnsbl": ["dnspython>=2.3"],
        "html": ["lxml>=4.9"],
        "memcached": ["pymemcache>=3.5"],
        "progress": ["tqdm>=4.64"],  # of gsmtpctl on a terminal
        "redis": ["redis>=4.3"],
        "status": ["aiohttp>=3.8.4", "prometheus_client>=0.16"],
        "test": [
            "aiohttp==3.14.5",
            "aiosmtpd==1.4.6",
            "dnspython==2.9.2",
            "hypothesis==6.170.15",
            "lxml==6.1.3",
            "mypy==2.4.1",
            "prometheus_client==0.26.0",
            "pymemcache==4.0.0",
            "pyte==0.8.2",
            "pytest==9.2.0",
            "pytest-timeout==2.4.0",
            "pytest-xdist==3.8.0",  # tests that wait do so side by side: half of the time
            "redis==8.1.0",
            "ruff==0.17.6",
            "schemathesis==4.32.5",
            "selenium==4.51.0",  # drives Chromium
            "tqdm==4.70.1",
            "types-PyMySQL==1.2.0.20260923",
        ],
    },
    data_files=[  # below the prefix: of a virtual environment, of /usr/local, of /usr
        ("share/man/man5", files("man/*.5")),
        ("share/man/man8", files("man/*.8")),
        ("share/doc/gsmtpd/examples", ["etc/gsmtpd.conf", *files("etc/examples/*")]),
        ("share/doc/gsmtpd/contrib", ["contrib/README.md"]),
        ("share/doc/gsmtpd/contrib/grafana", files("contrib/grafana/*")),
        ("share/doc/gsmtpd/contrib/prometheus", files("contrib/prometheus/*")),
    ],
    entry_points={
        "console_scripts": [
            "gsmtpd = gsmtpd.__main__:main",
            "gsmtpctl = gsmtpd.ctl:main",
            "gsmtpd-faultlab = gsmtpd.faultlab.cli:main",
        ],
        "pytest11": ["gsmtpd = gsmtpd.testing_plugin"],
    },
)
