"""Acoustic pieces: SentencePiece over the cluster units of utterances (Ren et al. 2022, arXiv:2204.03240).

An utterance's labels are collapsed to their runs, `5 5 5 9 9 5` → `5 9 5`; frequent sequences of units become pieces; and
each frame gets the piece that its run belongs to. Units are written as private-use characters, one each.
"""

import io
import itertools

import numpy as np
import sentencepiece

from ..core.errors import InputError

_FIRST = 0xF0000  # plane 15 of Unicode is for private use: 65 534 characters
_OPTIONS = {
    "model_type": "bpe", "character_coverage": 1.0, "normalization_rule_name": "identity", "bos_id": -1, "eos_id": -1,
    "add_dummy_prefix": False, "remove_extra_whitespaces": False, "max_sentence_length": 1 << 30, "num_threads": 1, "minloglevel": 2,
    "split_by_unicode_script": False, "split_by_number": False, "split_by_whitespace": False,
}  # fmt: skip


def collapse(labels):
    """Runs of equal labels: (label of each run, length of each run)."""
    labels = np.asarray(labels)
    starts = np.flatnonzero(np.diff(labels, prepend=-1)) if len(labels) else np.zeros(0, dtype=np.int64)
    return labels[starts], np.diff(np.append(starts, len(labels)))


def _text(units):
    return "".join(map(chr, (np.asarray(units) + _FIRST).tolist()))


class AcousticPieces:
    """A vocabulary of pieces; `model`: bytes of a SentencePiece model, as `fit` makes them, `path`: where they come from, for messages."""

    def __init__(self, model, path="pieces.model"):
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"{path}: not a SentencePiece model; make it again") from error
        self._units = np.array([len(self._processor.id_to_piece(i)) for i in range(self._processor.get_piece_size())])

    @classmethod
    def fit(cls, lines, units, size):
        """Learn pieces by byte-pair encoding from `lines`, label arrays, one per utterance; the same labels give the same bytes. `size`:
        number of pieces, of which each of the `units` clusters, seen or not, is one. InputError: the labels do not have so many."""
        alphabet = (chr(_FIRST + unit) for unit in range(units))  # a sentence of its own for each: so all are known
        out = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.chain(alphabet, (_text(collapse(line)[0]) for line in lines if len(line))),
                model_writer=out,
                vocab_size=size + 1,  # and <unk>
                **_OPTIONS,
            )
        except RuntimeError as error:
            why = str(error).split(") ")[-1][:160]
            raise InputError(f"--pieces {size}: cannot be learned from these labels ({why}); ask for fewer") from error
        return cls(out.getvalue())

    def labels(self, labels):
        """The piece of each frame, from 0, for the labels of one utterance."""
        units, lengths = collapse(labels)
        ids = np.array(self._processor.encode_as_ids(_text(units)), dtype=np.int64)
        return np.repeat(np.repeat(ids - 1, self._units[ids]), lengths)
