"""Evaluation on another corpus: which of its classes are which of the model's."""

import logging
from collections import Counter
from dataclasses import replace

from ..core.errors import InputError
from ..core.files import read_json
from ..corpus.manifest import NO_EMOTION
from .predictions import from_probabilities

logger = logging.getLogger(__name__)

USUAL = {
    "angry": ("ang", "anger", "mad"),
    "bored": ("bor", "boredom"),
    "calm": ("calmness",),
    "contempt": ("con", "contemptuous"),
    "disgusted": ("dis", "disgust"),
    "fearful": ("fea", "fear", "afraid", "scared"),
    "frustrated": ("fru", "frustration"),
    "happy": ("hap", "happiness", "joy", "joyful", "exc", "excited", "excitement"),
    "neutral": ("neu",),
    "sad": ("sadness",),
    "surprised": ("sur", "surprise"),
}
"""Our name of an emotion → what corpora call it as well; the same in capitals."""
_NAMES = {name: ours for ours, names in USUAL.items() for name in (ours, *names)}


def read_map(name):
    """{their class: the model's} of a JSON file, where null leaves a class out; None for “usual”: by `USUAL`."""
    if name == "usual":
        return None
    content = read_json(name)
    if not isinstance(content, dict) or not all(value is None or isinstance(value, str) for value in content.values()):
        raise InputError(f'{name}: expected an object of class names such as {{"excited": "happy", "calm": null}}; correct it')
    return content


def renamed(split, ours_of):
    """A split whose classes and votes have the names that `ours_of` gives them; None leaves one out. Votes for the same are added up."""
    if split.emotions is None:
        return split
    table = {name: ours for name in {*split.emotions, *(split.votes or ())} - {NO_EMOTION} if (ours := ours_of(name)) is not None}
    votes = {name: column for name, column in (split.votes or {}).items() if name in table}
    merged = {one: sum(column for name, column in votes.items() if table[name] == one) for one in sorted({table[name] for name in votes})}
    return replace(split, emotions=[table.get(name, NO_EMOTION) for name in split.emotions], votes=merged or None)


def renaming(label_map):
    """The function from their class to ours, for `renamed`, of what `read_map` gives."""
    return _usual if label_map is None else lambda name: label_map.get(name, name)


def mapped(split, classes, label_map):
    """(split, facts): a split whose classes and votes are those of a model, where they are any, "-" otherwise; {"classes": theirs → ours,
    "left_out": theirs → utterances}. A class that `label_map`, of `read_map`, does not name keeps its name. InputError: fewer than two of
    the model's `classes` are in the split."""
    counts, votes = Counter(split.emotions or ()), split.votes or {}
    names = sorted({*counts, *votes} - {NO_EMOTION})
    if label_map is None:
        ours = {_usual(name): name for name in reversed(classes)} | {name: name for name in classes}
        label_map = {name: ours.get(name, ours.get(_usual(name))) for name in names}
    table = {name: label_map.get(name, name) for name in names if label_map.get(name, name) in classes}
    if len({own for name, own in table.items() if counts[name]}) < 2:
        what = f"of its classes ({' '.join(names) or 'none'}) fewer than two are any of the model's ({' '.join(classes)})"
        raise InputError(f"{split.tsv}: {what}; give --label-map a file that maps them")
    left_out = {name: n for name, n in counts.most_common() if name not in {*table, NO_EMOTION}}
    if left_out:
        listed = ", ".join(f"{name} {n}" for name, n in left_out.items())
        logger.warning("%s: %d utterances of classes that the model lacks are not scored (%s)", split.tsv, sum(left_out.values()), listed)
    return renamed(split, table.get), {"classes": table, "left_out": left_out}


def among_references(predictions):
    """Predictions as if the model had only the classes that the references have: the others' probability is divided among these."""
    kept = [name for name in predictions.classes if name in predictions.emotions]
    probabilities = predictions.probabilities[:, [predictions.classes.index(name) for name in kept]]
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return from_probabilities(predictions.ids, predictions.speakers, predictions.emotions, kept, probabilities)


def _usual(name):
    return _NAMES.get(name.lower(), name.lower())
