"""What the corpus scripts in manifests/ share: finding, measuring and resampling audio, and writing the manifest directory."""

import argparse
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from ..core.cli import Parser
from ..core.errors import InputError, WriteError
from ..core.files import Stamp, atomic, make_folder, read_json
from ..core.parallel import in_threads
from .audio import EXTENSIONS, RECEPTIVE_FIELD, SAMPLE_RATE, probe, read
from .manifest import NO_EMOTION, check_splits, write_corpus
from .protocols import PROTOCOLS, protocol_splits

logger = logging.getLogger("emohubert")

STAMP = ".stamp.json"
_ROUNDED = SAMPLE_RATE // 100  # samples by which the end of a part may lie beyond the end of its file
_NAMED = 5  # left-out files that are named in the log; corpus.json names all


def parser(description, protocols=(), audio_help="folder of the corpus", own_protocols=None, classes=()):
    """The command line of a corpus script: AUDIO_DIR OUT_DIR and the options that all have. `protocols`: those it offers, the default
    first; `own_protocols`: name → description of those that only this corpus has; `classes`: for an option --classes that chooses some."""
    p = Parser(description=description)
    p.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help=audio_help)
    p.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the manifests")
    if protocols:
        known = PROTOCOLS | (own_protocols or {})
        text = "; ".join(f"{name}: {known[name]}" for name in protocols)
        p.add_argument("--protocol", choices=protocols, default=protocols[0], help=text.replace("%", "%%"))
    text = "convert the audio once to 16 kHz mono FLAC in DIR and list those files; without, files are converted whenever they are read"
    p.add_argument("--resample", type=Path, metavar="DIR", help=text)
    p.add_argument("--skip-damaged", action="store_true", help="leave damaged audio files out instead of stopping")
    p.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read audio")
    p.add_seed()
    p.add_overwrite()
    if classes:
        p.add_argument("--classes", nargs="+", choices=sorted(classes), metavar="CLASS", help="only these (default: all)")
    return p


def group(text):
    """A regular expression with a group, for argparse."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: not a regular expression ({error})") from None
    if not pattern.groups:
        raise argparse.ArgumentTypeError(f"{text}: has no group; put the speaker in parentheses")
    return pattern.pattern


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
    """Relative paths (sorted) of all audio files below a folder, or below `under` in it. Links are followed, after the folders that are
    there themselves, but each folder is searched once; hidden files and what is not searched go to `left_out`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the corpus")

    def unreadable(error):
        left_out[f"folders that cannot be read ({error.strerror})"].append(os.path.relpath(error.filename, folder))

    found, waiting = [], [folder / under]
    searched = set(map(str, waiting[0].resolve().parents))  # a link that leads above the corpus leads back into it
    for start in waiting:
        for where, folders, files in os.walk(start, onerror=unreadable):
            path = Path(where).relative_to(folder)
            if (real := os.path.realpath(where)) in searched:
                left_out["folders that links lead to once more"].append(path.as_posix())
                folders.clear()
                continue
            searched.add(real)
            folders.sort()
            waiting += [link for f in folders if (link := Path(where, f)).is_symlink()]
            for name in files:
                if Path(name).suffix.lower() in EXTENSIONS:
                    hidden = any(part.startswith(".") or part == "__MACOSX" for part in (*path.parts, name))
                    (left_out["hidden files, such as ._*"] if hidden else found).append((path / name).as_posix())
    return sorted(found)


def first_copies(paths, left_out, name=lambda path: Path(path).stem):
    """The paths whose `name` did not come before, in another folder or format (archives unpacked twice, converted copies)."""
    first = {}
    for path in paths:
        if first.setdefault(name(path), path) != path:
            left_out["a second copy of the same name"].append(path)
    return list(first.values())


def entries_by_name(args, corpus, pattern, entry, left_out, like, under=""):
    """Entries of all audio files whose names, without ending, match `pattern`; other files go to `left_out`. `entry`: function of a path
    and the match: an Utterance without length, or the reason (str) to leave it out. `like`: an example of a name, for the InputError if
    there is none. `under`: look only below this folder in the corpus folder."""
    entries, classes = [], getattr(args, "classes", None)
    for path in first_copies(find_audio(args.audio_dir, left_out, under), left_out):
        match = pattern.fullmatch(Path(path).stem)
        made = entry(path, match) if match else f"not named like {corpus}"
        if not isinstance(made, str) and classes and made.emotion not in classes:
            made = "another class"
        if isinstance(made, str):
            left_out[made].append(path)
        else:
            entries.append(made)
    check_found(entries, args.audio_dir, f"files named like {like}")
    if missing := set(classes or ()) - {u.emotion for u in entries}:
        raise InputError(f"{args.audio_dir}: holds no utterance of the class {min(missing)}; leave it out of --classes")
    return entries


