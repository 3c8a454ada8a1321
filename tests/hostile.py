"""What a file from outside could do to whoever unpickles it."""

import os
import shlex


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)
