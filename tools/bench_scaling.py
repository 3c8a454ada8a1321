#!/usr/bin/env python3
"""The overhead of training on many processes: waiting for the slowest, and reading audio.

Waiting: the share of time that processes wait for the one with the most to do, were every update as long as its largest part. Ours
cuts the batch of an update into parts that take equally long (`batching.divided`); fairseq makes batches for each process by itself
(its own `batch_by_size`, sorted as its HubertDataset does) and deals them out shuffled. Lengths: those of MANIFEST_DIR, or an emotion
corpus's: --utterances of 0.5 to 15 s, 3 s in the middle; longer ones are cropped as in the configuration (250 000 samples). Batches
are limited by audio (87.5 s, as in pretraining), or by utterances (--batch-size, as in fine-tuning).

Reading, with MANIFEST_DIR: seconds of audio that one process reads in a second, whole utterances in random order, every --files of
them once: from plain files; with --packed, the folder that tools/pack_audio.py made of it, from tar shards, too.

  tools/bench_scaling.py
  tools/bench_scaling.py exp/emodb/fold1 --packed exp/emodb_packed/fold1 --files 300
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

import numpy as np

from emohubert.core import cli
from emohubert.core.batching import divided
from emohubert.corpus import audio
from emohubert.corpus.manifest import read_split

CROP, BUDGET = 250_000, 1_400_000


def waiting(costs, parts):
    """Share of the processes' time that is spent waiting. costs: of batches, those of an update next to each other."""
    updates = np.array(costs[: len(costs) // parts * parts]).reshape(-1, parts)
    return 1 - updates.sum() / (updates.max(axis=1) * parts).sum()


def ours(lengths, parts, budget, most, seed):
    """Samples in each part, padding counted."""
    batches = divided(lengths, parts, budget, most, rng=np.random.default_rng(seed))
    return [int(lengths[b].max()) * len(b) if len(b) else 0 for b in batches]


def fairseqs(lengths, budget, most, seed):
    """The same for fairseq's batches, shuffled."""
    from fairseq.data import data_utils

    rng = np.random.default_rng(seed)
    order = np.lexsort([rng.permutation(len(lengths)), lengths])[::-1].astype(np.int64)
    batches = data_utils.batch_by_size(
        order, num_tokens_vec=lengths[order], num_tokens_fn=lambda i: lengths[i], max_tokens=budget, max_sentences=most
    )
    return rng.permutation([int(lengths[b].max()) * len(b) for b in batches]).tolist()


def reading(directory, split, files, seed):
    """Seconds of audio read in a second by this process."""
    found = read_split(directory, split)
    chosen = np.random.default_rng(seed).permutation(len(found))[:files]
    for i in chosen[:5]:
        audio.read(found.audio(i))
    began = time.perf_counter()
    samples = sum(len(audio.read(found.audio(i), n_samples=int(found.n_samples[i]))) for i in chosen)
    return samples / audio.SAMPLE_RATE / (time.perf_counter() - began)


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", nargs="?", help="manifest directory with a split")
    parser.add_argument("--split", default="train", help="its split")
    parser.add_argument("--packed", metavar="DIR", help="the same in tar shards")
    parser.add_argument("--files", type=int, default=300, metavar="N", help="recordings to read")
    parser.add_argument("--utterances", type=int, default=1_000_000, metavar="N", help="utterances without MANIFEST_DIR")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 64, 512], metavar="N", help="processes to divide batches among")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="utterances on each process, where that limits batches")
    parser.add_seed()
    args = parser.parse_args(argv)
    if args.manifest_dir:
        lengths = read_split(args.manifest_dir, args.split).n_samples
    else:
        drawn = np.random.default_rng(args.seed).lognormal(1.1, 0.5, args.utterances)
        lengths = (np.clip(drawn, 0.5, 15) * audio.SAMPLE_RATE).astype(np.int64)
    lengths = np.minimum(lengths, CROP)
    print(f"{len(lengths)} utterances, {lengths.sum() / audio.SAMPLE_RATE / 3600:.2f} hours\n")
    print("| batch of a process | processes | updates | waiting, fairseq | waiting, ours |\n| --- | --- | --- | --- | --- |")
    for name, budget, most in ((f"{BUDGET / audio.SAMPLE_RATE} s", BUDGET, None), (f"{args.batch_size} utterances", None, args.batch_size)):
        theirs = fairseqs(lengths, budget, most, args.seed)
        for parts in args.processes:
            if len(theirs) >= parts:
                found = ours(lengths, parts, budget, most, args.seed)
                print(f"| {name} | {parts} | {len(found) // parts} | {waiting(theirs, parts):.1%} | {waiting(found, parts):.1%} |")
    if args.manifest_dir:
        print("\n| audio | seconds of it read in a second |\n| --- | --- |")
        print(f"| plain files | {reading(args.manifest_dir, args.split, args.files, args.seed):.0f} |")
        if args.packed:
            print(f"| tar shards | {reading(args.packed, args.split, args.files, args.seed):.0f} |")


if __name__ == "__main__":
    main()
