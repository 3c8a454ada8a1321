"""Models: the encoder, speaker conditioning, pooling and heads."""

from . import emotion, hubert  # noqa: F401
