"""Training criterions."""

from . import emotion, masked_prediction  # noqa: F401
