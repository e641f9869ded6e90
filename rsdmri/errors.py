"""Errors that a user can act on."""


class InputError(ValueError):
    """A file, option or value from outside that cannot be used.

    The message is one line: it names the file or option, says what is wrong and what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """
