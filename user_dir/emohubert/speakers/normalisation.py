"""Speaker normalisation: the pooled vectors of every speaker are brought to the same mean and variance (Gat et al. 2022).

For speaker s with n unlabelled utterances x, whose mean is x̄, and for each dimension:

    μ_s  = (n x̄ + κ μ̄) / (n + κ)
    σ²_s = (Σ (x − x̄)² + κ σ̄²) / (n − 1 + κ)
    x'   = (x − μ_s) / σ_s · σ̄ + μ̄

μ̄ is the mean of the training speakers' means, σ̄² the variance within training speakers. κ utterances of the average training speaker
are added to every speaker's: with one utterance little changes, with many x' is the exact z-score. It is scaled back by σ̄ and μ̄, so
that a head that was trained on vectors as they are can read it. All speakers are taken to show the same mixture of emotions: a speaker
who is always angry loses that.
"""

from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..corpus.manifest import UNKNOWN_SPEAKER
from .calibration_files import members, with_values

PSEUDO_COUNT = 4.0


@dataclass(frozen=True)
class SpeakerNormalisation:
    """μ̄ (`mean`, (width)), σ̄² (`variance`, (width)) and κ (`pseudo_count`)."""

    mean: np.ndarray
    variance: np.ndarray
    pseudo_count: float = PSEUDO_COUNT

    @classmethod
    def fit(cls, speakers, vectors, pseudo_count=PSEUDO_COUNT):
        """From training utterances: n speaker ids, vectors (n, width). Utterances of the unknown speaker are left out.

        Raises:
            InputError: no speaker has two utterances.
        """
        groups = [vectors[rows].astype(np.float64) for name, rows in members(speakers).items() if name != UNKNOWN_SPEAKER]
        freedom = sum(len(x) - 1 for x in groups)
        if not freedom:
            raise InputError("no training speaker has two utterances to normalise by; give the embeddings of the whole training split")
        variance = sum(((x - x.mean(0)) ** 2).sum(0) for x in groups) / freedom
        return cls(np.mean([x.mean(0) for x in groups], axis=0), variance, pseudo_count)

    def apply(self, speakers, vectors):
        """Normalised vectors (n, width) of n speakers, each by all of its utterances; the unknown speaker's stay as they are."""
        result = vectors.astype(np.float64)
        for name, rows in members(speakers).items():
            if name != UNKNOWN_SPEAKER:
                result[rows] = self.of_speaker(result[rows])
        return result

    def of_speaker(self, x):
        """Normalised vectors of one speaker's utterances, (n, width)."""
        n, k, own = len(x), self.pseudo_count, x.mean(0)
        mean = (n * own + k * self.mean) / (n + k)
        variance = (((x - own) ** 2).sum(0) + k * self.variance) / max(n - 1 + k, 1)
        scale = np.sqrt(np.divide(self.variance, variance, out=np.zeros_like(variance), where=variance > 0))
        return (x - mean) * scale + self.mean


def normalised(task, model, predictions, embeddings, training):
    """Predictions by a fine-tuned model's head from normalised pooled vectors.

    Args:
        task, model: from `load_trained`.
        predictions: whose values are replaced.
        embeddings: (n, width) their pooled vectors.
        training: Embeddings of the model's training split.

    Raises:
        InputError: the head is conditioned on speakers, or `training` is of another width.
    """
    import torch

    if model.speaker_at_head is not None:
        raise InputError(f"model.head_speaker={model.cfg.head_speaker}: the head knows the speaker itself; leave out the normalisation")
    if training.values.shape[1] != embeddings.shape[1]:
        raise InputError(
            f"training embeddings of width {training.values.shape[1]}, the checkpoint's have {embeddings.shape[1]}; "
            "make them with tools/evaluate.py --embeddings from this checkpoint"
        )
    vectors = SpeakerNormalisation.fit(training.speakers, training.values).apply(predictions.speakers, embeddings)
    parameter = next(model.head.parameters())
    with torch.inference_mode():
        output = model.head(torch.from_numpy(vectors).to(parameter))["output"].double()
        return with_values(predictions, (output.softmax(dim=1) if task.classes else output).cpu().numpy())
