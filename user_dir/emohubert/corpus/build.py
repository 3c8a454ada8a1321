"""What the corpus scripts in manifests/ share: finding and measuring audio, protocols (folds and splits), and writing."""

import csv
import hashlib
import io
import json
import logging
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from ..core.cli import Parser, progress
from ..core.errors import InputError
from ..core.files import Stamp, make_folder, reading_text
from .audio import EXTENSIONS, RECEPTIVE_FIELD, SAMPLE_RATE, probe, read
from .manifest import NO_EMOTION, read_json, write_corpus

logger = logging.getLogger("emohubert")

PROTOCOLS = {
    "folds": "the corpus's speaker-independent folds, one folder each, and all.*",
    "leave-one-speaker-out": "a folder for each speaker: the speaker is test, all others train, nothing is validation",
    "speaker-independent": "one train/valid/test, no speaker in two of them (60/20/20 of the speakers, each sex alike)",
    "seen": "one train/valid/test, every speaker in all of them (60/20/20 of each speaker's utterances, each class alike)",
    "both": "train/valid/test_seen share their speakers (as “seen”), the speakers of test are in none of them (20 %)",
}
"""Protocols that `protocol_splits` knows."""
STAMP = ".stamp.json"
SHARES = np.array([0.6, 0.2, 0.2])
"""Of train, valid and test in a random split."""
_NAMED = 5  # left-out files that are named in the log; corpus.json names all


def parser(description, protocols=(), audio_help="folder of the corpus", own_protocols=None):
    """The command line of a corpus script: AUDIO_DIR OUT_DIR and the options that all have.

    Args:
        description: the script's docstring.
        protocols: names of the protocols it offers, the default first.
        audio_help: what AUDIO_DIR is.
        own_protocols: name → description of protocols that only this corpus has.
    """
    p = Parser(description=description)
    p.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help=audio_help)
    p.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the manifests")
    if protocols:
        known = PROTOCOLS | (own_protocols or {})
        text = "; ".join(f"{name}: {known[name]}" for name in protocols)
        p.add_argument("--protocol", choices=protocols, default=protocols[0], help=text.replace("%", "%%"))
    p.add_argument(
        "--resample",
        type=Path,
        metavar="DIR",
        help="convert the audio once to 16 kHz mono FLAC in DIR and list those files; without, files are converted whenever they are read",
    )
    p.add_argument("--skip-damaged", action="store_true", help="leave damaged audio files out instead of stopping")
    p.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read audio")
    p.add_seed()
    p.add_overwrite()
    return p


class LeftOut(defaultdict):
    """Reason → list of what is not in the manifests."""

    def __init__(self):
        super().__init__(list)

    def log(self):
        """Count and name everything that is left out."""
        for reason, items in self.items():
            more = f", … and {len(items) - _NAMED} more (all in corpus.json)" if len(items) > _NAMED else ""
            logger.info("left out, %s: %d (%s%s)", reason, len(items), ", ".join(sorted(items)[:_NAMED]), more)


def find_audio(folder, left_out, under=""):
    """Relative paths (forward slashes, sorted) of all audio files below a folder, links followed.

    Hidden files and what macOS adds to archives (`._name`, `__MACOSX`) are left out.

    Args:
        folder: the folder.
        left_out: LeftOut that takes the names of what is left out.
        under: look only below this folder in it.

    Raises:
        InputError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the corpus")
    found = []
    for where, folders, files in os.walk(folder / under, followlinks=True):
        folders.sort()
        for name in files:
            if Path(name).suffix.lower() in EXTENSIONS:
                path = (Path(where) / name).relative_to(folder)
                if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
                    left_out["hidden files, such as ._*"].append(path.as_posix())
                else:
                    found.append(path.as_posix())
    return sorted(found)


def first_copies(paths, left_out):
    """The paths whose file name did not come before in another folder or format (archives unpacked twice, converted copies)."""
    first = {}
    for path in paths:
        if first.setdefault(Path(path).stem, path) != path:
            left_out["a second copy of the same name"].append(path)
    return list(first.values())


def read_text(path, errors="strict"):
    """A text file of a corpus, UTF-8 with or without a byte-order mark, any line ends.

    Args:
        path: the file.
        errors: "replace" where only the ASCII part matters.

    Raises:
        InputError: missing, or not such text.
    """
    with reading_text(path, "give its place in the options, or complete the corpus folder"):
        return Path(path).read_bytes().decode("utf-8-sig", errors)


def read_delimited(path):
    """A CSV or TSV file with a header; the delimiter (tab, comma, semicolon or |) is the one that the header has most of.

    Returns:
        (column names, list of (line number, {column: text})); texts are stripped, empty lines skipped.

    Raises:
        InputError: missing, not text, without a line of data, or a line with another number of columns.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;|", key=header.count), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; correct the quotes or the delimiter") from error
    if len(lines) < 2:
        raise InputError(f"{path}: lists nothing; the first line must name the columns, one line per utterance must follow")
    columns = lines[0][1]
    twice = next((name for name, n in Counter(columns).items() if n > 1), None)
    if twice is not None:
        raise InputError(f"{path}:1: the column “{twice}” is there twice; rename one")
    for number, row in lines[1:]:
        if len(row) != len(columns):
            raise InputError(f"{path}:{number}: {len(row)} columns where the header has {len(columns)}; correct the line")
    return columns, [(number, dict(zip(columns, row, strict=True))) for number, row in lines[1:]]


