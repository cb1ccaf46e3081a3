"""`python3 -m gsmtpd` is the command gsmtpd."""

import sys

from gsmtpd.cli import main

sys.exit(main())
