"""Importing this imports fairseq without letting it set up the root logger, which is the program's business."""

import logging

_root = logging.getLogger()
_before = _root.level, _root.handlers[:]
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.ERROR)  # asks for tensorboardX, which nothing here needs

import fairseq.models  # noqa: E402
import fairseq.tasks  # noqa: E402, F401

_root.setLevel(_before[0])
_root.handlers[:] = _before[1]
