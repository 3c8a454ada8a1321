"""Models with random weights: a HuBERT as fairseq's own training saves it, and an emotion model as ours would."""

import torch
from scripts import load

from emohubert.tasks.trained import untrained_state

write_random_hubert = load("tools/bench_labels.py").write_random_hubert


def write_checkpoint(path, init_from, **options):
    """Write a checkpoint of the task emotion_finetuning, of `untrained_state`; returns its path."""
    torch.save(untrained_state(init_from, **options), path)
    return path
