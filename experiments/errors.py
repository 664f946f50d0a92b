"""What a user can put right, told without a traceback."""


class UserError(Exception):
    """A wrong option, file or folder; the message says which, and what would be right."""
