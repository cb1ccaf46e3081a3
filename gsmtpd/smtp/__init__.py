"""The SMTP protocol as a pure machine: bytes in, replies and events out; no socket, no clock."""
