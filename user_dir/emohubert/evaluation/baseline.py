"""What a trained system has to beat: the majority class, and a support vector machine on fixed features, plain and of normalised speakers.

Features are 88 functionals (eGeMAPS v02, Eyben et al. 2016), or mean and standard deviation over time of MFCCs, or of layers of a frozen
encoder (a probe), over the frames within 35 dB of the loudest. They are standardised on the training split; RBF kernel, C = 10, classes
weighted by their rarity; support vector regression for dimensions. *Normalised*: each speaker's features are brought to zero mean
and unit variance over all of that speaker's unlabelled audio in the split, in training and at test.
"""

from pathlib import Path

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError, need
from ..core.files import atomic, fingerprint, make_folder, write_json
from ..core.parallel import cores
from ..core.plotting import COLOURS, GREY, MARKERS, new_figure, save_figure
from ..corpus import audio
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, manifest_directories, read_split
from ..data.speed_perturbation import at_speeds
from . import metrics, scoring
from .inference import BY_AUDIO
from .predictions import ClassPredictions, DimensionPredictions, known_references, write_predictions
from .results import read_results, write_results

MAJORITY, EGEMAPS, PLAIN, NORMALISED = "majority class", "eGeMAPS", "{} + SVM", "{} + SVM, speakers normalised"
SILENCE_DB = 35.0


def run(directory, out, target="emo", train="train", test="test", workers=None, checkpoint=None, layers=None, kinds=None, speeds=()):
    """Train and test the baselines on every fold of a manifest directory; returns the lines of a table.

    Writes NAME/fold*/predictions.tsv and metrics.json below `out`, results.md, results.json and a picture, results.png, and keeps eGeMAPS
    in features.npz. `target`: "emo", or the name of a column of `.dim`. `workers`: processes, or threads of an encoder, that extract
    features (default: one for each core). `checkpoint`: encoder to probe; `layers` of it, from 1, are a system each (default: all).
    `kinds`: some of "egemaps", "mfcc", "encoder" (default: the encoder where there is a checkpoint, else eGeMAPS). `speeds`: at which a probe
    learns from every training utterance too, as of other speakers.
    InputError: a split or its labels are missing, the encoder has no checkpoint, or opensmile is not installed.
    """
    kinds = kinds or ["encoder" if checkpoint else "egemaps"]
    if ("encoder" in kinds) != (checkpoint is not None):
        raise InputError("an encoder needs its checkpoint: give both --features encoder and --checkpoint CKPT, or neither")
    if speeds and set(kinds) != {"encoder"}:
        raise InputError("--speed-perturbation is of probes alone; give --checkpoint CKPT, and no other --features")
    out = make_folder(out)
    folders = [d for d in manifest_directories(directory) if (d / f"{test}.tsv").is_file()]
    if not (folds := [{name: labelled(d, name, target) for name in (train, test)} for d in folders]):
        raise InputError(f"{directory}: no fold has a split “{test}”; make it with manifests/NAME.py")
    for fold in folds if speeds else ():
        fold[train] = at_speeds(fold[train], speeds, "--speed-perturbation")
    splits, workers, rows, features = [split for fold in folds for split in fold.values()], workers or cores(), [], {}
    for kind in dict.fromkeys(kinds):
        features |= vectors(kind, splits, out, checkpoint, layers, workers)
    for number, fold in enumerate(folds, 1):
        known, unknown = fold[train], fold[test]
        speakers = set(unknown.speakers)
        plain = f"{'inductive' if speakers.isdisjoint(known.speakers) else 'seen'} ({len(speakers)} speakers)"
        adapted = f"{BY_AUDIO} ({len(speakers)} speakers)"
        systems = {MAJORITY: (None, None, plain)} if target == "emo" else {}
        for name, of_path in features.items():
            x, z = (np.stack([of_path[path] for path in _keys(split)]) for split in (known, unknown))
            systems |= {
                PLAIN.format(name): (x, z, plain),
                NORMALISED.format(name): (normalised(x, known.speakers), normalised(z, unknown.speakers), adapted),
            }
        for name, (fitted, tested, setting) in systems.items():
            folder = make_folder(out / name.replace(" ", "_") / f"fold{number}")
            predictions = (_classes if target == "emo" else _dimension)(known, unknown, fitted, tested, target)
            scores = scoring.evaluate(predictions, unknown)
            write_predictions(folder / "predictions.tsv", predictions)
            write_json(folder / "metrics.json", {"setting": setting, "split": str(unknown.tsv), **scores})
            rows.append((name, folder))
    systems = read_results(rows)
    draw(systems, list(features), out / "results.png")
    return write_results(out / "results", systems, f"Baselines: {target}, {len(folds)} folds of {directory}")


