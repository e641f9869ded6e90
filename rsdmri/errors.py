"""Errors that a user can act on."""


class InputError(ValueError):
    """A file, option or value from outside that cannot be used.

    The message is one line: it names the file or option, says what is wrong and what to do about it.
    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class DiskFullError(InputError):
    """Nothing more can be written; the same command goes on once there is space."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class StoppedElsewhereError(InputError):
    """Another process of this training stopped, and says why itself: the command line adds nothing."""


class Interrupted(BaseException):  # like KeyboardInterrupt: nothing that handles errors may swallow it
    """Work was asked to stop; what was done is saved."""
