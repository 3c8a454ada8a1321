"""fairseq tasks."""

from . import speaker_hubert_pretraining  # noqa: F401
