"""Models: the encoder, speaker conditioning, pooling and heads."""

from . import hubert  # noqa: F401
