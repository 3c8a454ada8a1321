"""Models: the encoder, speaker conditioning, pooling and heads."""

from ..core import quiet_fairseq  # noqa: F401 (first)
from . import emotion, hubert  # noqa: F401