def draw(systems, features, path):
    """A PNG: the first score of the systems, mean ± standard deviation over folds, plain and normalised, by features."""
    score = next(iter(systems[0]["scores"]))
    found = {s["name"]: metrics.mean_std(s["scores"][score]) for s in systems}
    forms = ("plain", PLAIN), ("speakers normalised", NORMALISED)
    with new_figure(1.8 + 0.7 * len(features), 3.6) as (figure, ax):
        for (label, form), shift, colour, marker in zip(forms, (-0.08, 0.08), COLOURS, MARKERS, strict=False):
            means, spreads, _ = zip(*(found[form.format(name)] for name in features), strict=True)
            ax.errorbar(np.arange(len(features)) + shift, means, spreads, color=colour, marker=marker, linestyle="", capsize=2, label=label)
        if MAJORITY in found:
            ax.axhline(found[MAJORITY][0], color=GREY, linestyle=":", label=MAJORITY)
        ax.set_xticks(range(len(features)), features)
        ax.set_ylabel(score)
        ax.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3)
        save_figure(figure, path)


def labelled(directory, name, target):
    """A split with its speakers and labels; InputError if it lacks them."""
    split = read_split(directory, name)
    if not split.speakers or not (split.emotions if target == "emo" else target in (split.dimensions or {})):
        raise InputError(f"{split.tsv}: has no speakers, or no “{target}”; make the manifest with speakers and labels")
    return split


def vectors(kind, splits, out, checkpoint, layers, workers):
    """{name of the features: {audio path: vector}}: eGeMAPS, kept in `out`, MFCCs, or layers of a checkpoint (see `run`)."""
    if kind == "mfcc":
        return {"MFCC": cepstra(splits, workers)}
    if kind == "egemaps":
        return {EGEMAPS: functionals(splits, out / "features.npz", workers)}
    return {f"layer {layer}": found for layer, found in encoded(splits, checkpoint, layers, workers).items()}


def usable(split, of_path, target):
    """(vectors, classes or values, speakers) of the utterances that have a label and a known speaker."""
    values = np.array(split.emotions) if target == "emo" else np.asarray(split.dimensions[target], dtype=np.float64)
    has = values != NO_EMOTION if target == "emo" else np.isfinite(values)
    kept = np.flatnonzero(has & (np.array(split.speakers) != UNKNOWN_SPEAKER))
    return np.stack([of_path[path] for path in _keys(split)])[kept], values[kept], np.array(split.speakers)[kept]


def normalised(features, speakers):
    """Features (n, width) with zero mean and unit variance over each speaker's rows; what is constant for a speaker becomes 0."""
    result = np.empty_like(features)
    for speaker in set(speakers):
        rows = np.array([s == speaker for s in speakers])
        std = features[rows].std(0)
        result[rows] = (features[rows] - features[rows].mean(0)) / np.where(std > 0, std, 1)
    return result