def check_found(entries, folder, expected):
    """InputError with a remedy if `entries` is empty: the folder holds nothing of the corpus."""
    if not entries:
        raise InputError(f"{folder}: holds no {expected}; give the folder of the corpus as AUDIO_DIR")


def to_unit(value, low, high):
    """A value on the scale low..high as one on 0..1."""
    return (value - low) / (high - low)


def unit_scale(low, high):
    """What corpus.json says of a dimension that `to_unit` converted."""
    return {"min": 0, "max": 1, "original_min": low, "original_max": high}


def write(args, corpus, entries, protocol, *, everything=False, scales=None, left_out=None, source=None):
    """Measure the audio, split, write the manifest directory, and say what it holds; skipped when nothing changed. `entries`: list of
    Utterance of any length; `protocol`: function from the measured ones to {fold → {split → list of Utterance}}; `everything`: write
    `all.*` as well; `source`: whatever else the manifests depend on (JSON values). See `write_corpus`."""
    left_out = LeftOut() if left_out is None else left_out
    entries = _without_duplicates(entries, left_out)
    apart = ("audio_dir", "out_dir", "overwrite", "workers")
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in apart}
    hashed = _source(args.audio_dir, entries, [left_out, source])
    settings = {"corpus": corpus, "root": str(args.audio_dir.resolve()), "options": options, "source": hashed}
    earlier = _earlier_files(args.out_dir)
    stamp = Stamp(args.out_dir / STAMP, {**settings, "files": earlier}, [args.out_dir / f for f in earlier])
    if not args.overwrite and stamp.is_current():
        logger.info("%s: already made from the same files with the same options", args.out_dir)
        return
    root = args.resample or args.audio_dir
    if args.resample:
        entries = resample(args.audio_dir, root, entries, left_out, args.skip_damaged, args.workers, args.overwrite)
    else:
        entries = measure(root, entries, left_out, args.skip_damaged, args.workers)
    check_found(entries, args.audio_dir, "usable audio")
    folds = protocol(entries)
    for fold, splits in folds.items():
        check_splits(args.out_dir / fold, Path(root).resolve(), splits)
    make_folder(args.out_dir)
    stamp.clear()
    _remove(earlier, args.out_dir)
    write_corpus(args.out_dir, corpus, root, folds, entries if everything else None, options, scales, left_out)
    files = _written_files(args.out_dir, folds)
    files += [str(Path(root).resolve() / u.path) for u in entries if args.resample]
    Stamp(stamp.path, {**settings, "files": files}, []).write()
    left_out.log()
    for fold, splits in folds.items():
        logger.info("%s: %s", args.out_dir / fold, "; ".join(_summary(name, us) for name, us in splits.items()))


def write_protocol(args, corpus, entries, folds, **more):
    """`write` with the splits of --protocol (`folds`: as for `protocol_splits`), and with `all.*` if there are several folds."""
    everything = args.protocol in ("folds", "leave-one-speaker-out")
    write(args, corpus, entries, lambda us: protocol_splits(us, args.protocol, args.seed, folds), everything=everything, **more)


def measure(root, entries, left_out, skip_damaged=False, workers=4):
    """Fill in every entry's n_samples from its file's header; files without a single frame (under 400 samples) are left out."""
    return _each_file(entries, lambda u: probe(Path(root) / u.path), "reading headers", left_out, skip_damaged, workers)


def resample(source, target, entries, left_out, skip_damaged=False, workers=4, overwrite=False):
    """Convert every file to 16 kHz mono, 16 bit FLAC below `target`, unless it is there with the source's time of change and the right
    length; returns the entries with the new paths and lengths."""
    source, target, renamed, first = Path(source), Path(target), {}, {}
    for u in entries:
        renamed[u.path] = new = converted_path(u.path)
        if (other := first.setdefault(new, u.path)) != u.path:
            raise InputError(f"{source}: {other} and {u.path} would both become {new}; rename one, or work without --resample")
    folders = sorted({(target / new).parent for new in first})
    for folder in folders:
        if not Path(os.path.normpath(folder)).is_relative_to(os.path.normpath(target)):
            raise InputError(f"--resample {target}: files would be written to {folder}, outside of it; correct their paths")
        if folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"--resample {target}: lies in the corpus, where the next search would find the copies; give another folder")
    for folder in (target, *folders):
        make_folder(folder)

    def convert(u):
        old, new = source / (u.cut[0] if u.cut else u.path), target / renamed[u.path]
        start, stop = _span(u.cut, old, probe(old))
        expected, modified = stop - start, old.stat().st_mtime_ns
        if expected < RECEPTIVE_FIELD:  # will be left out
            return expected
        if overwrite or not _is_copy(new, modified, expected):
            write_audio(new, read(old, start, stop))
            os.utime(new, ns=(modified, modified))
        return expected

    measured = _each_file(entries, convert, "resampling", left_out, skip_damaged, workers)
    return [replace(u, path=renamed[u.path]) for u in measured]