def need_columns(path, columns, needed):
    """Raise an error that names what a table lacks.

    Raises:
        InputError: one of `needed` is not among the columns.
    """
    for name in needed:
        if name not in columns:
            raise InputError(f"{path}:1: has no column “{name}” (it has {', '.join(columns)}); use the file of the release")


def to_unit(value, low, high):
    """A value on the scale low..high as one on 0..1."""
    return (value - low) / (high - low)


def unit_scale(low, high):
    """What corpus.json says of a dimension that `to_unit` converted."""
    return {"min": 0, "max": 1, "original_min": low, "original_max": high}


def check_found(entries, folder, expected):
    """Raise a helpful error when a folder held nothing of the corpus.

    Raises:
        InputError: `entries` is empty.
    """
    if not entries:
        raise InputError(f"{folder}: holds no {expected}; give the folder of the corpus as AUDIO_DIR")


def check_classes(entries, args):
    """Raise an error that names a class of --classes without an utterance.

    Raises:
        InputError: there is one.
    """
    missing = set(args.classes or ()) - {u.emotion for u in entries}
    if missing:
        raise InputError(f"{args.audio_dir}: holds no utterance of the class {min(missing)}; leave it out of --classes")


def protocol_splits(utterances, protocol, seed, folds=None, group_of=None):
    """The splits of a protocol of `PROTOCOLS`.

    Args:
        utterances: list of Utterance.
        protocol: its name.
        seed: of every choice by chance.
        folds: for "folds": list of lists of speakers; fold k tests the k-th, validates on the next, trains on the rest.
        group_of: utterance → group of its speaker that the choice of speakers balances (default: meta `sex`).

    Returns:
        fold → {split → list of Utterance}; the fold is "" where there is only one.
    """
    if protocol == "folds":
        return speaker_folds(utterances, folds)
    if protocol == "leave-one-speaker-out":
        return leave_one_speaker_out(utterances)
    if protocol == "seen":
        return {"": stratified_split(utterances, seed)}
    group = {u.speaker: group_of(u) if group_of else u.meta.get("sex", "") for u in utterances}
    if protocol == "speaker-independent":
        train, valid, test = _choose_speakers(group, seed, 2)
        return {"": {name: _of(utterances, s) for name, s in (("train", train), ("valid", valid), ("test", test))}}
    if protocol == "both":
        rest, unseen = _choose_speakers(group, seed, 1)
        seen = stratified_split(_of(utterances, rest), seed)
        return {"": {"train": seen["train"], "valid": seen["valid"], "test": _of(utterances, unseen), "test_seen": seen["test"]}}
    raise InputError(f"--protocol {protocol}: unknown; use one of {', '.join(PROTOCOLS)}")


def leave_one_speaker_out(utterances):
    """`fold1` … : each speaker, in the order of their ids, is test once; all others are train.

    Raises:
        InputError: there is only one speaker.
    """
    speakers = sorted({u.speaker for u in utterances})
    if len(speakers) < 2:
        raise InputError(f"{len(speakers)} speaker: to leave one out, two are needed; use another --protocol")
    return {
        f"fold{k}": {"train": [u for u in utterances if u.speaker != s], "test": [u for u in utterances if u.speaker == s]}
        for k, s in enumerate(speakers, 1)
    }


