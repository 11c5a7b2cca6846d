"""The one exception meant for the user's eyes.

Raised wherever input from outside (a file, a setting, a cache) is not what it must be. Its message is one line that says
what was given, what is allowed and what to type; entry scripts print it without a traceback and exit with code 2.
"""


class UserError(Exception):
    """A mistake the user can mend; `str(error)` is the whole explanation."""
