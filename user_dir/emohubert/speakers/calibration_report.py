"""From the files of a model to calibrated ones, and what calibration did to each speaker.

The references of the predictions are read for the scores before and after, and for nothing else.
"""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, make_folder, read_json, write_json
from ..corpus.manifest import NO_EMOTION
from ..data import speaker_vectors
from ..evaluation import scoring
from ..evaluation.predictions import ClassPredictions, write_predictions
from . import calibration_figures
from .calibration import (
    ClassCalibration,
    DimensionCalibration,
    by_speaker,
    calibrate,
    choose_by_metric,
    corrected,
    mean_score,
    values_of,
    with_values,
)
from .calibration import save as save_calibration

logger = logging.getLogger("emohubert")
FILES = (
    "predictions.tsv",
    "metrics.json",
    "metrics_before.json",
    "speakers.tsv",
    "worse_speakers.tsv",
    "calibration.json",
    "calibration.npz",
)
COLUMNS = ("speaker", "measure", "utterances", "strength", "before", "after", "gain", "neighbours")
SHOWN_NEIGHBOURS = 5


def training_labels(split, names, kind):
    """(speakers, labels) of a training split, for `fit`.

    Args:
        split: manifest Split.
        names: dimensions, or classes.
        kind: `dimensions` or `classes`.

    Raises:
        InputError: no speakers, or the labels are not there.
    """
    where = split.directory / split.name
    if split.speakers is None:
        raise InputError(f"{where}.spk: no such file; calibration needs the training speakers, make the manifest again")
    if kind == "classes":
        if split.emotions is None:
            raise InputError(f"{where}.emo: no such file; the predictions are of classes, give a training split with classes")
        if not set(split.emotions) & set(names):
            found = " ".join(sorted(set(split.emotions) - {NO_EMOTION})[:10])
            raise InputError(
                f"{where}.emo: no class of it ({found}) is among the predicted ones ({' '.join(names)}); give the model's split"
            )
        return split.speakers, split.emotions
    missing = [name for name in names if name not in (split.dimensions or {})]
    if missing:
        found = " ".join(split.dimensions or {}) or "none"
        raise InputError(f"{where}.dim: has no dimension {missing[0]} (found: {found}); give the training split of the model")
    return split.speakers, np.stack([split.dimensions[name] for name in names], axis=1)


def vectors_of(embeddings, ids, speakers, where):
    """Speaker vectors from the embeddings of the listed utterances, and of no others.

    Embeddings are found by utterance id; where no id at all is known, by speaker. What is left out is logged.

    Args:
        embeddings: Embeddings.
        ids, speakers: of the utterances that may be used.
        where: the file of the embeddings, for messages.

    Returns:
        SpeakerVectors.

    Raises:
        InputError: no utterance and no speaker in common, or an utterance has two speakers.
    """
    speaker_of = dict(zip(ids, speakers, strict=True))
    rows = [i for i, name in enumerate(embeddings.ids) if name in speaker_of]
    if rows:
        for i in rows:
            if embeddings.speakers[i] != speaker_of[embeddings.ids[i]]:
                raise InputError(
                    f"{where}: the utterance “{embeddings.ids[i]}” is of the speaker “{embeddings.speakers[i]}”, elsewhere of "
                    f"“{speaker_of[embeddings.ids[i]]}”; make the embeddings again from the same manifest"
                )
        missing = len(speaker_of) - len({embeddings.ids[i] for i in rows})
        if missing:
            logger.warning("%s: no embedding of %d of %d utterances; their speakers' vectors do without", where, missing, len(speaker_of))
    else:
        rows = [i for i, name in enumerate(embeddings.speakers) if name in set(speakers)]
        if not rows:
            raise InputError(
                f"{where}: holds none of the {len(speaker_of)} utterances, such as “{ids[0]}”, and none of their speakers; "
                "make the embeddings with tools/evaluate.py --embeddings on the same split"
            )
        logger.warning("%s: the utterance ids, such as “%s”, are not those of the list; taken by speaker", where, embeddings.ids[rows[0]])
    if len(rows) < len(embeddings):
        logger.warning(
            "%s: %d of %d embeddings are of other utterances and are not used", where, len(embeddings) - len(rows), len(embeddings)
        )
    return speaker_vectors.from_utterances([embeddings.speakers[i] for i in rows], embeddings.values[rows])


