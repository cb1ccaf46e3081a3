"""Sockets: accepting connections, and moving octets between them and SMTP sessions."""
