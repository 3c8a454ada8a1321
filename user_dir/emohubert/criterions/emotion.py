"""Criterions for whole utterances: cross-entropy or a contrastive loss for classes, 1 − CCC for dimensions, or several of these together.

Logging outputs are sums over utterances: fairseq adds up those of batches and processes, and `evaluation.metrics` turns the totals
into UA or CCC of the whole epoch, which are never averages over batches.
"""

import math
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging.metrics import log_derived, log_scalar, log_scalar_sum
from omegaconf import ListConfig
from torch import distributed, nn
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.options import option
from ..evaluation import metrics
from ..models.heads import DIMENSIONS


class _OfUtterances(FairseqCriterion):
    """A criterion whose logging outputs hold `sums` over the utterances of each corpus, (corpora × anything,), of which `scores` are functions."""

    several = False  # whether it can learn several targets
    corpora = ()  # names, of a training on several

    def __init__(self, task):
        super().__init__(task)
        type(self).corpora = tuple(getattr(task, "corpora", ()))  # fairseq reduces metrics without the instance

    @classmethod
    def reduce_metrics(cls, logging_outputs):
        """Log the losses per utterance (cross-entropy: nats), and each of `scores`, {name: function of the epoch's sums}, of all utterances
        and of each of several corpora."""
        total = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
        n = max(total["sample_size"], 1)
        for name in (key for key in total if key.startswith("loss")):
            log_scalar(name, float(total[name]) / n, n, round=4)
        size, corpora = total["sums"].numel(), max(len(cls.corpora), 1)
        for i, value in enumerate(total["sums"].tolist()):
            log_scalar_sum(f"_sum_{i}", value)

        def derived(score, rows, meters):
            sums = np.array([meters[f"_sum_{i}"].sum for i in range(size)]).reshape(corpora, -1)
            return round(float(score(sums[rows].sum(axis=0))), 4)

        for ending, rows in {"": slice(None), **{f"_in_{name}": [row] for row, name in enumerate(cls.corpora)}}.items():
            for name, score in cls.scores(size // corpora).items():
                log_derived(name + ending, partial(derived, score, rows))

    @staticmethod
    def logging_outputs_can_be_summed():
        """Yes: every entry is a sum."""
        return True


def _log(loss, sums_of, sample, **losses):
    """The logging output of a batch; `sums_of` a choice of its utterances, their rows."""
    counts = {"sample_size": len(sample["target"]), "ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
    corpora = sample["corpora"].T if "corpora" in sample else [slice(None)]
    losses = {name: value.detach().double() for name, value in {"loss": loss, **losses}.items()}
    return {**losses, "sums": torch.cat([sums_of(rows) for rows in corpora]), **counts}


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
        # no buffers: fairseq would bring them to half precision, where the logits are in float32
        self.class_weights = self.adjustment = None
        if str(class_weights) == "balanced" or logit_adjustment:
            counts = torch.tensor(task.state.class_counts, dtype=torch.float).clamp(min=1)
            self.class_weights = counts.mean() / counts if str(class_weights) == "balanced" else None
            self.adjustment = logit_adjustment * (counts / counts.sum()).log() if logit_adjustment else None

    def forward(self, model, sample, reduce=True):
        """Returns (loss, utterances, logging output)."""
        found, target = model(**sample["net_input"]), sample["target"]
        loss = self.loss(found, sample["shares"].float() if self.soft_labels else target)
        return loss, len(target), _log(loss, lambda rows: confusion(found["output"][rows], target[rows]), sample)

    def loss(self, found, labels):
        """The sum over utterances, of a model's output, logits (n, classes), and classes (n,) or shares (n, classes)."""
        loss = self._cross_entropy(found["output"].float(), labels).sum()
        if self.frame_weight > 0:
            loss = loss + self.frame_weight * self._of_frames(found, labels).sum()
        return loss

    def _cross_entropy(self, output, target):
        """−Σ_c w_c p_c (1 − q_c)^γ log q_c, (n,), of logits (n, classes) and classes (n,) or shares p (n, classes)."""
        weights = None if self.class_weights is None else self.class_weights.to(output.device)
        if self.adjustment is not None:
            output = output + self.adjustment.to(output.device)
        if self.focal_gamma == 0:
            return F.cross_entropy(output, target, weight=weights, label_smoothing=self.label_smoothing, reduction="none")
        p = F.one_hot(target, output.size(1)) if target.ndim == 1 else target
        p = (1 - self.label_smoothing) * p + self.label_smoothing / output.size(1)
        log_q = output.log_softmax(dim=1)
        focused = (1 - log_q.exp()).clamp(min=1e-6) ** self.focal_gamma * log_q  # at 0 the gradient of a power below 1 is infinite
        return -(p * focused * (1 if weights is None else weights)).sum(dim=1)

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
        log = _log(loss * len(target), lambda rows: confusion(found["output"][rows], target[rows]), sample)
        return loss * len(classes), len(target), log


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
        return loss * len(references), len(target), _log(loss * len(target), lambda rows: moments(output[rows], target[rows]), sample)

    @classmethod
    def scores(cls, size):
        """The CCC of every dimension, and their mean."""
        return _ccc_scores(cls.names)


def _ccc_scores(names):
    rows = {"ccc": slice(None), **{f"ccc_{name}": row for row, name in enumerate(names)}}
    return {name: lambda sums, row=row: metrics.moment_scores(sums.reshape(-1, 6)[row])["ccc"].mean() for name, row in rows.items()}


def moments(output, target):
    """What CCC is made of (see `metrics.moments`) of each dimension, (n, dimensions) → flat (dimensions × 6,); NaN: no reference."""
    known = ~target.isnan()
    x, y = target.nan_to_num().double(), (output.detach() * known).double()
    return torch.stack([v.sum(dim=0) for v in (known.double(), x, y, x * x, y * y, x * y)], dim=1).flatten()


@dataclass
class EmotionMultitaskConfig(EmotionClassificationConfig):
    """Options of the cross-entropy, and weights."""

    target_weights: Any = option(None, "weights of the losses, a number for each of task.target, in that order (null: equal)")


@register_criterion("emotion_multitask", dataclass=EmotionMultitaskConfig)
class EmotionMultitask(_OfUtterances):
    """The weighted mean of the losses of several targets: cross-entropy of classes, with all its options, and 1 − CCC of each dimension. An
    utterance without a label adds 0 to the sum over utterances of that cross-entropy, and is left out of that CCC. `score`, by which
    checkpoints are chosen, is the mean with the same weights of the classes' UA and the dimensions' CCC."""

    several = True
    outputs, weights = (), {}

    def __init__(self, cfg, task):
        super().__init__(task)
        self.outputs, names = tuple(task.outputs), task.label_names
        given = [1.0] * len(names) if cfg.target_weights is None else cfg.target_weights
        are_numbers = isinstance(given, (list, ListConfig)) and all(isinstance(w, (int, float)) and 0 <= w < math.inf for w in given)
        if not are_numbers or len(given) != len(names) or not sum(given):
            raise InputError(f"criterion.target_weights={given}: give numbers from 0 on, not all 0, for {', '.join(names)} in this order")
        self.weights = {name: w / sum(given) for name, w in zip(names, given, strict=True)}
        type(self).outputs, type(self).weights = self.outputs, self.weights
        options = {name: getattr(cfg, name) for name in EmotionClassificationConfig.__dataclass_fields__ if name != "_name"}
        self.of_classes = nn.ModuleDict()
        for output in (o for o in self.outputs if o.are_classes):
            own = SimpleNamespace(state=SimpleNamespace(class_counts=task.counts_of(output)))
            soft = cfg.soft_labels and output.target == "emo"
            self.of_classes[str(output.start)] = EmotionClassification(own, **options | {"soft_labels": soft})

    def forward(self, model, sample, reduce=True):
        """Returns (loss × utterances, utterances, logging output); see EmotionRegression."""
        found, target = model(**sample["net_input"]), sample["target"]
        x, target = found["output"].float(), target if target.ndim == 2 else target.unsqueeze(1)
        loss, losses, parts, column = 0.0 * x.sum(), {}, [], 0
        for output in self.outputs:
            own, last = x[:, output.columns], column + (1 if output.are_classes else len(output.names))
            labels, column = target[:, column:last], last
            if output.are_classes:
                classes = labels[:, 0].nan_to_num(nan=-1).long()
                learned = self._classes_loss(found, sample, output, classes)
                loss, losses[f"loss_{output.target}"] = loss + self.weights[output.target] * learned, learned
                parts.append(lambda rows, own=own, classes=classes: confusion(own[rows], classes[rows]))
                continue
            gathered, references = gather(own, self), gather(labels.float(), self)
            for name, y, reference in zip(output.names, gathered.T, references.T, strict=True):
                known = ~reference.isnan()
                learned = 1 - ccc(y[known, None], reference[known, None])[0] if known.sum() > 1 else x.new_zeros(())
                loss = loss + self.weights[name] * learned * len(references)
                losses[f"loss_{name}"] = learned * len(target)
            parts.append(lambda rows, own=own, labels=labels: moments(own[rows], labels[rows]))
        logged = sum(self.weights[name.removeprefix("loss_")] * value for name, value in losses.items())
        return loss, len(target), _log(logged, lambda rows: torch.cat([part(rows) for part in parts]), sample, **losses)

    def _classes_loss(self, found, sample, output, classes):
        """The sum over utterances of the cross-entropy of an Output's classes (batch,), -1: none."""
        criterion = self.of_classes[str(output.start)]
        labels = sample["shares"].float() if criterion.soft_labels else classes
        known = labels.any(dim=1) if criterion.soft_labels else labels >= 0
        own = {name: found[name][known][..., output.columns] for name in ("output", "frame_output") if name in found}
        return criterion.loss({**own, "valid": found.get("valid", known)[known]}, labels[known])

    @classmethod
    def scores(cls, size):
        """Those that each target has alone, with the column in the names of scores of a column of .meta.tsv, and `score`."""
        found, of_targets, start = {}, {}, 0
        for output in cls.outputs:
            of_target = _OfClasses.scores(len(output.names) ** 2) if output.are_classes else _ccc_scores(output.names)
            width = len(output.names) ** 2 if output.are_classes else 6 * len(output.names)
            ending = "" if output.target in ("emo", DIMENSIONS) else f"_{output.target}"
            at = slice(start, start + width)
            found |= {name + ending: lambda sums, score=score, at=at: score(sums[at]) for name, score in of_target.items()}
            of_targets |= {output.target: found[f"ua{ending}"]} if output.are_classes else {n: found[f"ccc_{n}"] for n in output.names}
            start += width

        def mean(sums):
            values = np.array([float(score(sums)) for score in of_targets.values()])
            weights = np.array([cls.weights[name] for name in of_targets]) * np.isfinite(values)
            return np.nansum(weights * values) / weights.sum() if weights.any() else math.nan

        return {**found, "score": mean}


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
