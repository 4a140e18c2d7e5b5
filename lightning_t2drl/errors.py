"""The one exception a user's mistake raises, and how an entry point shows it."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: a key, a value, a file.

    The message is one line that names the key or file and what would be right. Entry points print it
    without a traceback and exit with status 1.
    """


class NonFiniteError(RuntimeError):
    """NaN or infinity where training cannot go on; the message names the quantity it arose in."""