def speaker_folds(utterances, folds):
    """Speaker-independent cross-validation: `fold1` … in order.

    Args:
        utterances: list of Utterance.
        folds: list of at least three lists of speakers; fold k tests the k-th, validates on the next, trains on the rest.

    Raises:
        InputError: fewer than three folds have utterances, or a speaker is in none or in several.
    """
    listed = Counter(s for fold in folds for s in fold)
    twice = [s for s, n in listed.items() if n > 1]
    missing = sorted({u.speaker for u in utterances} - set(listed))
    if twice or missing:
        raise InputError(f"speaker {(twice or missing)[0]} is in {'several folds' if twice else 'no fold'}; correct the folds")
    groups = [g for g in (_of(utterances, set(fold)) for fold in folds) if g]
    if len(groups) < 3:
        raise InputError(f"{len(groups)} of {len(folds)} folds have utterances, three are needed; use another --protocol")
    result = {}
    for k, test in enumerate(groups):
        valid = groups[(k + 1) % len(groups)]
        used = {u.speaker for u in (*test, *valid)}
        result[f"fold{k + 1}"] = {"train": [u for u in utterances if u.speaker not in used], "valid": valid, "test": test}
    return result


def balanced_folds(group, k, seed):
    """Divide speakers into `k` lists of nearly equal size with nearly equal shares of each group, by chance.

    Args:
        group: speaker → group, such as the sex.
        k: number of folds.
        seed: of the choice.

    Raises:
        InputError: k is out of range.
    """
    if not 3 <= k <= len(group):
        raise InputError(f"{k} folds of {len(group)} speakers: give from 3 to {len(group)}")
    rng = np.random.default_rng([seed, 11])
    order = [s for g in sorted(set(group.values())) for s in rng.permutation(sorted(s for s in group if group[s] == g)).tolist()]
    return [order[i::k] for i in range(k)]


def stratified_split(utterances, seed):
    """60 % train, 20 % valid, 20 % test of the utterances, by chance, in (nearly) the same proportions for every speaker and class.

    Minimisation (Pocock & Simon 1975): the utterances, shuffled within speaker and class, go one by one where they least
    disturb the proportions of the speaker, the class, the speaker's class, and the whole. Each speaker's first one goes
    to the training part, so that training knows every speaker.

    Args:
        utterances: list of Utterance.
        seed: of every draw.
    """
    rng = np.random.default_rng([seed, 12])
    shuffled = [utterances[i] for i in rng.permutation(len(utterances))]
    counts = defaultdict(lambda: np.zeros(len(SHARES)))  # group → utterances in each part
    where, known = {}, set()
    for u in sorted(shuffled, key=lambda u: (u.speaker, u.emotion)):
        groups = ((), (u.speaker,), (u.emotion, None), (u.speaker, u.emotion))
        room = sum(SHARES * (counts[g].sum() + 1) - counts[g] for g in groups) / SHARES
        best = int(np.argmax(room + 1e-6 * rng.random(len(SHARES)))) if u.speaker in known else 0
        where[u.path] = best
        known.add(u.speaker)
        for g in groups:
            counts[g][best] += 1
    return {name: [u for u in utterances if where[u.path] == i] for i, name in enumerate(("train", "valid", "test"))}


def _choose_speakers(group, seed, parts):
    """The speakers, less `parts` choices of a fifth of them (at least one), each group in proportion: [rest, part, part, …]."""
    rng = np.random.default_rng([seed, 13])
    if len(group) < parts + 1:
        raise InputError(f"{len(group)} speakers cannot be divided into {parts + 1} parts; use --protocol seen, or more speakers")
    order = []
    for name in sorted(set(group.values())):
        members = rng.permutation(sorted(s for s in group if group[s] == name)).tolist()
        start = rng.random()  # every group is spread evenly over 0..1, so that any run of the merged order has them in proportion
        order += [((i + start) / len(members), s) for i, s in enumerate(members)]
    order = [s for _, s in sorted(order)]
    size = max(1, round(len(order) / 5))
    chosen = [set(order[i * size : (i + 1) * size]) for i in range(parts)]
    return [set(order[parts * size :]), *chosen]


def _of(utterances, speakers):
    return [u for u in utterances if u.speaker in speakers]


