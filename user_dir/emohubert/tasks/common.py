"""What the tasks share."""

import logging
import sys

import numpy as np
from fairseq.tasks import FairseqTask

from ..core.errors import InputError
from ..corpus.manifest import UNKNOWN_SPEAKER

logger = logging.getLogger(__name__)


class SpeechTask(FairseqTask):
    """A task whose input is audio and whose labels are its own: nothing is dropped by length, and there are no dictionaries."""

    def max_positions(self):
        """No limit: long utterances are cropped by the dataset."""
        return sys.maxsize

    def filter_indices_by_size(self, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
        """Nothing is dropped by length here."""
        return np.asarray(indices)

    def get_batch_iterator(self, dataset, *args, num_shards=1, epoch=1, **options):
        """fairseq's iterator; what an update learns from depends neither on the number of processes nor on accumulation.

        Every batch is divided among processes and passes of `optimization.update_freq` (see `batching.divided`) and the parts stay
        together; fairseq would shuffle them, and by their number.
        """
        update_freq = self.cfg.update_freq
        passes = update_freq[min(epoch, len(update_freq)) - 1] if dataset.training else 1
        dataset.parts = num_shards * passes
        iterator = super().get_batch_iterator(dataset, *args, num_shards=num_shards, epoch=epoch, **options)
        iterator.disable_shuffling, iterator.shuffle = True, False
        return iterator

    @property
    def label_names(self):
        """Names of the labels of whole utterances that are learned from; empty where there are none."""
        return []

    @property
    def label_folders(self):
        """Folders of the frame labels that are learned from; empty where there are none."""
        return []

    @property
    def source_dictionary(self):
        """None: the input is audio."""
        return None

    @property
    def target_dictionary(self):
        """None: labels are kept in the task's state."""
        return None


def speaker_rows(split, speakers, suffix, required):
    """Rows of the speaker table for the utterances of a split: 1 … n for known speakers, 0 for unknown ones.

    Args:
        split: a `manifest.Split`.
        speakers: ids of the table, in order.
        suffix: of the speaker sidecar; None: no speakers.
        required: whether an unknown speaker is an error (training) or is heard as the unknown speaker (elsewhere).

    Returns:
        int64 array, or None without speakers.

    Raises:
        InputError: the sidecar is missing, or a training speaker is not in the dictionary. Utterances whose speaker the
            corpus does not know (`<unk>` in the sidecar) are heard as the unknown speaker everywhere.
    """
    if suffix is None:
        return None
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.{suffix}: no such file; make the manifest again, or set task.speakers=null")
    table = {speaker: row for row, speaker in enumerate(speakers, 1)}
    rows = np.array([table.get(s, 0) for s in split.speakers], dtype=np.int64)
    unknown = sorted({s for s, row in zip(split.speakers, rows, strict=True) if row == 0} - {UNKNOWN_SPEAKER})
    if unknown and required:
        first = split.speakers.index(unknown[0])
        raise InputError(
            f"{split.where(first, suffix)}: the speaker “{split.speakers[first]}” is not in {split.directory}/dict.{suffix}.txt "
            f"({len(unknown)} such speakers); add it there or make the manifest again"
        )
    if unknown:
        logger.info(
            "%s: %d of %d speakers are not in the table and heard as the unknown speaker",
            split.name,
            len(unknown),
            len(set(split.speakers)),
        )
    return rows
