"""fairseq tasks."""

from . import emotion_finetuning, speaker_hubert_pretraining  # noqa: F401
