"""Manifest directories without labels, made from others."""

from ..core.errors import InputError
from .manifest import NO_EMOTION, UNKNOWN_SPEAKER, Utterance, read_split, write_splits


def write_unlabelled(directory, out, parts):
    """Write a manifest directory of some splits' audio, speakers and sessions, without any labels; returns {new split: utterances}.
    `parts`: new split → names of the splits of `directory` that it is made of (none: it is not written)."""
    new, seen = {}, {}
    for name, sources in parts.items():
        for source in sources:
            split = read_split(directory, source)
            for i, (path, name_of) in enumerate(zip(split.paths, split.ids, strict=True)):
                if path in seen:
                    raise InputError(f"{split.where(i)}: {path} is in {seen[path]} too; give each utterance to one split")
                seen[path] = split.tsv
                speaker = split.speakers[i] if split.speakers else UNKNOWN_SPEAKER
                meta = {"id": name_of} | ({"session": split.meta["session"][i]} if split.meta and "session" in split.meta else {})
                new.setdefault(name, []).append(Utterance(path, int(split.n_samples[i]), speaker, NO_EMOTION, {}, meta))
    write_splits(out, split.root, new)
    return {name: len(utterances) for name, utterances in new.items()}
