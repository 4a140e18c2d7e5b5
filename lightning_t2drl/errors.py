"""The exception for a user's mistake, and the one for NaN."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can correct: a key, a value, a file.

    The message is one line that names the key or file and what would be right. Entry points print it
    without a traceback and exit with status 1.
    """


class NonFiniteError(RuntimeError):
    """NaN or infinity, so that training cannot go on; the message names the quantity in which it arose."""