def fit(split, train_embeddings, predictions, settings, train_predictions=None, where="training embeddings"):
    """A calibration for a model, from its training split; of the predictions, only what they are of is used.

    Args:
        split: the training split, with `.spk` and `.dim` or `.emo`.
        train_embeddings: Embeddings of (at least) that split.
        predictions: ClassPredictions or DimensionPredictions to be calibrated.
        settings: calibration.Settings.
        train_predictions: predictions of the training speakers: k and strength are then chosen by the metric.
        where: file of the embeddings, for messages.

    Raises:
        InputError: the files do not belong together.
    """
    classes = isinstance(predictions, ClassPredictions)
    names = predictions.classes if classes else predictions.dims
    speakers, labels = training_labels(split, names, "classes" if classes else "dimensions")
    if classes:
        unknown = sum(e not in {*names, NO_EMOTION} for e in labels)
        if unknown:
            logger.warning("%s.emo: %d utterances of classes that are not predicted are not counted", split.directory / split.name, unknown)
    vectors = vectors_of(train_embeddings, split.ids, speakers, where)
    seen = sorted(set(predictions.speakers) & set(speakers))
    if seen:
        logger.warning("%d predicted speakers are training speakers (“%s”): their own labels calibrate them", len(seen), seen[0])
    if train_predictions is not None:
        if type(train_predictions) is not type(predictions) or (train_predictions.classes if classes else train_predictions.dims) != names:
            raise InputError(f"--train-predictions are not of {' '.join(names)}; make them with the same model as --predictions")
        result = choose_by_metric(vectors, speakers, labels, names, settings, train_predictions)
    else:
        result = (ClassCalibration if classes else DimensionCalibration).fit(vectors, speakers, labels, names, settings)
    for name, reason in sorted(result.left_out.items()):
        logger.warning("training speaker “%s” is left out: %s", name, reason)
    usable = len(result.neighbourhood.speakers)
    if settings.top_k is not None and settings.top_k > usable:
        logger.warning("top-k %d is more than the %d training speakers: all are taken", settings.top_k, usable)
    return result


def gain_by_utterances(calibration, embeddings, predictions, draws=5, seed=1):
    """How the calibrated score rises with the number of a speaker's utterances that were heard, without labels.

    For n = 1, 2, 4, … the correction of every speaker comes from n of their utterances, drawn at random (all, if there are
    fewer), and is applied to all of them. What was learnt from the predictions of all speakers (B, h, ω²) stays.

    Args:
        calibration: as `calibrate` left it.
        embeddings: (utterances, width), in the order of the predictions.
        predictions: not yet calibrated.
        draws, seed: of the random utterances.

    Returns:
        list of {"utterances", "speakers" (with at least that many), "scores" (`mean_score`, one for each draw)}.
    """
    rng = np.random.default_rng(seed)
    speakers, values = np.asarray(predictions.speakers, dtype=np.str_), values_of(predictions)
    members = {name: np.flatnonzero(speakers == name) for name in sorted(set(predictions.speakers))}
    most = max(len(rows) for rows in members.values())
    amounts = sorted({*(2**i for i in range(int(math.log2(most)) + 1)), most})
    curve = []
    for n in amounts:
        scores = []
        for _ in range(draws if n < most else 1):
            heard = np.sort(np.concatenate([rng.permutation(rows)[:n] for rows in members.values()]))
            vectors = speaker_vectors.from_utterances(speakers[heard], embeddings[heard])
            seen = dict(zip(vectors.ids, by_speaker(vectors.ids, speakers[heard], values[heard]), strict=True))
            corrections = calibration.corrections(calibration.estimate(vectors), seen)
            scores.append(mean_score(with_values(predictions, corrected(corrections, predictions.speakers, values))))
        curve.append({"utterances": n, "speakers": sum(len(rows) >= n for rows in members.values()), "scores": scores})
    return curve


def save(directory, calibration, embeddings, predictions, split=None, repeats=2000, seed=1, where="test embeddings", origin=None):
    """Calibrate, evaluate before and after, and write everything `tools/calibrate.py` promises.

    Args:
        directory: output folder, made if needed.
        calibration: of `fit`.
        embeddings: Embeddings of the predicted utterances.
        predictions: to be calibrated.
        split: the manifest split of the predictions, for its metadata columns, or None.
        repeats, seed: of the bootstrap over speakers, and the draws of `gain_by_utterances`.
        where: file of the embeddings, for messages.
        origin: what is known of the predictions (checkpoint, split, setting): goes into both files of scores.

    Returns:
        The content of `calibration.json`: `settings`, `k`, `trust`, …, `scores` (measure → before, after), `worse`, `gain`.
    """
    vectors = vectors_of(embeddings, predictions.ids, predictions.speakers, where)
    trained = calibration.neighbourhood.speakers
    without = sorted(set(predictions.speakers) - set(vectors.ids))
    if without:
        raise InputError(
            f"{where}: no embedding of the speaker “{without[0]}” ({len(without)} such speakers); make it on the split of the predictions"
        )
    if vectors.vectors.shape[1] != trained.vectors.shape[1]:
        raise InputError(
            f"{where}: embeddings of width {vectors.vectors.shape[1]}, and those of the training speakers have {trained.vectors.shape[1]}; "
            "make both with the same checkpoint"
        )
    after, estimates, corrections = calibrate(calibration, vectors, predictions)
    directory = make_folder(directory)
    write_predictions(directory / "predictions.tsv", after)
    save_calibration(directory / "calibration.npz", calibration)
    scores = [scoring.evaluate(p, split, repeats=repeats, seed=seed) for p in (predictions, after)]
    origin = origin or {}
    write_json(directory / "metrics_before.json", {**origin, **scores[0]})
    write_json(directory / "metrics.json", {**origin, "calibrated": True, **scores[1]})
    rows = speaker_table(calibration, predictions, *scores, estimates, corrections)
    worse = sorted((row for row in rows if row["gain"] < -1e-9), key=lambda row: row["gain"])
    _write_rows(directory / "speakers.tsv", rows)
    _write_rows(directory / "worse_speakers.tsv", worse)
    scored = bool(predictions.scored.any())
    place = {name: i for i, name in enumerate(embeddings.ids)}
    complete = all(name in place for name in predictions.ids)
    gain = []
    if scored and complete:
        ordered = embeddings.values[[place[name] for name in predictions.ids]]
        gain = gain_by_utterances(calibration, ordered, predictions, seed=seed)
    report = {
        **describe(calibration),
        "scores": summary(*scores),
        "paired": scoring.compare(after, predictions, repeats=repeats, seed=seed)["tests"] if scored else {},
        "worse": worse,
        "gain": {"measure": _measure(predictions), "before": mean_score(predictions) if scored else float("nan"), "curve": gain},
    }
    write_json(directory / "calibration.json", report)
    calibration_figures.draw(make_folder(directory / "figures"), calibration, vectors, estimates, rows, report)
    return report


