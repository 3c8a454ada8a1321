"""The explorer of a run: `explore/index.html`, from `explorer.html.j2` and `explorer*.js`, and the clips it plays, in `explore/audio/`.

It is opened from the disk, without a server, and fetches nothing. Texts of the run never become markup: they are JSON in the page, with
`<` escaped, then text nodes, and the page's policy lets no script run but these.
"""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import Stamp, atomic, fingerprint, make_folder, sha256
from ..core.parallel import cores, pool
from ..corpus import audio
from ..corpus.manifest import read_split
from ..evaluation.predictions import ClassPredictions, read_attention, read_predictions
from ..provenance import records
from .table_cells import number

TEMPLATE, *SCRIPTS = (Path(__file__).with_name(name) for name in ("explorer.html.j2", "explorer_filters.js", "explorer.js"))
BARS = 100  # of the picture of a recording
_AHEAD = 16  # recordings that are read at a time
_LEVELS = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))


def write(run, most_mb=200, overwrite=False):
    """Write `explore/` into the folder of a RunFolder, unless it is there and made from the same files. Returns the path of the page and
    sentences about what it lacks, or None where nothing was to do; InputError: no evaluation has predictions that can be read.

    `most_mb`: MiB of recordings, FLAC at 16 kHz, those of the largest errors first; 0: none.
    """
    folder = make_folder(run.folder / "explore")
    page, notes = folder / "index.html", []
    found = [(e, *read) for e in run.evaluations if (read := _read(run, e, notes))]
    if not found:
        raise InputError(f"{run.folder}: no evaluation in it has a predictions.tsv that can be read; run tools/evaluate.py first")
    splits = {split.tsv: split for *_, places, _ in found for split, _ in places.values()}
    files = {TEMPLATE, *SCRIPTS, *(e.folder / name for e, *_ in found for name in ("predictions.tsv", "metrics.json"))}
    files |= {path for e in run.evaluations if (path := e.folder / "attention.npz").is_file()}
    files |= {path for split in splits.values() for path in split.files}
    settings = {"clips": most_mb, "notes": list(notes), "files": {str(path): sha256(path) for path in sorted(files)}}
    stamp = Stamp(folder / ".explore.json", settings, [page])
    if stamp.is_current() and not overwrite:
        return page, None
    stamp.clear()
    page.unlink(missing_ok=True)
    evaluations = [_data(*parts) for parts in found]
    pictures = _write_clips(make_folder(folder / "audio"), evaluations, most_mb, notes)
    for e in evaluations:
        e["clips"] = [name if (name := _clip_name(path)) in pictures else None for path in e.pop("paths")]
    with atomic(page) as f:
        f.write(_render(run.folder.resolve().name, evaluations, pictures, notes))
    stamp.write()
    return page, notes


def _render(title, evaluations, pictures, notes):
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, evaluations=evaluations, pictures=pictures, notes=notes, script=script, digest=digest)


# --- data -------------------------------------------------------------------------------------------------------------


def _read(run, evaluation, notes):
    """(predictions, {id: (Split, row)}, {id: attention}) of an evaluation; None without predictions. What is missing is told in `notes`."""
    try:
        if not (path := evaluation.folder / "predictions.tsv").is_file():
            raise InputError(f"{run.name_of(evaluation.folder)}: has no predictions.tsv")
        predictions, places, attention = read_predictions(path), {}, {}
        for part in _parts(run, evaluation):
            record = records.beside(part.folder / "predictions")
            listed = [records.read(record).facts.get("manifest")] if record.is_file() else []
            if tsv := next((Path(p) for p in (*listed, part.scores.get("split")) if p and Path(p).is_file()), None):
                split = read_split(tsv.parent, tsv.stem)
                places |= {name: (split, row) for row, name in enumerate(split.ids)}
            if (path := part.folder / "attention.npz").is_file():
                attention |= read_attention(path)
    except InputError as error:
        notes.append(f"Left out: {error}.")
        return None
    if missing := sum(name not in places for name in predictions.ids):
        notes.append(f"{run.name_of(evaluation.folder)}: the manifest of {missing} utterances was not found, so they have no audio here.")
    return predictions, places, attention


def _parts(run, evaluation):
    """The evaluations that were pooled into this one, or itself."""
    folders = {evaluation.folder.parents[1] / name for name in evaluation.scores.get("pooled") or ()}
    return [e for e in run.evaluations if e.folder.parent in folders] or [evaluation]


