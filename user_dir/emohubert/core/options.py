"""Building blocks of configurations: options with a help text, and registries of the classes that an option can name."""

import argparse
import os
from dataclasses import field

from .errors import InputError


def option(default, help):
    """A field of a configuration's dataclass; a list is copied for each."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


class Registry(dict):
    """{name: class} of an option of the configuration, filled by the decorator `register`. Before an unknown name is an error, the user-dir
    of the environment variable EMOHUBERT_USER_DIR is imported for what it registers."""

    def __init__(self, option):
        self.option = option

    def register(self, name):
        """Class decorator: the class that the option's value `name` stands for."""
        if name in self:
            raise ValueError(f"{self.option}={name} is registered already")

        def add(cls):
            self[name] = cls
            return cls

        return add

    def __missing__(self, name):
        if folder := os.environ.get("EMOHUBERT_USER_DIR"):
            from fairseq.utils import import_user_module

            if not os.path.isdir(folder):
                raise InputError(f"EMOHUBERT_USER_DIR={folder}: no such folder; correct it, or unset it")
            import_user_module(argparse.Namespace(user_dir=folder))
        if name in self:
            return self[name]
        remedy = f"use one of {', '.join(self)}, or set EMOHUBERT_USER_DIR to the user-dir that registers it"
        raise InputError(f"{self.option}={name}: unknown; {remedy}")