def origin_of(predictions):
    """What the `metrics.json` beside a predictions file says of them: checkpoint, split, setting; {} without one."""
    path = Path(predictions).with_name("metrics.json")
    known = read_json(path) if path.is_file() else {}
    return {key: known[key] for key in ("checkpoint", "split", "setting", "speaker_embedding") if key in known}


def describe(calibration):
    """What was chosen and learnt, for JSON."""
    hood = calibration.neighbourhood
    learnt = {
        name: getattr(calibration, name).tolist()
        for name in ("error", "between", "heard", "within", "shifts")
        if hasattr(calibration, name)
    }
    return {
        "kind": calibration.kind,
        "names": calibration.names,
        "settings": asdict(calibration.settings),
        "training_speakers": len(hood.speakers),
        "left_out": calibration.left_out,
        "k": min(hood.k, len(hood.speakers)),
        "trust": hood.trust.tolist(),
        "p_values": calibration.p_values,
        "kappa": hood.kappa,
        "strength": calibration.strength,
        **learnt,
        **({"concentration": calibration.concentration} if calibration.kind == "classes" else {}),
        "tried": calibration.tried,
    }


def speaker_table(calibration, predictions, before, after, estimates, corrections):
    """A row for each speaker (and dimension), as `speakers.tsv` has them: dicts with the keys `COLUMNS`.

    `strength` is λ of the mean; for classes it is the share of the neighbours in the frequencies, γ'. NaN: no reference.
    """
    n = {name: predictions.speakers.count(name) for name in estimates.ids}
    ids = calibration.neighbourhood.speakers.ids
    rows = []
    for row, speaker in enumerate(estimates.ids):
        nearest = sorted(
            np.flatnonzero(estimates.weights[row]), key=lambda j: (-estimates.weights[row, j], -estimates.similarities[row, j])
        )
        neighbours = " ".join(f"{ids[j]}:{estimates.similarities[row, j]:.4f}" for j in nearest[:SHOWN_NEIGHBOURS])
        for column, (measure, read) in enumerate(_measures(predictions).items()):
            strength = estimates.trust[row, 0] if calibration.kind == "classes" else corrections[speaker].strength[column]
            values = [
                read(scores["per_speaker"][speaker]) if speaker in scores["per_speaker"] else float("nan") for scores in (before, after)
            ]
            fields = (speaker, measure, n[speaker], float(strength), *values, values[1] - values[0], neighbours)
            rows.append(dict(zip(COLUMNS, fields, strict=True)))
    return rows


def summary(before, after):
    """Measure → {"before", "after", "speakers_before": {"mean", "std", "n"}, "speakers_after"}."""
    if "dims" in before:
        pairs = {
            f"CCC of {name}": [(s["dims"][name]["ccc"], s["speakers"]["dims"][name]["ccc"]) for s in (before, after)]
            for name in before["dims"]
        }
    else:
        pairs = {name: [(s[name], s["speakers"][name]) for s in (before, after)] for name in ("UA", "WA")}
    return {
        name: {"before": b, "after": a, "speakers_before": spread_b, "speakers_after": spread_a}
        for name, ((b, spread_b), (a, spread_a)) in pairs.items()
    }


def _measure(predictions):
    return (
        "UA" if isinstance(predictions, ClassPredictions) else "mean CCC" if len(predictions.dims) > 1 else f"CCC of {predictions.dims[0]}"
    )


def _measures(predictions):
    if isinstance(predictions, ClassPredictions):
        return {"UA": lambda scores: scores["UA"]}
    return {f"CCC of {name}": lambda scores, name=name: scores["dims"][name]["ccc"] for name in predictions.dims}


def _write_rows(path, rows):
    with atomic(path) as f:
        f.write("\t".join(COLUMNS) + "\n")
        f.writelines("\t".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()) + "\n" for row in rows)
