"""The one exception for what a user can cause and repair."""


class UserError(ValueError):
    """Bad input: the message names the place, what was given, what is allowed, and the remedy.

    Recipes and commands print it without a traceback and leave with exit code 2.
    """
