"""The ``rsdmri`` command: each command parses its options and calls one workflow.

Heavy imports stay inside the commands, so that ``rsdmri --help`` answers at once.
"""

import sys
from typing import NoReturn

from rsdmri.cli import ablations, images, priors, scans
from rsdmri.cli.app import app
from rsdmri.errors import InputError, StoppedElsewhereError
from rsdmri.runtime import process_rank

__all__ = ["ablations", "app", "images", "main", "priors", "scans"]


def main() -> NoReturn:
    """Entry point: one line on standard error, exit code 2 for bad input and 75 for a full disk."""
    try:
        app()
    except StoppedElsewhereError:
        sys.exit(2)
    except InputError as error:
        where = "; ".join(getattr(error, "__notes__", ())[:1])  # of several processes: what all meet is said once
        if where or process_rank() == 0:
            sys.stderr.write(f"rsdmri: {' '.join(str(error).split())}{where and f' ({where})'}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("rsdmri: stopped\n")
        sys.exit(130)
    sys.exit(0)
