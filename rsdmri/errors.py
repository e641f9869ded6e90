"""Errors that a user can act on."""


class InputError(ValueError):
    """A file, option or value from outside that cannot be used.

    The message is one line: it names the file or option, says what is wrong and what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """


class StoppedElsewhereError(InputError):
    """Another process of this training stopped, and says why itself: the command line adds nothing."""
