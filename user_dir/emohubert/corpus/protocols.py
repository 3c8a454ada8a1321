"""Protocols: how a corpus is divided into folds and splits. `manifests/NAME.py --protocol` offers them by name."""

from collections import Counter, defaultdict

import numpy as np

from ..core.errors import InputError

PROTOCOLS = {
    "folds": "the corpus's speaker-independent folds, one folder each, and all.*",
    "leave-one-speaker-out": "a folder for each speaker: the speaker is test, all others train, nothing is validation",
    "speaker-independent": "one train/valid/test, no speaker in two of them (60/20/20 of the speakers, each sex alike)",
    "seen": "one train/valid/test, every speaker in all of them (60/20/20 of each speaker's utterances, each class alike)",
    "both": "train/valid/test_seen share their speakers (as “seen”), the speakers of test are in none of them (20 %)",
}
"""Protocols that `protocol_splits` knows."""
SHARES = np.array([0.6, 0.2, 0.2])
"""Of train, valid and test in a random split."""


def protocol_splits(utterances, protocol, seed, folds=None, group_of=None):
    """The splits of a protocol of `PROTOCOLS`: {fold → {split → list of Utterance}}; the fold is "" where there is only one. `folds`: lists
    of speakers, for "folds". `group_of`: utterance → group of its speaker that is balanced (default: meta `sex`)."""
    if protocol == "folds":
        return speaker_folds(utterances, folds)
    if protocol == "leave-one-speaker-out":
        return leave_one_speaker_out(utterances)
    if protocol == "seen":
        return {"": stratified_split(utterances, seed)}
    group = {u.speaker: group_of(u) if group_of else u.meta.get("sex", "") for u in utterances}
    if protocol == "speaker-independent":
        train, valid, test = _choose_speakers(group, seed, 2)
        return {"": {name: speakers_of(utterances, s) for name, s in (("train", train), ("valid", valid), ("test", test))}}
    if protocol == "both":
        rest, unseen = _choose_speakers(group, seed, 1)
        seen = stratified_split(speakers_of(utterances, rest), seed)
        return {"": {"train": seen["train"], "valid": seen["valid"], "test": speakers_of(utterances, unseen), "test_seen": seen["test"]}}
    raise InputError(f"--protocol {protocol}: unknown; use one of {', '.join(PROTOCOLS)}")


def leave_one_speaker_out(utterances):
    """`fold1` …: each speaker, in the order of their ids, is test once, all others are train; InputError if there is only one."""
    speakers = sorted({u.speaker for u in utterances})
    if len(speakers) < 2:
        raise InputError(f"{len(speakers)} speaker: to leave one out, two are needed; use another --protocol")
    return folds_of(utterances, [({s}, ()) for s in speakers])


def folds_of(utterances, parts):
    """`fold1` …, one for each of `parts`: (speakers of test, speakers of validation, or none); train is everybody else."""
    everybody, folds = {u.speaker for u in utterances}, {}
    for k, (test, valid) in enumerate(parts, 1):
        speakers = {"train": everybody - {*test, *valid}, "valid": {*valid}, "test": {*test}}
        folds[f"fold{k}"] = {name: speakers_of(utterances, own) for name, own in speakers.items() if own}
    return folds


def speaker_folds(utterances, folds):
    """Speaker-independent cross-validation, `fold1` …: fold k tests the k-th list of speakers, validates on the next, trains on the rest."""
    listed, there = Counter(s for fold in folds for s in fold), {u.speaker for u in utterances}
    twice, missing = [s for s, n in listed.items() if n > 1], sorted(there - set(listed))
    if twice or missing:
        raise InputError(f"speaker {(twice or missing)[0]} is in {'several folds' if twice else 'no fold'}; correct the folds")
    groups = [fold for fold in folds if not there.isdisjoint(fold)]
    if len(groups) < 3:
        raise InputError(f"{len(groups)} of {len(folds)} folds have utterances, three are needed; use another --protocol")
    return folds_of(utterances, zip(groups, groups[1:] + groups[:1], strict=True))


def balanced_folds(group, k, seed):
    """Divide speakers (`group`: speaker → group, such as the sex) by chance into `k` lists of nearly equal size, each group alike."""
    if not 3 <= k <= len(group):
        raise InputError(f"{k} folds of {len(group)} speakers: give from 3 to {len(group)}")
    rng = np.random.default_rng([seed, 11])
    order = [s for g in sorted(set(group.values())) for s in rng.permutation(sorted(s for s in group if group[s] == g)).tolist()]
    return [order[i::k] for i in range(k)]


def stratified_split(utterances, seed):
    """60/20/20 % of the utterances, by chance, in (nearly) the same proportions for every speaker and class. Minimisation (Pocock & Simon
    1975): one by one they go where they least disturb the proportions; each speaker's first one to training."""
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
    return [set(order[parts * size :]), *(set(order[i * size : (i + 1) * size]) for i in range(parts))]


def speakers_of(utterances, speakers):
    """The utterances of some speakers."""
    return [u for u in utterances if u.speaker in speakers]
