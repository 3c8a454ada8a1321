"""Shared by the tasks."""

import logging
import sys

import numpy as np
import torch
from fairseq.tasks import FairseqTask

from ..core.device import autocast
from ..core.errors import InputError
from ..corpus.audio import SAMPLE_RATE
from ..corpus.manifest import UNKNOWN_SPEAKER
from ..training import processes

logger = logging.getLogger(__name__)


class SpeechTask(FairseqTask):
    """A task whose input is audio and whose labels are its own: nothing is dropped by length, and there are no dictionaries."""

    label_names = label_folders = ()  # labels of whole utterances, and folders of frame labels, that are learned from
    precision = "float32"  # on a CPU (fairseq sees to a GPU's); "bf16" multiplies matrices in bf16 and keeps weights in float32
    source_dictionary = target_dictionary = None

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        """Make the task (fairseq calls this)."""
        return cls(cfg)

    def build_model(self, cfg, from_checkpoint=False):
        """fairseq's; InputError where a model cannot have these settings."""
        try:
            return super().build_model(cfg, from_checkpoint)
        except InputError:
            raise
        except (AssertionError, ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            text = (str(error).splitlines() or [""])[0]
            raise InputError(f"model: cannot be built with these settings ({type(error).__name__}: {text:.200}); correct them") from error

    def max_positions(self):
        """No limit: long utterances are cropped by the dataset."""
        return sys.maxsize

    def filter_indices_by_size(self, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
        """Nothing is dropped by length here."""
        return np.asarray(indices)

    def train_step(self, sample, *args, **kwargs):
        """fairseq's forward and backward pass, in `precision`."""
        with autocast(torch.device("cpu"), self.precision):
            return super().train_step(sample, *args, **kwargs)

    def get_batch_iterator(self, dataset, *args, num_shards=1, epoch=1, **options):
        """fairseq's iterator; what an update learns from depends neither on the number of processes nor on accumulation. Every batch is
        divided among processes and passes of `optimization.update_freq` (see `batching.divided`), and the parts are not shuffled."""
        update_freq = self.cfg.update_freq
        dataset.parts = num_shards * (update_freq[min(epoch, len(update_freq)) - 1] if dataset.training else 1)
        iterator = super().get_batch_iterator(dataset, *args, num_shards=num_shards, epoch=epoch, **options)
        iterator.disable_shuffling, iterator.shuffle = True, False
        return iterator

    @property
    def speakers(self):
        """Ids of the speaker table, in order; empty where the model has none."""
        return self.state.speakers

    def checked(self, dataset, split, what):
        """A dataset whose audio the first process has checked, where `task.check_audio` asks for it; its size and `what` are logged."""
        if self.cfg.check_audio and processes.is_first():
            dataset.check_audio()
        hours = dataset.split.n_samples[dataset.kept].sum() / SAMPLE_RATE / 3600
        logger.info("%s: %d utterances, %.2f hours, %s", split, len(dataset.kept), hours, what)
        return dataset


def speaker_rows(split, speakers, suffix, required):
    """Rows of the table of `speakers` for the utterances of a split: int64, 1 … n for known speakers, 0 for unknown ones; None without the
    `suffix` of a speaker sidecar. Where the table is `required` to hold all speakers (training), another one is an InputError, but for
    those that the corpus does not know (`<unk>` in the sidecar)."""
    if suffix is None:
        return None
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.{suffix}: no such file; make the manifest again, or set task.speakers=null")
    table = {speaker: row for row, speaker in enumerate(speakers, 1)}
    rows = np.array([table.get(s, 0) for s in split.speakers], dtype=np.int64)
    unknown = set(split.speakers) - set(table) - {UNKNOWN_SPEAKER}
    if unknown and required:
        first = split.speakers.index(min(unknown))
        what = f"the speaker “{split.speakers[first]}” is not in {split.directory}/dict.{suffix}.txt ({len(unknown)} such speakers)"
        raise InputError(f"{split.where(first, suffix)}: {what}; add it there or make the manifest again")
    if unknown:
        n = len(set(split.speakers))
        logger.info("%s: %d of %d speakers are not in the table and represented by the unknown speaker", split.name, len(unknown), n)
    return rows
