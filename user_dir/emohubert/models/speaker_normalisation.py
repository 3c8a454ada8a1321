"""Speaker normalisation: the pooled vectors of every speaker are brought to zero mean and unit variance (Gat et al. 2022).

For speaker s with n unlabelled utterances x, whose mean is x̄, and for each dimension:

    μ_s  = (n x̄ + κ μ̄) / (n + κ)
    σ²_s = (Σ (x − x̄)² + κ σ̄²) / (n − 1 + κ)
    x'   = (x − μ_s) / σ_s

μ̄ is the mean of the training speakers' means, σ̄² the variance within training speakers. κ utterances of the average training speaker
are added to every speaker's: one utterance alone is normalised by the average speaker, and of many x' is the exact z-score. All
speakers are taken to show the same mixture of emotions: one who is always angry loses that.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..core.errors import InputError

PSEUDO_COUNT = 4.0


@dataclass(frozen=True)
class AverageSpeaker:
    """μ̄ (`mean`, (width)), σ̄² (`variance`, (width)) and κ (`pseudo_count`)."""

    mean: np.ndarray
    variance: np.ndarray
    pseudo_count: float = PSEUDO_COUNT

    @classmethod
    def of(cls, groups, pseudo_count=PSEUDO_COUNT):
        """From the pooled vectors of training speakers, arrays (utterances, width); InputError if none of them has two utterances."""
        groups = [np.asarray(x, dtype=np.float64) for x in groups if len(x)]
        if not (freedom := sum(len(x) - 1 for x in groups)):
            raise InputError("no training speaker has two utterances to normalise by; give the whole training split, with its speakers")
        variance = sum(((x - x.mean(0)) ** 2).sum(0) for x in groups) / freedom
        return cls(np.mean([x.mean(0) for x in groups], axis=0), variance, pseudo_count)

    def statistics(self, x):
        """(μ_s, σ_s), (width) each, of a speaker's vectors (n, width); σ_s is 1 where nothing varies."""
        own = x.mean(0, dtype=np.float64) if len(x) else self.mean
        return self.mixed(len(x), own, ((x - own) ** 2).sum(0))

    def mixed(self, n, own, squares):
        """(μ_s, σ_s) from n, x̄ (`own`) and Σ (x − x̄)² (`squares`)."""
        k = self.pseudo_count
        variance = (squares + k * self.variance) / max(max(n - 1, 0) + k, 1)
        return (n * own + k * self.mean) / max(n + k, 1), np.sqrt(np.where(variance > 0, variance, 1.0))

    def normalised(self, x, scaled_back=False):
        """x' (n, width) of a speaker's vectors; `scaled_back`: x' σ̄ + μ̄, for a head that was trained on vectors as they are."""
        mean, deviation = self.statistics(x)
        result = (x - mean) / deviation
        return result * np.sqrt(self.variance) + self.mean if scaled_back else result


class OnlineNormalisation:
    """A speaker whose utterances come one at a time: each is normalised by all so far, itself included."""

    def __init__(self, average):
        self.average, self.n = average, 0
        self.mean, self.squares = np.zeros((2, len(average.mean)))

    def add(self, x):
        """x' (width) of one more pooled vector."""
        self.n += 1
        change = x - self.mean
        self.mean = self.mean + change / self.n
        self.squares = self.squares + change * (x - self.mean)
        mean, deviation = self.average.mixed(self.n, self.mean, self.squares)
        return (x - mean) / deviation


class SpeakerNormalisation(nn.Module):
    """x' of pooled vectors (width), by a table of (μ_s, σ_s) that the task renews at the start of every epoch. Row 0 is the average training
    speaker, whose statistics a speaker without utterances gets; the others are the training speakers."""

    def __init__(self, width, n_speakers):
        super().__init__()
        self.register_buffer("table", torch.stack([torch.zeros(1 + n_speakers, width), torch.ones(1 + n_speakers, width)]))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))  # that the table is of: a resumed epoch keeps it
        self.others = None  # rows of other speakers, after those of the table

    def _apply(self, fn, recurse=True):
        """The table moves with the model, and stays in float32 where that goes to half precision."""
        table = self.table
        super()._apply(fn, recurse)
        self.table = table.to(self.table.device)
        return self

    def forward(self, x, rows=None):
        """x (batch, width), of the speakers in these rows of the table, (batch,); None: the average speaker."""
        table = self.table if self.others is None else torch.cat([self.table, self.others], dim=1)
        mean, deviation = table[:, :1] if rows is None else table[:, rows]
        return ((x.float() - mean.float()) / deviation.float()).to(x.dtype)

    def fit(self, groups, epoch):
        """Renew the table with the training speakers' vectors, arrays (utterances, width)."""
        average = AverageSpeaker.of(groups)
        nobody = np.empty((0, len(average.mean)))
        self.table.copy_(_stacked([average.statistics(x) for x in (nobody, *groups)]))
        self.epoch.fill_(epoch)

    def add(self, groups):
        """Put other speakers behind the table."""
        self.others = _stacked([self.average.statistics(x) for x in groups]).to(self.table)

    @property
    def average(self):
        """AverageSpeaker."""
        mean, deviation = self.table[:, 0].double().cpu().numpy()
        return AverageSpeaker(mean, deviation**2)


def _stacked(rows):
    """[(μ_s, σ_s), …] as a tensor (2, speakers, width)."""
    return torch.from_numpy(np.array(rows)).float().transpose(0, 1)
