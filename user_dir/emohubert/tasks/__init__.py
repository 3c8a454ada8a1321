"""fairseq tasks. Importing this registers everything of emohubert with fairseq, and patches fairseq for current PyTorch."""

from ..core import quiet_fairseq  # noqa: F401, I001 (first)
from .. import criterions, models  # noqa: F401
from ..training import fairseq_patches, schedule  # noqa: F401
from . import emotion_finetuning, speaker_hubert_pretraining  # noqa: F401

fairseq_patches.apply()
