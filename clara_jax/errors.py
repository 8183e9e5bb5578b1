"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake in an input: its message is one line that says what, where and how to mend it.

    The command line prints it alone and exits with code 2.
    """