def functionals(splits, cache, workers):
    """{audio path: eGeMAPS functionals, float32 (88,)} of all splits, extracted in processes and kept in `cache` (.npz)."""
    from joblib import Parallel, delayed

    paths = sorted({path for split in splits for path in _keys(split)})
    key = fingerprint([(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths if Path(path).is_file()])
    if Path(cache).is_file():
        with np.load(cache) as kept:
            if str(kept["key"]) == key:
                return dict(zip(paths, kept["functionals"], strict=True))
    need("opensmile", "baseline", "the baseline, for research only,")
    blocks = [paths[i : i + 8] for i in range(0, len(paths), 8)]
    found = Parallel(n_jobs=workers, return_as="generator")(delayed(_extract)(block) for block in blocks)
    values = np.concatenate(list(progress(found, "eGeMAPS", total=len(blocks), unit="× 8 files")))
    with atomic(cache, "wb") as f:
        np.savez(f, functionals=values, key=key)
    return dict(zip(paths, values, strict=True))


def encoded(splits, checkpoint, layers, workers):
    """{layer: {key: mean and standard deviation over time, (2 × width,)}} of a frozen encoder, for the `_keys` of splits."""
    import torch

    from ..core.parallel import as_finished, one_thread
    from ..models.from_pretrained import load_encoder

    encoder = load_encoder(checkpoint)
    layers = list(layers or range(1, encoder.n_layers + 1))
    encoder.check_layers(layers)
    found = {layer: {} for layer in layers}

    def extract(key):
        split, index = places[key]
        samples = split.read(index)
        source = torch.from_numpy(audio.normalise(samples) if encoder.normalise else samples)[None]
        features, _ = encoder.features(source, [source.size(1)], layers)
        return key, {layer: _pooled(x, source) for layer, x in features.items()}

    places = {key: (split, index) for split in splits for index, key in enumerate(_keys(split))}
    work = [(key, 1) for key in sorted(places)]
    with one_thread():
        for key, vectors in progress(as_finished(extract, work, workers), "encoder", total=len(work), unit="files"):
            for layer, vector in vectors.items():
                found[layer][key] = vector
    return found


def cepstra(splits, workers):
    """{audio path: mean and standard deviation over time, (78,)} of 13 MFCCs with their first and second derivatives."""
    import torch

    from ..pseudo_labels.features import MFCC, MfccFeatures

    found = {}
    for split in splits:

        def consume(piece, features, split=split):
            path = str(split.audio(piece.utterance))
            found[path] = _pooled(features[MFCC][None], torch.from_numpy(audio.read(path))[None])

        for _ in MfccFeatures(workers).extract(split, [i for i in range(len(split)) if str(split.audio(i)) not in found], consume):
            pass
    return found


def _pooled(x, source):
    """Mean and standard deviation over the loud frames: features (1, frames, width), 50 or 100 a second, of (1, samples) → (2 × width,)."""
    from ..models.pooling import POOLINGS, loud_frames

    frames = audio.n_frames(source.size(1))
    loud = loud_frames(source, frames, SILENCE_DB)
    if x.size(1) > frames:  # 100 a second: each loud frame is two, and what is left at the end is silent
        loud = loud.repeat_interleave(2, dim=1)[:, : x.size(1)]
        x = x[:, : loud.size(1)]
    return POOLINGS["mean_std"](x.size(2))(x, loud)[0].numpy()


def _extract(paths):
    import opensmile

    smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals)
    return np.concatenate([smile.process_signal(audio.read(path), audio.SAMPLE_RATE).to_numpy() for path in paths])


def _keys(split):
    """What identifies the audio of each utterance: its path, and the speed if that is another."""
    ends = ["" if factor == 1 else f"@{factor:g}" for factor in getattr(split, "factors", np.ones(len(split)))]
    return [f"{split.audio(i)}{end}" for i, end in enumerate(ends)]


def machine(x, y):
    """A support vector machine, fitted to standardised features (n, width) and classes, or numbers, (n,)."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, SVR

    return make_pipeline(StandardScaler(), SVR() if y.dtype.kind == "f" else SVC(C=10, class_weight="balanced")).fit(x, y)


def _classes(known, unknown, x, z, _):
    """Class predictions; the columns p_CLASS are shares of the pairwise votes, not calibrated probabilities."""
    labelled = np.array([emotion != NO_EMOTION for emotion in known.emotions], dtype=bool)
    if not labelled.any():
        raise InputError(f"{known.tsv}: no utterance has a class; give a manifest with labels, or --target NAME")
    emotions = np.array(known.emotions)[labelled]
    classes, counts = np.unique(emotions, return_counts=True)
    if x is None:
        predicted = np.full(len(unknown), classes[counts.argmax()])
        scores = np.tile(counts / counts.sum(), (len(unknown), 1))
    else:
        fitted = machine(x[labelled], emotions)
        votes = fitted.decision_function(z).reshape(len(z), -1)
        votes = np.hstack([-votes, votes]) if votes.shape[1] == 1 else votes
        predicted, scores = fitted.predict(z), np.exp(votes) / np.exp(votes).sum(1, keepdims=True)
    references = known_references(unknown.emotions, classes, unknown.tsv)
    return ClassPredictions(list(unknown.ids), list(unknown.speakers), references, predicted.tolist(), classes.tolist(), scores)


def _dimension(known, unknown, x, z, name):
    reference, wanted = (np.asarray(split.dimensions[name], dtype=np.float64) for split in (known, unknown))
    rated = np.isfinite(reference)
    predicted = machine(x[rated], reference[rated]).predict(z)
    return DimensionPredictions(list(unknown.ids), list(unknown.speakers), [name], wanted[:, None], predicted[:, None])
