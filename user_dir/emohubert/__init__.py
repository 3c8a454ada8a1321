"""emohubert: speech emotion recognition with HuBERT, as a fairseq plug-in.

Importing it registers the tasks, models and criterions with fairseq and makes fairseq's checkpoints load on today's torch.
"""

from . import fairseq_fixes

fairseq_fixes.apply()

from . import criterions, models, tasks  # noqa: E402, F401

__version__ = "0.1.0"