def write(args, corpus, entries, protocol, *, everything=False, scales=None, left_out=None, source=None):
    """Measure the audio, split, write the manifest directory, and say what it holds; skipped when nothing changed.

    Args:
        args: the parsed command line of `parser`.
        corpus: name of the corpus.
        entries: list of Utterance whose n_samples is not known yet.
        protocol: function from the measured utterances to {fold → {split → list of Utterance}}.
        everything: write `all.*` as well.
        scales: dimension → {"min": …, "max": …, …}.
        left_out: LeftOut so far.
        source: whatever else, beside options and entries, the manifests depend on (JSON-able).

    Raises:
        InputError: audio is damaged, or a split would be empty.
    """
    left_out = LeftOut() if left_out is None else left_out
    entries = _without_duplicates(entries, left_out)
    apart = ("audio_dir", "out_dir", "overwrite", "workers")
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in apart}
    hashed = _source(args.audio_dir, entries, [left_out, source])
    settings = {"corpus": corpus, "root": str(args.audio_dir.resolve()), "options": options, "source": hashed}
    earlier = _earlier_files(args.out_dir)
    manifests = [args.out_dir / f for f in earlier]
    converted = [args.resample / converted_path(u.path) for u in entries] if args.resample else []
    stamp = Stamp(args.out_dir / STAMP, {**settings, "files": earlier}, [*manifests, *converted])
    if not args.overwrite and stamp.is_current():
        logger.info("%s: already made from the same files with the same options", args.out_dir)
        return
    root = args.audio_dir
    if args.resample:
        root = args.resample
        entries = resample(args.audio_dir, root, entries, left_out, args.skip_damaged, args.workers, args.overwrite)
    else:
        entries = measure(root, entries, left_out, args.skip_damaged, args.workers)
    check_found(entries, args.audio_dir, "usable audio")
    folds = protocol(entries)
    make_folder(args.out_dir)
    stamp.clear()
    _remove(manifests, args.out_dir)
    listed = entries if everything else None
    write_corpus(args.out_dir, corpus, root, folds, listed, options=options, scales=scales, left_out=left_out)
    Stamp(stamp.path, {**settings, "files": _written_files(args.out_dir, folds)}, []).write()
    left_out.log()
    for fold, splits in folds.items():
        logger.info("%s: %s", args.out_dir / fold, "; ".join(_summary(name, us) for name, us in splits.items()))


def write_protocol(args, corpus, entries, folds, **more):
    """`write` with the splits of --protocol, one of `PROTOCOLS`, and with `all.*` where there are several folds.

    Args:
        args, corpus, entries, more: as for `write`.
        folds: as for `protocol_splits`.
    """
    everything = args.protocol in ("folds", "leave-one-speaker-out")
    write(args, corpus, entries, lambda us: protocol_splits(us, args.protocol, args.seed, folds), everything=everything, **more)


def measure(root, entries, left_out, skip_damaged=False, workers=4):
    """Read every file's header and fill in n_samples; files without a single frame (under 400 samples) are left out.

    Raises:
        InputError: a file is damaged, unless `skip_damaged`.
    """
    return _each_file(entries, lambda u: probe(Path(root) / u.path).n_samples, "reading headers", left_out, skip_damaged, workers)


def resample(source, target, entries, left_out, skip_damaged=False, workers=4, overwrite=False):
    """Convert every file to 16 kHz mono, 16 bit FLAC below `target`, and return the entries with the new paths and lengths.

    A file that is already there is kept when it has the source's time of modification and the right length, unless `overwrite`.

    Raises:
        InputError: a file is damaged (unless `skip_damaged`), two files would get the same name, or what was written does
            not read back with the right length.
    """
    source, target = Path(source), make_folder(target)
    if source.resolve() == target.resolve():
        raise InputError(f"--resample {target}: is the corpus folder itself; give another folder")
    renamed = {u.path: converted_path(u.path) for u in entries}
    clash = next((p for p, n in Counter(renamed.values()).items() if n > 1), None)
    if clash:
        raise InputError(f"{source}: two files would become {clash}; rename one, or work without --resample")
    for folder in sorted({(target / p).parent for p in renamed.values()}):
        make_folder(folder)
    clipped = []

    def convert(u):
        old, new = source / u.path, target / renamed[u.path]
        expected, modified = probe(old).n_samples, old.stat().st_mtime_ns
        if overwrite or not (new.is_file() and new.stat().st_mtime_ns == modified and probe(new).n_samples == expected):
            wave = read(old)
            if np.abs(wave).max(initial=0) > 1:
                clipped.append(u.path)
            write_audio(new, wave)
            if probe(new).n_samples != expected:
                raise InputError(f"{new}: {probe(new).n_samples} samples were written instead of {expected}; run again with --overwrite")
            os.utime(new, ns=(modified, modified))
        return expected

    measured = _each_file(entries, convert, "resampling", left_out, skip_damaged, workers)
    if clipped:
        logger.info("%d files went beyond full scale and were clipped, such as %s", len(clipped), sorted(clipped)[0])
    return [replace(u, path=renamed[u.path]) for u in measured]


