"""Temperature scaling (Guo et al. 2017): probabilities p become p^(1/T) / Σ p^(1/T), the softmax of logits / T. T is fitted by the
likelihood of validation utterances, and no decision changes: what changes is how far a probability can be taken at its word."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import read_json, write_json
from . import metrics, scoring
from .predictions import ClassPredictions, read_predictions

_TINY = 1e-12  # what predictions.tsv resolves
FILE = "temperature.json"


def scaled(probabilities, temperature):
    """(…, classes) probabilities at a temperature."""
    logits = np.log(np.clip(probabilities, _TINY, None)) / temperature
    logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return np.exp(logits)


def scaled_first(values, temperature, n):
    """`scaled` of the first n of the last axis, probabilities of the classes; what else a model predicts stays."""
    return np.concatenate([scaled(values[..., :n], temperature), values[..., n:]], axis=-1)


def negative_log_likelihood(probabilities, reference):
    """Mean of −ln p of the reference class, integers (n), in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(reference)), reference], _TINY, None)).mean())


def fit(*sets):
    """The T, from 0.05 to 50, that makes the references most likely in the mean over sets of (probabilities (n, classes), references (n))."""
    from scipy.optimize import minimize_scalar

    def loss(log_t):
        return np.mean([negative_log_likelihood(scaled(p, np.exp(log_t)), reference) for p, reference in sets])

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 50]), method="bounded").x))


def calibrate(validation, predictions, out, split=None, repeats=2000, seed=1):
    """Fit T on the predictions.tsv `validation` and scale those of another by it, into a folder: predictions.tsv, metrics.json, and before
    metrics_before.json; temperature.json. Returns the last. InputError: dimensions, other classes, a common utterance, nothing to fit."""
    known, other = read_classes(validation), read_classes(predictions)
    if other.classes != known.classes:
        raise InputError(f"{predictions}: other classes than {validation}; give predictions of one model")
    if common := set(known.ids) & set(other.ids):
        raise InputError(f"{predictions}: “{min(common)}” is in {validation} too; fit on validation speakers, not on what is tested")
    p, reference = scored(known)
    if not len(reference):
        raise InputError(f"{validation}: no utterance has a reference; give predictions of a labelled validation split")
    temperature = fit((p, reference))
    write_json(Path(out) / "metrics_before.json", scoring.evaluate(other, split, repeats, seed))
    scoring.save(out, replace(other, probabilities=scaled(other.probabilities, temperature)), split, None, repeats, seed)
    report = {"temperature": temperature, "classes": known.classes, "n": len(reference), "fitted_on": str(validation)}
    for name, (values, labels) in {"validation": (p, reference), "predictions": scored(other)}.items():
        if len(labels):
            report[name] = {"before": quality(values, labels), "after": quality(scaled(values, temperature), labels)}
    write_json(Path(out) / FILE, report)
    return report


def quality(probabilities, reference):
    """{"nll", "ece"} of (n, classes) probabilities and (n) references."""
    right = probabilities.argmax(1) == reference
    ece = metrics.expected_calibration_error(probabilities.max(1), right)
    return {"nll": negative_log_likelihood(probabilities, reference), "ece": ece}


def read_classes(path):
    """ClassPredictions of a predictions.tsv; InputError if it holds dimensions, or classes other than of emotion."""
    found = read_predictions(path)
    if not isinstance(found, ClassPredictions):
        raise InputError(f"{path}: predicts dimensions, which have no probabilities; leave --temperature out")
    if found.name != "emo":
        raise InputError(f"{path}: predicts {found.name}, and a temperature is for the emotion; give those predictions")
    return found


def beside(checkpoint):
    """The temperature.json that stands beside a checkpoint, or in a model's folder, whose probabilities are then scaled by it; None without."""
    path = Path(checkpoint) / FILE if Path(checkpoint).is_dir() else Path(checkpoint).with_name(FILE)
    return path if path.is_file() else None


def read(path, normalised=False):
    """T of a temperature.json; that of normalised speakers, if the file has one and `normalised`. InputError if it is no such file."""
    found = read_json(path)
    value = (found.get("normalised") if normalised else None) or found.get("temperature") if isinstance(found, dict) else None
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{path}: holds no temperature; make it with tools/calibrate.py --temperature")
    return float(value)


def scored(predictions):
    """(probabilities (n, classes), references (n)) of the utterances with a reference."""
    rows = predictions.scored
    return predictions.probabilities[rows], predictions.indices(predictions.emotions)[rows]
