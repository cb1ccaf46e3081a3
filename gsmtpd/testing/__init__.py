"""How does one test a program that sends mail? With a real server; docs/testing.md tells how."""

from gsmtpd.testing.inbox import Envelope, NoMailError, ReceivedMessage
from gsmtpd.testing.server import TestServer

__all__ = ["Envelope", "NoMailError", "ReceivedMessage", "TestServer"]
