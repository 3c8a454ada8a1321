"""Importing this imports fairseq quietly and without scikit-learn: tasks for text that nobody uses here take a second to import it."""

import logging
import sys
import types

_WITH_SKLEARN = [
    "fairseq.criterions.sentence_prediction",
    "fairseq.criterions.sentence_prediction_adapters",
    "fairseq.tasks.audio_classification",
]
_root = logging.getLogger()
_before = _root.level, _root.handlers[:]
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.ERROR)  # asks for tensorboardX, which nothing here needs

_stand_ins = {} if "fairseq" in sys.modules else {name: types.ModuleType(name) for name in _WITH_SKLEARN}
sys.modules.update(_stand_ins)

import fairseq.models  # noqa: E402
import fairseq.tasks  # noqa: E402, F401

for _name in _stand_ins:
    del sys.modules[_name]  # whoever asks for one of them gets fairseq's own

_root.setLevel(_before[0])  # setting it up is the program's business
_root.handlers[:] = _before[1]
