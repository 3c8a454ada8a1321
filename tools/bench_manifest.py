#!/usr/bin/env python3
"""Measure what a manifest of many lines costs: seconds and memory of a training's set-up, and of each data-loader worker.

Makes a manifest of LINES utterances of 1 to 5 s (no audio), with speakers, sessions, ids, emotions, dimensions and one label
of 500 clusters for every frame, then runs each step in a process of its own:

  import       emohubert and both tasks, nothing else; what the other steps start from
  read_split   the audio list and all its sidecars
  pretraining  load_dataset("train") of speaker_hubert_pretraining, with labels and speakers
  finetuning   load_dataset("train") of emotion_finetuning, with all that its checkpoints keep
  dimensions   the same for arousal, valence and dominance
  epoch        the batches of one epoch, after `pretraining`
  worker       a process forked after `pretraining`, as data loaders do: 100 000 random utterances, all but their audio

Printed: seconds, and those of the processor; and in MB: the process before and after the step, the growth, the highest in
between and its growth; for the worker, the pages that are its own (private and written to).

  tools/bench_manifest.py --lines 1000000
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

STEPS = ("import", "read_split", "pretraining", "finetuning", "dimensions", "epoch", "worker")
CLUSTERS, SPEAKERS, SESSIONS, CLASSES = 500, 2000, 200, ("angry", "happy", "neutral", "sad")
TOUCHED = 100_000
_CHUNK = 20_000


def main(argv=None):
    from emohubert.core import cli  # here and below: `measure` says what importing costs
    from emohubert.core.errors import InputError

    @cli.command
    def run(argv):
        parser = cli.Parser(description=__doc__)
        parser.add_argument("--lines", type=int, default=1_000_000, help="utterances of the manifest")
        parser.add_argument("--dir", metavar="DIR", help="folder that keeps the manifest for another run (default: a temporary one)")
        parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="what is measured")
        parser.add_seed()
        args = parser.parse_args(argv)
        if args.lines < 1:
            raise InputError(f"--lines {args.lines}: give one utterance or more")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.dir or temporary)
            write_manifest(folder, args.lines, args.seed)
            columns = "".join(f"{c:>10}" for c in ("seconds", "CPU s", "before", "after", "growth", "peak", "growth"))
            print(f"{args.lines} utterances\n{'step':12}{columns}")
            for step in args.steps:
                found = measured_apart(step, folder)
                mb = [found[k] / 1e6 for k in ("before", "after", "peak")]
                numbers = (found["seconds"], found["cpu"], mb[0], mb[1], mb[1] - mb[0], mb[2], mb[2] - mb[0])
                own = f"   its own: {found['own'] / 1e6:.1f} MB" if "own" in found else ""
                print(f"{step:12}" + "".join(f"{x:10.1f}" for x in numbers) + own, flush=True)

    run(argv)


def write_manifest(folder, lines, seed=1):
    """Write `train.tsv`, its sidecars, `train.km` and the dictionaries, unless a manifest of so many lines is there."""
    import numpy as np

    from emohubert.core.files import atomic, make_folder, write_json, write_lines
    from emohubert.corpus.audio import n_frames

    stamp = make_folder(folder) / "bench.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == {"lines": lines, "seed": seed}:
        return
    rng = np.random.default_rng(seed)
    n_samples = rng.integers(16_000, 80_000, lines)
    speakers, classes = rng.integers(0, SPEAKERS, lines), rng.integers(0, len(CLASSES), lines)
    ids = [f"podcast_{s:05}/part_{i % 100:02}/utterance_{i:07}" for i, s in enumerate(speakers)]
    write_lines(folder / "train.tsv", ["/data/corpus/audio", *(f"{name}.wav\t{n}" for name, n in zip(ids, n_samples, strict=True))])
    write_lines(folder / "train.spk", (f"speaker_{s:05}" for s in speakers))
    write_lines(folder / "train.emo", (CLASSES[c] for c in classes))
    values = rng.uniform(0, 1, (lines, 3))
    write_lines(folder / "train.dim", ["arousal\tvalence\tdominance", *("\t".join(f"{x:.6g}" for x in v) for v in values)])
    meta = (f"{name}\t{'fm'[s % 2]}\tsession_{s % SESSIONS:03}\tof no use" for name, s in zip(ids, speakers, strict=True))
    write_lines(folder / "train.meta.tsv", ["id\tsex\tsession\tnote", *meta])
    write_lines(folder / "dict.spk.txt", (f"speaker_{s:05} 1" for s in range(SPEAKERS)))
    write_lines(folder / "dict.emo.txt", (f"{c} 1" for c in CLASSES))
    write_lines(folder / "dict.km.txt", (f"{c} 1" for c in range(CLUSTERS)))
    with atomic(folder / "train.km", "wb") as f:
        for first in range(0, lines, _CHUNK):
            f.write(label_lines(n_frames(n_samples[first : first + _CHUNK]), rng))
    write_json(stamp, {"lines": lines, "seed": seed})


def label_lines(frames, rng):
    """Random clusters as the bytes of a label file: one line for each number of frames."""
    import numpy as np

    clusters = rng.integers(0, CLUSTERS, frames.sum())
    text = np.empty((len(clusters), 4), dtype=np.uint8)
    text[:, :3] = clusters[:, None] // [100, 10, 1] % 10 + ord("0")
    text[:, 3] = ord(" ")
    text[np.cumsum(frames) - 1, 3] = ord("\n")
    kept = np.stack([clusters >= 100, clusters >= 10, *[np.ones(len(clusters), dtype=bool)] * 2], axis=1)
    return text[kept].tobytes()


def measured_apart(step, folder):
    """`measure` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", f"import bench_manifest as b; b.measure({step!r}, {str(folder)!r})"],
        cwd=Path(__file__).resolve().parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{step}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(step, folder):
    """Run a step and print JSON: seconds, and bytes of memory before, after, at the highest and, of a worker, of its own."""
    start, before = clocks(), memory("VmRSS")
    from emohubert.corpus import manifest
    from emohubert.tasks import emotion_finetuning, speaker_hubert_pretraining

    if step == "import":
        print(json.dumps({**since(start), "before": before, "after": memory("VmRSS"), "peak": memory("VmHWM")}))
        return
    steps = {
        "read_split": lambda: manifest.read_split(folder, "train"),
        "pretraining": lambda: pretraining(speaker_hubert_pretraining, folder),
        "finetuning": lambda: finetuning(emotion_finetuning, folder, "emo"),
        "dimensions": lambda: finetuning(emotion_finetuning, folder, ["arousal", "valence", "dominance"]),
    }
    if step in ("epoch", "worker"):
        dataset = pretraining(speaker_hubert_pretraining, folder)
        steps["epoch"] = lambda: dataset.batch_by_size(dataset.ordered_indices(), max_tokens=5_600_000)
        steps["worker"] = lambda: forked(dataset)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
    start, before = clocks(), memory("VmRSS")
    kept = steps[step]()
    found = {**since(start), "before": before, "peak": memory("VmHWM")}
    gc.collect()
    found["after"] = memory("VmRSS")
    print(json.dumps(kept if step == "worker" else found))


