"""Training criterions."""

from . import masked_prediction  # noqa: F401
