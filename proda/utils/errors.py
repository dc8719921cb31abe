"""Errors that a user can fix: one clear line instead of a traceback."""


class UserError(ValueError):
    """A flag, file or folder that cannot be used; the message is one line: which one, what was found and expected.

    The launcher prints the line and exits with status 2; every other exception keeps its traceback.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A required file or folder is missing."""