def _span(cut, path, length):
    """First sample and the one after the last of what is taken of a recording; an end in a table may be rounded up."""
    _, start, stop, where = cut or ("", 0, None, "")
    stop = length if stop is None or length < stop <= length + _ROUNDED else stop
    if cut and not start < stop <= length:
        part, there = f"{start / SAMPLE_RATE:g} to {stop / SAMPLE_RATE:g} s", f"{length / SAMPLE_RATE:g} s"
        raise InputError(f"{where}: {path} lasts {there}, so there is no part from {part}; correct start and end, in seconds")
    return start, stop


def _is_copy(path, modified, length):
    """Whether a converted file is there, whole, and of its source as it is now."""
    try:
        return path.stat().st_mtime_ns == modified and probe(path) == length
    except (OSError, InputError):
        return False


def converted_path(path):
    """What `resample` calls the file that it makes of `path`."""
    return Path(path).with_suffix(".flac").as_posix()


def write_audio(path, wave):
    """Write a waveform (full scale ±1, beyond which it is clipped) as 16 kHz, 16 bit FLAC, atomically."""
    encoded = io.BytesIO()
    soundfile.write(encoded, np.clip(wave, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    with atomic(path, "wb") as f:
        f.write(encoded.getbuffer())


def _each_file(entries, function, description, left_out, skip_damaged, workers):
    """Apply a function to every entry in threads; returns the measured entries."""

    def attempt(u):
        try:
            return function(u)
        except WriteError:
            raise
        except InputError as error:
            return error

    measured, damaged = [], []
    for u, result in zip(entries, in_threads(attempt, entries, description, "files", workers), strict=True):
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


def _without_duplicates(entries, left_out):
    first = {}
    for u in entries:
        known = first.setdefault(u.path, u)
        if repr(known) != repr(u):
            raise InputError(f"{u.path} is listed twice with different labels; remove one of the two from the corpus")
        if known is not u:
            left_out["listed twice"].append(u.path)
    return list(first.values())


def _source(root, entries, more):
    """A hash that changes when the corpus does: labels, and every file's size and time of modification."""
    digest = hashlib.sha256()
    for u in entries:
        path = Path(root) / (u.cut[0] if u.cut else u.path)
        stat = path.stat() if os.path.isfile(path) else None
        row = [u.path, u.cut, u.speaker, u.emotion, u.dimensions, u.meta, u.votes, stat and stat.st_size, stat and stat.st_mtime_ns]
        digest.update(json.dumps(row, default=str).encode())
    digest.update(json.dumps(more, sort_keys=True).encode())
    return digest.hexdigest()


def _earlier_files(out_dir):
    """The files that an earlier run wrote, by its stamp: manifests, relative to the folder, and converted audio."""
    try:
        return list(map(str, read_json(Path(out_dir) / STAMP)["settings"]["files"]))
    except (InputError, KeyError, TypeError):
        return []


def _written_files(out_dir, folds):
    """Relative paths of the manifests of these folds, and of what goes with them."""
    names = {"corpus", "all", "dict", *(split for splits in folds.values() for split in splits)}
    folders = {out_dir, *(out_dir / fold for fold in folds)}
    found = [p for folder in folders for p in folder.iterdir() if p.is_file() and p.name.partition(".")[0] in names]
    return sorted(p.relative_to(out_dir).as_posix() for p in found)


def _remove(files, out_dir):
    """Delete the manifests of an earlier run, so that no fold of other options stays behind; never what is outside of the folder."""
    own = [out_dir / f for f in files if not os.path.isabs(f) and ".." not in Path(f).parts]
    for path in own:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in own} - {out_dir}:
        if not any(folder.iterdir()):
            folder.rmdir()


def _summary(name, utterances):
    hours = sum(u.n_samples for u in utterances) / SAMPLE_RATE / 3600
    classes = Counter(u.emotion for u in utterances if u.emotion != NO_EMOTION)
    counts = ", ".join(f"{c} {n}" for c, n in sorted(classes.items()))
    speakers = len({u.speaker for u in utterances})
    return f"{name} {len(utterances)} utterances, {hours:.2f} h, {speakers} speakers" + (f" ({counts})" if counts else "")
