"""emohubert: speech emotion recognition with HuBERT, as a fairseq plug-in.

Importing it registers the tasks, models and criterions with fairseq and makes fairseq's checkpoints load on today's torch.
"""

import logging

_root = logging.getLogger()
_before = _root.level, _root.handlers[:]
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.ERROR)  # asks for tensorboardX, which nothing here needs

from .training import patches  # noqa: E402

patches.apply()

from . import criterions, models, tasks  # noqa: E402, F401

_root.setLevel(_before[0])  # importing fairseq sets up the root logger, which is the program's business
_root.handlers[:] = _before[1]

__version__ = "0.1.0"
