"""From the files of a model to calibrated ones: what `tools/calibrate.py` reads and writes.

The references of the predictions are read for the scores before and after, and for nothing else.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..core.cli import logger
from ..core.errors import InputError
from ..core.files import make_folder, read_json, write_json
from ..core.plotting import COLOURS, WIDTH, new_figure, save_figure, short
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, by_speaker
from ..data.speaker_vectors import from_utterances
from ..evaluation import scoring
from ..evaluation.predictions import ClassPredictions, from_probabilities, write_predictions, write_table
from . import pldc

FILES = ("predictions.tsv", "metrics.json", "metrics_before.json", "speakers.tsv", "calibration.json")
_ORIGIN = ("checkpoint", "split", "setting", "speaker_embedding")
_SHOWN_NEIGHBOURS = 5


def training_labels(split, predictions):
    """(speakers, labels) of a training split for `pldc.fit`: classes, or dimensions (n, dims), those of some predictions."""
    where, names = split.directory / split.name, names_of(predictions)
    if split.speakers is None:
        raise InputError(f"{where}.spk: no such file; calibration needs the training speakers, make the manifest again")
    suffix, labels = ("emo", split.emotions) if isinstance(predictions, ClassPredictions) else ("dim", split.dimensions)
    found = {*(labels or ())} - {NO_EMOTION}
    if not found & {*names} if suffix == "emo" else not found >= {*names}:
        shown = " ".join(sorted(found)[:10]) or "nothing"
        raise InputError(f"{where}.{suffix}: has {shown}, predicted are {' '.join(names)}; give the model's training split")
    return split.speakers, labels if suffix == "emo" else np.stack([labels[name] for name in names], axis=1)


def vectors_of(embeddings, ids, speakers, where):
    """SpeakerVectors from the Embeddings of the listed utterances, and of no others; none of the unknown speaker. InputError, naming the
    file `where`: no utterance in common, or an utterance has two speakers."""
    speaker_of = dict(zip(ids, speakers, strict=True))
    rows = [i for i, name in enumerate(embeddings.ids) if name in speaker_of and embeddings.speakers[i] != UNKNOWN_SPEAKER]
    if not rows:
        remedy = "make the embeddings with tools/evaluate.py --embeddings on the same split"
        raise InputError(f"{where}: holds none of the {len(speaker_of)} utterances, such as “{ids[0]}”; {remedy}")
    for name, speaker in ((embeddings.ids[i], embeddings.speakers[i]) for i in rows):
        if speaker != speaker_of[name]:
            raise InputError(f"{where}: “{name}” is of the speaker “{speaker}”, elsewhere of “{speaker_of[name]}”; make embeddings again")
    return from_utterances([embeddings.speakers[i] for i in rows], embeddings.values[rows])


def fit(split, embeddings, predictions, match, k=None, always=False, where="training embeddings"):
    """(Calibration, Guard) for a model from its training split, with `.spk` and `.dim` or `.emo`, and Embeddings of (at least) that split, of
    the file `where`, for predictions of this kind; the rest as for `pldc.fit`."""
    names = names_of(predictions)
    if (match == "prior") != isinstance(predictions, ClassPredictions):
        kind, fitting = ("dimensions", "mean, std or mean-std") if match == "prior" else ("classes", "prior")
        raise InputError(f"--match {match}: the predictions are of {kind} ({' '.join(names)}); use {fitting}")
    speakers, labels = training_labels(split, predictions)
    if seen := sorted(set(predictions.speakers) & set(speakers) - {UNKNOWN_SPEAKER}):
        logger.warning("%d predicted speakers are training speakers (“%s”): their own labels calibrate them", len(seen), seen[0])
    fitted, guard = pldc.fit(vectors_of(embeddings, split.ids, speakers, where), speakers, labels, names, match, k, always)
    if left_out := sorted(set(speakers) - set(fitted.speakers.ids) - {UNKNOWN_SPEAKER}):
        logger.warning("%d training speakers (“%s”) have too few labels or no embedding and are left out", len(left_out), left_out[0])
    return fitted, guard


def calibrate(calibration, vectors, predictions):
    """Calibrate predictions speaker by speaker; those of the unknown speaker stay. `vectors`: SpeakerVectors of all speakers."""
    of_classes, vector_of = isinstance(predictions, ClassPredictions), dict(zip(vectors.ids, vectors.vectors, strict=True))
    values = predictions.probabilities if of_classes else predictions.predicted
    values = values / values.sum(1, keepdims=True) if of_classes else values.copy()
    for name, rows in by_speaker(predictions.speakers).items():
        values[rows] = calibration(vector_of[name], values[rows])
    if of_classes:
        return from_probabilities(
            predictions.ids, predictions.speakers, predictions.emotions, predictions.classes, values, predictions.name
        )
    return replace(predictions, predicted=values)


def save(directory, calibration, guard, embeddings, predictions, split=None, repeats=2000, seed=1, where="embeddings", origin=None):
    """Calibrate predictions by what `fit` returned, evaluate before and after, and write FILES and figures to a folder; returns the content
    of `calibration.json`. `embeddings`: those of the predicted utterances, of the file `where`. `split`: that of the predictions, for its
    metadata columns. `repeats`, `seed`: of the bootstrap over speakers. `origin`: see `origin_of`; goes into both files of scores."""
    vectors, origin = vectors_of(embeddings, predictions.ids, predictions.speakers, where), origin or {}
    speakers, width = set(predictions.speakers) - {UNKNOWN_SPEAKER}, calibration.speakers.vectors.shape[1]
    if without := sorted(speakers - set(vectors.ids)):
        raise InputError(f"{where}: no embedding of the speaker “{without[0]}” ({len(without)} such speakers); make it on the same split")
    if vectors.vectors.shape[1] != width:
        raise InputError(f"{where}: embeddings of width {vectors.vectors.shape[1]}, in training {width}; use one checkpoint")
    after, directory = calibrate(calibration, vectors, predictions), make_folder(directory)
    write_predictions(directory / "predictions.tsv", after)
    scores = [scoring.evaluate(p, split, repeats=repeats, seed=seed) for p in (predictions, after)]
    write_json(directory / "metrics_before.json", {**origin, **scores[0]})
    setting = calibrated_setting(origin.get("setting", f"inductive ({len(speakers)} speakers)"))
    write_json(directory / "metrics.json", {**origin, "setting": setting, "calibrated": calibration.applied, **scores[1]})
    table = speaker_table(calibration, vectors, *scores)
    write_table(directory / "speakers.tsv", table, digits=6)
    folder = make_folder(directory / "figures")
    for measure, rows in table.groupby("measure", sort=False):
        before_after(folder / f"before_after_{measure.replace(' ', '_')}.png", rows.dropna(), measure)
    before, changed = map(headline, scores)
    report = {
        **{name: getattr(calibration, name) for name in ("names", "match", "k", "applied")},
        "training_speakers": len(calibration.speakers),
        "guard": {**asdict(guard), "helps": guard.helps},
        "scores": {name: [value, changed[name]] for name, value in before.items()},
        "paired": scoring.paired_tests(after, predictions, repeats, seed),
        "worse": table[table["after"] < table["before"] - 1e-9][["speaker", "measure"]].to_numpy().tolist(),
    }
    write_json(directory / "calibration.json", report)
    return report


def calibrated_setting(setting):
    """How calibrated speakers are met: `inductive` no longer, for their unlabelled audio decides who is similar and what is rescaled."""
    return re.sub(r"([^,(]+) \(", r"\1 and calibrated (", setting).replace("inductive and calibrated", "calibrated by unlabelled audio")


def speaker_table(calibration, vectors, before, after):
    """`speakers.tsv` as a DataFrame: each speaker with references, and each measure, before and after."""
    import pandas as pd

    similarities, similar = calibration.similar(vectors.vectors)
    rows = []
    for i, speaker in enumerate(vectors.ids):
        named = " ".join(f"{calibration.speakers.ids[j]}:{similarities[i, j]:.4f}" for j in similar[i][:_SHOWN_NEIGHBOURS])
        if own := before["per_speaker"].get(speaker):
            changed = headline(after["per_speaker"][speaker])
            rows += [(speaker, measure, own["n"], value, changed[measure], named) for measure, value in headline(own).items()]
    return pd.DataFrame(rows, columns=["speaker", "measure", "utterances", "before", "after", "neighbours"])


def before_after(path, rows, measure):
    """A PNG of each speaker's score before and after, the worse ones marked. `rows`: those of one `measure` in `speaker_table`."""
    worse = rows["after"] < rows["before"] - 1e-9
    with new_figure(WIDTH, WIDTH) as (figure, axes):
        for members, colour, marker, label in ((~worse, COLOURS[0], "o", "better or equal"), (worse, COLOURS[3], "v", "worse")):
            axes.scatter(rows["before"][members], rows["after"][members], color=colour, marker=marker, label=f"{label} ({members.sum()})")
        axes.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1, zorder=0)
        axes.set(xlabel=f"{short(measure, 30)} before", ylabel="after", title=f"{len(rows)} speakers before and after calibration")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=2)
        save_figure(figure, path)


def headline(scores):
    """{name: value} of the headline scores that `scoring.evaluate` gives, of all or of a speaker."""
    if "dims" in scores:
        return {f"CCC of {name}": values["ccc"] for name, values in scores["dims"].items()}
    return {name: scores[name] for name in ("UA", "WA")}


def origin_of(predictions):
    """What the `metrics.json` beside a predictions file says of them: checkpoint, split, setting; {} without one."""
    path = Path(predictions).with_name("metrics.json")
    known = read_json(path) if path.is_file() else {}
    return {key: known[key] for key in _ORIGIN if key in known}


def names_of(predictions):
    """Names of the classes or dimensions."""
    return predictions.classes if isinstance(predictions, ClassPredictions) else predictions.dims
