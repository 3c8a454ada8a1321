"""Criterion: cross-entropy of frame labels at masked (and, if wanted, unmasked) frames (Hsu et al. 2021, equation 2)."""

import math
from dataclasses import dataclass
from typing import List, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.options import option
from ..corpus.frame_labels import NO_LABEL


@dataclass
class MaskedPredictionConfig(FairseqDataclass):
    """Weights of the terms."""

    pred_masked_weight: float = option(1.0, "weight of masked frames: α of the HuBERT paper")
    pred_nomask_weight: float = option(0.0, "weight of unmasked frames: 1 - α")
    features_pen_weight: float = option(10.0, "weight of the mean square of the convolutional features")
    label_weights: Optional[List[float]] = option(None, "weight of each label set, in the order of task.labels (default: 1 each)")


@register_criterion("masked_prediction", dataclass=MaskedPredictionConfig)
class MaskedPrediction(FairseqCriterion):
    """The sum over frames; fairseq divides by the sample size, the number of frames with a loss, whatever the number of label sets. Every
    term is a sum over utterances: the penalty on an utterance's features counts once per frame with a loss, as in fairseq for one alone."""

    def __init__(self, task, pred_masked_weight=1.0, pred_nomask_weight=0.0, features_pen_weight=10.0, label_weights=None):
        super().__init__(task)
        self.weights = {"masked": pred_masked_weight, "unmasked": pred_nomask_weight}
        self.features_pen_weight = features_pen_weight
        sets = task.label_sets
        counts = [None if s.counts is None else torch.tensor(s.counts, dtype=torch.double).clamp(min=1) for s in sets]
        self.unigram = [None if c is None else torch.log(c / c.sum()) for c in counts]  # logarithms of how frequent labels are
        self.label_weights = list(label_weights or [1.0] * len(sets))
        if len(self.label_weights) != len(sets):
            raise InputError(f"criterion.label_weights has {len(self.label_weights)} values for {len(sets)} label sets; give one each")

    def forward(self, model, sample, reduce=True):
        """Returns (loss, sample size, logging output): tensors throughout, so that nothing waits for the GPU."""
        wanted = {part: weight > 0 for part, weight in self.weights.items()}
        output = model(target_list=sample["target_list"], **wanted, **sample["net_input"])
        log, loss = {}, 0.0
        for part, all_logits in output["logits"].items():
            for k, (logits, targets) in enumerate(zip(all_logits, output["targets"][part], strict=True)):
                term = F.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction="sum")
                loss = loss + self.weights[part] * self.label_weights[k] * term
                log |= _statistics(f"{part}_{k}", term, logits, targets)
                if self.unigram[k] is not None:
                    self.unigram[k] = self.unigram[k].to(targets.device)  # copied once, or the CPU would wait for the GPU
                    constant = self.unigram[k].expand(len(targets), -1)
                    log[f"unigram_{part}_{k}"] = F.nll_loss(constant, targets, ignore_index=NO_LABEL, reduction="sum")
        frames = sum(output["counts"].values())  # (batch,)
        sample_size = frames.sum()
        penalty = (output["features_pen"] * frames).sum()
        loss = loss + self.features_pen_weight * penalty
        log |= {"loss": loss.detach().double(), "features_pen": penalty.detach().double(), "sample_size": sample_size}
        log |= {"ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
        if model.speaker_conditioning is not None:  # a model wrapped for several processes hands its attributes on
            log |= {"speaker_norm": model.speaker_conditioning.mean_norm().double(), "batches": 1}
        return loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs):
        """Log what the batches add up to: losses in bits per frame, accuracies, perplexities of the predicted labels, and `unigram_…`,
        the loss of the training labels' frequencies alone: a loss above it means that the model ignores its input."""
        total = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
        sample_size = max(float(total["sample_size"]), 1.0)
        metrics.log_scalar("loss", float(total["loss"]) / sample_size / math.log(2), sample_size, round=4)
        metrics.log_scalar("features_pen", float(total["features_pen"]) / sample_size, sample_size, round=5)
        for key in total:
            if not key.startswith("loss_"):
                continue
            part = key.removeprefix("loss_")
            count = max(float(total[f"count_{part}"]), 1.0)
            for name in (key, f"unigram_{part}"):
                if name in total:
                    metrics.log_scalar(name, float(total[name]) / count / math.log(2), count, round=4)
            metrics.log_scalar(f"accuracy_{part}", float(total[f"correct_{part}"]) / count, count, round=4)
            metrics.log_scalar(f"code_perplexity_{part}", _perplexity(total[f"codes_{part}"]), count, round=2)
        if "speaker_norm" in total:
            metrics.log_scalar("speaker_norm", float(total["speaker_norm"]) / float(total["batches"]), round=4)

    @staticmethod
    def logging_outputs_can_be_summed():
        """Yes: every entry is a sum, so that ranks exchange one tensor (and gloo needs no GPU)."""
        return True


@torch.no_grad()
def _statistics(name, loss, logits, targets):
    """Sums for logging: loss, frames with a label, correct ones, and how often each label was predicted."""
    labelled = targets != NO_LABEL
    predicted = logits.argmax(dim=-1)
    return {
        f"loss_{name}": loss.detach().double(),
        f"count_{name}": labelled.sum(),
        f"correct_{name}": ((predicted == targets) & labelled).sum(),
        f"codes_{name}": torch.zeros(logits.size(-1), dtype=torch.double, device=logits.device).index_add_(0, predicted, labelled.double()),
    }


def _perplexity(counts):
    """exp of the entropy of a distribution given by counts: the number of labels in use. counts: (classes,)"""
    p = counts / counts.sum().clamp(min=1)
    return float(torch.exp(-(p * torch.log(p.clamp(min=1e-30))).sum()))
