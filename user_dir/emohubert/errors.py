"""The one error that bad input raises."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: the file (and line), the value found, and the remedy. Command-line programs print it as
    `error: …` and exit with status 2; inside Python it is an ordinary ValueError.
    """
