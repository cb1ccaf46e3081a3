"""gsmtpd receives mail over SMTP and keeps it in MySQL, MariaDB or SQLite."""

__version__ = "0.1.0"
