"""The one exception that is shown to users.

Raised wherever input from outside (a file, a setting, a cache) is not what it must be. Its message is one line that says
what was given, what is allowed and what to type; entry scripts print it without a traceback and exit with code 2.
"""


class UserError(Exception):
    """A mistake that the user can correct; `str(error)` is the whole explanation."""
