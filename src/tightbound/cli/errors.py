"""What ends a command with exit code 2."""


class UsageError(Exception):
    """The command, MODEL.py or the data cannot be used; the message is all that the user reads."""


__all__ = ["UsageError"]