def converted_path(path):
    """What `resample` calls the file that it makes of `path`."""
    return Path(path).with_suffix(".flac").as_posix()


def write_audio(path, wave):
    """Write a waveform (full scale ±1) as 16 kHz, 16 bit FLAC, atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(temporary, np.clip(wave, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        temporary.replace(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{path}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _each_file(entries, function, description, left_out, skip_damaged, workers):
    """Apply a function to every entry in threads (decoding happens outside Python's lock); returns the measured entries."""
    measured, damaged = [], []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        results = pool.map(lambda u: _attempt(function, u), entries)
        for u, result in zip(entries, progress(results, description, total=len(entries), unit="files"), strict=True):
            if isinstance(result, InputError):
                damaged.append((u.path, result))
            elif result < RECEPTIVE_FIELD:
                left_out[f"shorter than one frame ({RECEPTIVE_FIELD} samples)"].append(u.path)
            else:
                measured.append(replace(u, n_samples=result))
    if damaged and not skip_damaged:
        more = f" ({len(damaged)} files are damaged or missing)" if len(damaged) > 1 else ""
        raise InputError(f"{damaged[0][1]}{more}; or leave such files out with --skip-damaged")
    for path, error in damaged:
        logger.warning("%s", error)
        left_out["damaged or unreadable"].append(path)
    return measured


def _attempt(function, u):
    try:
        return function(u)
    except InputError as error:
        return error


def _without_duplicates(entries, left_out):
    first, kept = {}, []
    for u in entries:
        known = first.setdefault(u.path, u)
        if known is u:
            kept.append(u)
        elif repr(known) == repr(u):
            left_out["listed twice"].append(u.path)
        else:
            raise InputError(f"{u.path} is listed twice with different labels; remove one of the two from the corpus")
    return kept


def _source(root, entries, more):
    """A hash that changes when the corpus does: labels, and every file's size and time of modification."""
    digest = hashlib.sha256()
    for u in entries:
        path = Path(root) / u.path
        stat = path.stat() if path.is_file() else None
        row = [u.path, u.speaker, u.emotion, u.dimensions, u.meta, stat and stat.st_size, stat and stat.st_mtime_ns]
        digest.update(json.dumps(row, default=str).encode())
    digest.update(json.dumps(more, sort_keys=True).encode())
    return digest.hexdigest()


def _earlier_files(out_dir):
    """Relative paths of the files that an earlier run wrote, by its stamp."""
    try:
        files = [Path(f) for f in read_json(Path(out_dir) / STAMP)["settings"]["files"]]
    except (InputError, KeyError, TypeError):
        return []
    return [f.as_posix() for f in files if not f.is_absolute() and ".." not in f.parts]  # they will be removed: never reach outside


def _written_files(out_dir, folds):
    """Relative paths of the manifests of these folds, and of what goes with them."""
    names = {"corpus", "all", "dict", *(split for splits in folds.values() for split in splits)}
    folders = {out_dir, *(out_dir / fold for fold in folds)}
    found = [p for folder in folders for p in folder.iterdir() if p.is_file() and p.name.partition(".")[0] in names]
    return sorted(p.relative_to(out_dir).as_posix() for p in found)


def _remove(files, out_dir):
    """Delete the manifests of an earlier run, so that no fold of other options stays behind."""
    for path in files:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in files} - {out_dir}:
        if not any(folder.iterdir()):
            folder.rmdir()


def _summary(name, utterances):
    hours = sum(u.n_samples for u in utterances) / SAMPLE_RATE / 3600
    classes = Counter(u.emotion for u in utterances if u.emotion != NO_EMOTION)
    counts = ", ".join(f"{c} {n}" for c, n in sorted(classes.items()))
    speakers = len({u.speaker for u in utterances})
    return f"{name} {len(utterances)} utterances, {hours:.2f} h, {speakers} speakers" + (f" ({counts})" if counts else "")