def _data(evaluation, predictions, places, attention):
    """What the page is told about an evaluation: JSON values, most of them lists over utterances. `paths` and `surprise` choose the clips."""
    found = [places.get(name) for name in predictions.ids]
    splits = {id(split): split for split, _ in filter(None, found)}.values()
    score, (value, _) = next(iter(evaluation.headline().items()))
    about = {"name": evaluation.name, "setting": evaluation.setting, "headline": f"{score} {number(value)}, n = {evaluation.scores['n']}"}
    about |= {"ids": predictions.ids, "speakers": predictions.speakers}

    def column(of):
        return [None if place is None else of(*place) for place in found]

    names = dict.fromkeys(name for split in splits for name in split.meta or {} if name != "id")
    meta = {name: column(lambda split, row, name=name: split.meta[name][row] if name in (split.meta or {}) else None) for name in names}
    if isinstance(predictions, ClassPredictions):
        reference, predicted = (predictions.indices(names).tolist() for names in (predictions.emotions, predictions.predicted))
        probability = predictions.probabilities[np.arange(len(predictions)), reference]
        surprise = np.where(predictions.scored, -np.log(np.maximum(probability, 1e-12)), 0.0)
        own = {"classes": predictions.classes, "p": _rounded(predictions.probabilities)}
    else:
        if any(split.emotions for split in splits):
            meta["emotion"] = column(lambda split, row: split.emotions[row] if split.emotions else None)
        reference, predicted = _rounded(predictions.references), _rounded(predictions.predicted)
        surprise = np.nan_to_num(np.abs(predictions.predicted - predictions.references)).max(1)
        own = {"dims": predictions.dims}
    return {
        **about,
        **own,
        "reference": reference,
        "predicted": predicted,
        "meta": meta,
        "attention": [_picture(_averages(attention[name])) if name in attention else None for name in predictions.ids],
        "seconds": column(lambda split, row: round(int(split.n_samples[row]) / audio.SAMPLE_RATE, 3)),
        "paths": column(lambda split, row: str(split.audio(row))),
        "surprise": surprise.tolist(),
    }


def _rounded(table):
    """Four significant digits, None for NaN, of an array (n, …): nested lists."""
    return [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in table.tolist()]


# --- audio ------------------------------------------------------------------------------------------------------------


def _write_clips(folder, evaluations, most_mb, notes):
    """Write the clips, in place of those that are there: {name: picture of the recording}."""
    for old in folder.glob("*.flac"):
        if re.fullmatch(r"[0-9a-f]{16}\.flac", old.name):
            old.unlink()
    surprise, pictures, left, errors = {}, {}, most_mb * 2**20, []
    for e in evaluations:
        for path, value in zip(e["paths"], e.pop("surprise"), strict=True):
            if path is not None:
                surprise[path] = max(value, surprise.get(path, 0.0))
    paths = sorted(surprise, key=surprise.get, reverse=True) if most_mb else []
    for path, clip, picture in progress(_encoded(paths), "clips", total=len(paths), unit="recordings"):
        if clip is None:
            errors.append(picture)
        elif (left := left - len(clip)) < 0:
            break
        else:
            pictures[name := _clip_name(path)] = picture
            with atomic(folder / name, "wb") as f:
                f.write(clip)
    if errors:
        notes.append(f"{len(errors)} recordings could not be read: {errors[0]}.")
    if beyond := len(paths) - len(pictures) - len(errors):
        notes.append(
            f"{beyond} of {len(paths)} recordings, those of the smallest errors, are beyond {most_mb:g} MiB of clips (--audio-mb)."
        )
    return pictures


def _encoded(paths):
    """(path, FLAC, picture) of recordings; (path, None, why not) of those that cannot be read."""
    for i in range(0, len(paths), _AHEAD):
        block = paths[i : i + _AHEAD]
        yield from ((path, *found) for path, found in zip(block, pool(cores()).map(_encode, block), strict=True))


def _encode(path):
    import soundfile

    try:
        samples = audio.read(path)
    except InputError as error:
        return None, str(error)
    memory = io.BytesIO()
    soundfile.write(memory, np.clip(samples, -1, 1), audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    peaks = np.array([np.abs(part).max(initial=0) for part in np.array_split(samples, BARS)])
    return memory.getvalue(), _picture(peaks)


def _averages(values):
    """Means over `BARS` equal parts of values (n), which need not hold whole values."""
    sums, n = np.append(0, values.cumsum(dtype=np.float64)), len(values)
    return np.diff(np.interp(np.linspace(0, n, BARS + 1), np.arange(n + 1), sums))


def _picture(heights):
    """Heights of 0 or more, relative to the largest: a character each, 0 to z."""
    return "".join(_LEVELS[np.rint(35 * heights / max(heights.max(), 1e-9)).astype(int)])


def _clip_name(path):
    return f"{fingerprint(path)}.flac"
