"""What runs when gsmtpd is called by its name, or as `python3 -m gsmtpd`?"""

import gc
import sys


def main() -> int:
    """The command gsmtpd; returns the exit code.

    Nothing that is imported is garbage, so none is looked for meanwhile, nor in it later.
    """
    gc.disable()
    from gsmtpd import cli

    gc.freeze()
    gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