def pretraining(module, folder):
    """The training set of speaker_hubert_pretraining."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.structured(module.SpeakerHubertPretrainingConfig)
    task = module.SpeakerHubertPretrainingTask(OmegaConf.merge(cfg, {"data": folder, "check_audio": False, "seed": 1, "update_freq": [1]}))
    _ = task.label_sets, task.speakers
    task.load_dataset("train")
    return task.datasets["train"]


def finetuning(module, folder, target):
    """The training set of emotion_finetuning, and what its checkpoints keep."""
    from omegaconf import OmegaConf

    from emohubert.models.emotion import EmotionHubertConfig

    cfg = OmegaConf.structured(module.EmotionFinetuningConfig)
    task = module.EmotionFinetuningTask(
        OmegaConf.merge(cfg, {"data": folder, "target": target, "check_audio": False, "seed": 1, "update_freq": [1]})
    )
    task.model_cfg = OmegaConf.structured(EmotionHubertConfig)
    task.model_cfg.backbone = {"encoder_embed_dim": 768, "speaker_position": "input"}
    task.state.merge_state_dict({"speakers": [f"speaker_{s:05}" for s in range(SPEAKERS)]})
    if target == "emo":
        _ = task.classes, task.state.class_counts
    _ = task.state.training_speakers
    task.load_dataset("train")
    return task.datasets["train"]


def forked(dataset):
    """What a worker costs after it has looked at utterances in every way but for their audio."""
    import numpy as np

    from emohubert.corpus.audio import HOP, n_frames

    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        with os.fdopen(read_end) as f:
            found = json.loads(f.read())
        os.waitpid(child, 0)
        return found
    before, start = memory("VmRSS"), clocks()
    indices = np.random.default_rng(0).integers(0, len(dataset), TOUCHED)
    for index in indices:
        start_sample, stop = dataset.crop(index)
        str(dataset.split.audio(index)), dataset.split.speakers[index], int(dataset.speaker_rows[index])
        frames = n_frames(stop - start_sample)
        dataset.labels[0].targets(index, start_sample // HOP, frames)
    found = {**since(start), "before": before, "after": memory("VmRSS"), "peak": memory("VmHWM")}
    with os.fdopen(write_end, "w") as f:
        f.write(json.dumps(found | {"own": memory("Private_Dirty", "smaps_rollup")}))
        f.flush()
        os._exit(0)


def clocks():
    """The time, and the processor's for this process."""
    return time.perf_counter(), time.process_time()


def since(start):
    """Seconds since `clocks()` gave `start`."""
    return {name: now - then for name, now, then in zip(("seconds", "cpu"), clocks(), start, strict=True)}


def memory(name, file="status"):
    """A line of /proc/self/FILE, in bytes."""
    with open(f"/proc/self/{file}", encoding="ascii") as f:
        return 1024 * next(int(line.split()[1]) for line in f if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
