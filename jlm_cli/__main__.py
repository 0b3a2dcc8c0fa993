"""`jlm` and `python -m jlm_cli`: deaf to nothing while the rest is loaded."""

import os
import sys
from contextlib import suppress

from jlm_cli import signals


def main() -> None:
    signals.leave_at_once()
    _fill_closed_streams()
    from jlm_cli.cli import main as command_line

    command_line()


def _fill_closed_streams() -> None:
    """`2>&-`: else the next file that is opened would take the place of standard error."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as we run


if __name__ == "__main__":
    main()
