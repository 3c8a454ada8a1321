"""A small corpus of noise with frame labels: quick to make, hard enough to find mistakes with."""

import numpy as np
import soundfile

from emohubert.corpus.audio import n_frames
from emohubert.corpus.manifest import Utterance, write_corpus

SPEAKERS = ("anna", "ben", "cleo", "dan")
CLASSES = ("angry", "happy", "neutral", "sad")
LABELS = 12


def make_corpus(folder, seconds=(0.3, 2.0), train=24, valid=8, test=8, seed=0):
    """Audio in folder/audio, manifest in folder/manifest with train, valid, test. Returns the manifest folder."""
    rng = np.random.default_rng(seed)
    audio = folder / "audio"
    audio.mkdir(parents=True)
    splits = {}
    for split, count in {"train": train, "valid": valid, "test": test}.items():
        splits[split] = []
        for i in range(count):
            n = int(rng.uniform(*seconds) * 16_000)
            speaker = SPEAKERS[i % len(SPEAKERS)]
            emotion = CLASSES[(i // len(SPEAKERS)) % len(CLASSES)]
            tone = np.sin(2 * np.pi * (100 + 150 * CLASSES.index(emotion)) * np.arange(n) / 16_000)
            wave = (0.1 * rng.standard_normal(n) + 0.3 * tone * rng.uniform(0.5, 1)).astype(np.float32)
            soundfile.write(audio / f"{split}{i:03}.wav", wave, 16_000)
            dimensions = {"arousal": CLASSES.index(emotion) / 3, "valence": float(rng.uniform())}
            meta = {"sex": "female" if speaker in ("anna", "cleo") else "male"}
            splits[split].append(Utterance(f"{split}{i:03}.wav", n, speaker, emotion, dimensions, meta))
    write_corpus(folder / "manifest", "noise", audio, {"": splits}, scales={"arousal": {"min": 0, "max": 1}})
    return folder / "manifest"


def make_labels(manifest_dir, label_dir, classes=LABELS, hop=320, seed=0, splits=("train", "valid", "test")):
    """Random frame labels of the right lengths and their dictionary."""
    rng = np.random.default_rng(seed)
    label_dir.mkdir(parents=True, exist_ok=True)
    for split in splits:
        lines = (manifest_dir / f"{split}.tsv").read_text().splitlines()[1:]
        rows = [rng.integers(0, classes, n_frames(int(line.split("\t")[1]), hop)) for line in lines]
        (label_dir / f"{split}.km").write_text("".join(" ".join(map(str, r)) + "\n" for r in rows))
    (label_dir / "dict.km.txt").write_text("".join(f"{i} 1\n" for i in range(classes)))
    return label_dir
