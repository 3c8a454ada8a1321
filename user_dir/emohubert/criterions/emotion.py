"""Criterions for whole utterances: cross-entropy or a contrastive loss for classes, 1 − CCC for dimensions.

Logging outputs are sums over utterances: fairseq adds up those of batches and processes, and `evaluation.metrics` turns the totals
into UA or CCC of the whole epoch, which are never averages over batches.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging.metrics import log_derived, log_scalar, log_scalar_sum
from torch import distributed
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.options import option
from ..evaluation import metrics


class _OfUtterances(FairseqCriterion):
    """A criterion whose logging outputs hold `sums` over utterances, (anything,), of which `scores` are functions."""

    @classmethod
    def reduce_metrics(cls, logging_outputs):
        """Log the loss per utterance (cross-entropy: nats), and each of `scores`, {name: function of the epoch's sums}."""
        total = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
        n = max(total["sample_size"], 1)
        log_scalar("loss", float(total["loss"]) / n, n, round=4)
        size = total["sums"].numel()
        for i, value in enumerate(total["sums"].tolist()):
            log_scalar_sum(f"_sum_{i}", value)
        for name, score in cls.scores(size).items():
            log_derived(name, lambda meters, score=score: round(float(score(np.array([meters[f"_sum_{i}"].sum for i in range(size)]))), 4))

    @staticmethod
    def logging_outputs_can_be_summed():
        """Yes: every entry is a sum."""
        return True


def _log(loss, sums, sample):
    """The logging output of a batch."""
    counts = {"sample_size": len(sample["target"]), "ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
    return {"loss": loss.detach().double(), "sums": sums, **counts}


class _OfClasses(_OfUtterances):
    """A criterion of utterances with classes: the sums are the confusion matrix."""

    @classmethod
    def scores(cls, size):
        """UA, WA and macro F1."""
        classes = math.isqrt(size)
        keys = {"ua": "UA", "wa": "WA", "macro_f1": "macro_f1"}
        return {name: lambda sums, key=key: metrics.confusion_scores(sums.reshape(classes, classes))[key] for name, key in keys.items()}


def confusion(output, target):
    """Counts of (reference, decision), flat (classes²,). output: (batch, classes) logits, target: (batch,), -1: no reference."""
    output, target = output[target >= 0], target[target >= 0]
    counts = torch.zeros(output.size(1) ** 2, dtype=torch.double, device=output.device)
    return counts.index_add_(0, target * output.size(1) + output.argmax(dim=1), torch.ones_like(target, dtype=torch.double))


@dataclass
class EmotionClassificationConfig(FairseqDataclass):
    """Options of the cross-entropy."""

    class_weights: ChoiceEnum(("none", "balanced")) = option("none", "balanced: classes weighted by 1 / training count (mean weight 1)")
    label_smoothing: float = option(0.0, "of the cross-entropy")
    soft_labels: bool = option(False, "learn the shares of the annotators' votes (.votes), also where they chose no class")
    focal_gamma: float = option(0.0, "γ of the focal loss (1 − q)^γ: above 0, what is learned already counts less")
    logit_adjustment: float = option(0.0, "τ: the loss sees logits + τ log(training shares of the classes), the decision does not")
    frame_weight: float = option(0.0, "weight of the cross-entropy of every frame with its utterance's class (needs model.frame_head)")


@register_criterion("emotion_classification", dataclass=EmotionClassificationConfig)
class EmotionClassification(_OfClasses):
    """Cross-entropy, summed over utterances; logs UA, WA and macro F1 of the whole epoch. With `soft_labels` that of the annotators' shares p,
    which is their Kullback–Leibler divergence from the model's probabilities q, but for a constant. With γ = `focal_gamma` it is the focal
    loss (Lin et al. 2017, without α: that is `class_weights`); with τ = `logit_adjustment` the logits are adjusted (Menon et al. 2021, eq. 10)."""

    def __init__(
        self, task, class_weights="none", label_smoothing=0.0, soft_labels=False, focal_gamma=0.0, logit_adjustment=0.0, frame_weight=0.0
    ):
        super().__init__(task)
        for name, value in (("focal_gamma", focal_gamma), ("logit_adjustment", logit_adjustment)):
            if not 0 <= value < math.inf:
                raise InputError(f"criterion.{name}={value}: give a number from 0 on; 0 leaves the cross-entropy as it is")
        self.label_smoothing, self.soft_labels, self.frame_weight = label_smoothing, soft_labels, frame_weight
        self.focal_gamma = focal_gamma
        weights = adjustment = None
        if str(class_weights) == "balanced" or logit_adjustment:
            counts = torch.tensor(task.state.class_counts, dtype=torch.float).clamp(min=1)
            weights = counts.mean() / counts if str(class_weights) == "balanced" else None
            adjustment = logit_adjustment * (counts / counts.sum()).log() if logit_adjustment else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("adjustment", adjustment, persistent=False)

    def forward(self, model, sample, reduce=True):
        """Returns (loss, utterances, logging output)."""
        found, target = model(**sample["net_input"]), sample["target"]
        output = found["output"].float()  # (batch, classes)
        labels = sample["shares"].float() if self.soft_labels else target
        loss = self._cross_entropy(output, labels).sum()
        if self.frame_weight > 0:
            loss = loss + self.frame_weight * self._of_frames(found, labels).sum()
        return loss, len(target), _log(loss, confusion(output, target), sample)

    def _cross_entropy(self, output, target):
        """−Σ_c w_c p_c (1 − q_c)^γ log q_c, (n,), of logits (n, classes) and classes (n,) or shares p (n, classes)."""
        if self.adjustment is not None:
            output = output + self.adjustment
        if self.focal_gamma == 0:
            return F.cross_entropy(output, target, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none")
        p = F.one_hot(target, output.size(1)) if target.ndim == 1 else target
        p = (1 - self.label_smoothing) * p + self.label_smoothing / output.size(1)
        log_q = output.log_softmax(dim=1)
        focused = (1 - log_q.exp()).clamp(min=1e-6) ** self.focal_gamma * log_q  # at 0 the gradient of a power below 1 is infinite
        return -(p * focused * (1 if self.class_weights is None else self.class_weights)).sum(dim=1)

    def _of_frames(self, found, target):
        """Mean cross-entropy over each utterance's frames, all of its class (Chen & Rudnicky 2023, section 3.2): (batch,)."""
        if "frame_output" not in found:
            raise InputError(f"criterion.frame_weight={self.frame_weight} needs model.frame_head=true; set it, or frame_weight=0")
        valid = found["valid"]
        frames = self._cross_entropy(found["frame_output"].float()[valid], target.repeat_interleave(valid.sum(dim=1), dim=0))
        return torch.zeros_like(valid, dtype=torch.float).masked_scatter(valid, frames).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


@register_criterion("emotion_contrastive", dataclass=FairseqDataclass)
class EmotionContrastive(_OfClasses):
    """Supervised contrastive loss (Khosla et al. 2020, L_out) over the batch on all processes, and the classes' read-out. The model needs
    `head=contrastive`, whose centroids follow the training batches. An utterance that is alone of its class in a batch is an anchor for nothing."""

    def forward(self, model, sample, reduce=True):
        """Returns (loss × utterances, utterances, logging output); fairseq divides by the utterances of all processes."""
        found, target = model(**sample["net_input"]), sample["target"]
        if "projection" not in found:
            raise InputError("emotion_contrastive needs model.head=contrastive; set it, or choose another criterion")
        head = model.head
        points, classes = gather(found["projection"], self), gather(target, self)
        if model.training:
            head.follow(points.detach(), classes)
        loss = supervised_contrastive(points, classes, head.temperature) + 0.0 * found["projection"].sum()  # a gradient for all
        return loss * len(classes), len(target), _log(loss * len(target), confusion(found["output"], target), sample)


def supervised_contrastive(points, target, temperature):
    """L = mean over anchors i of −1/|P(i)| Σ_{p ∈ P(i)} log(exp(z_i·z_p/τ) / Σ_{a ≠ i} exp(z_i·z_a/τ)), Khosla et al. 2020, eq. 2.
    z: points (n, size), of length 1; P(i): the others of i's class. Anchors without one are left out; without any, L is 0."""
    others = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    positive = (target.unsqueeze(0) == target.unsqueeze(1)) & others
    similarity = (points @ points.T / temperature).masked_fill(~others, -1e9)  # not −∞: a lone utterance has a gradient too
    log_probability = similarity - similarity.logsumexp(dim=1, keepdim=True)
    counts = positive.sum(dim=1)
    of_anchors = -log_probability.masked_fill(~positive, 0).sum(dim=1) / counts.clamp(min=1)
    return of_anchors.sum() / (counts > 0).sum().clamp(min=1)


@register_criterion("emotion_regression", dataclass=FairseqDataclass)
class EmotionRegression(_OfUtterances):
    """1 − CCC (Lin 1989), averaged over the dimensions, over all utterances of the batch on all processes. CCC is not a sum over
    utterances, so the processes exchange their predictions: the loss and its gradient are those of one process with the whole batch. Under
    gradient accumulation every accumulated batch has its own CCC. The sums are the moments of each dimension."""

    names = ()

    def __init__(self, task):
        super().__init__(task)
        type(self).names = tuple(task.dimensions)  # fairseq reduces metrics without the instance

    def forward(self, model, sample, reduce=True):
        """Returns (loss × utterances, utterances, logging output); fairseq divides by the utterances of all processes."""
        output = model(**sample["net_input"])["output"].float()  # (batch, dimensions)
        target = sample["target"].float()
        gathered, references = gather(output, self), gather(target, self)
        loss = (1 - ccc(gathered, references)).mean() + 0.0 * output.sum()  # a gradient for every process
        x, y = target.double(), output.detach().double()
        sums = torch.stack([v.sum(dim=0) for v in (torch.ones_like(x), x, y, x * x, y * y, x * y)], dim=1)  # (dimensions, 6)
        return loss * len(references), len(target), _log(loss * len(target), sums.flatten(), sample)

    @classmethod
    def scores(cls, size):
        """The CCC of every dimension, and their mean."""
        rows = {"ccc": slice(None), **{f"ccc_{name}": row for row, name in enumerate(cls.names)}}
        return {name: lambda sums, row=row: metrics.moment_scores(sums.reshape(-1, 6)[row])["ccc"].mean() for name, row in rows.items()}


def ccc(x, y):
    """Concordance correlation coefficient, differentiable, equal to `metrics.ccc`, but 0 where nothing varies: (n, dimensions) → (dimensions,)."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    covariance = ((x - mean_x) * (y - mean_y)).mean(dim=0)
    spread = x.var(dim=0, correction=0) + y.var(dim=0, correction=0) + (mean_x - mean_y).pow(2)
    return 2 * covariance / spread.clamp(min=1e-12)


def gather(x, criterion):
    """Rows of all processes, in rank order: (n, …), n may differ between them; the gradient flows to this process's own. Where the
    criterion `stands_in`, this process has no batch of its own, and x, of another batch, counts for nothing."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x
    if getattr(criterion, "stands_in", False):
        x = x[:0]
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    padded = torch.cat([x.detach(), x.new_zeros(int(max(sizes)) - len(x), *x.shape[1:])])
    parts = [torch.zeros_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    parts = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
    parts[distributed.get_rank()] = x
    return torch.cat(parts)
