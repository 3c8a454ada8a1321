#!/usr/bin/env python3
"""Measure tools/make_labels.py against fairseq's simple_kmeans scripts on the same audio and checkpoint.

Runs the grid of FLEA (layers 6, 9, 11 × 50, 100, 150 clusters), and every single step of both sides; prints seconds and
their ratios, bytes written, peak memory, the ratio of the inertias, and how many labels are the same for the same
centroids. Everything is in --out: bench.json, and what both sides wrote. Steps that are measured are not run again.

--stock is a script that runs fairseq's scripts on this machine, called as
    SCRIPT dump   TSV_DIR SPLIT CKPT LAYER FEAT_DIR
    SCRIPT kmeans FEAT_DIR SPLIT KM_PATH K
    SCRIPT label  FEAT_DIR SPLIT KM_PATH LAB_DIR

  tools/bench_labels.py manifests/emodb all --stock stock_simple_kmeans.py --random-base --out bench
"""

import argparse
import logging
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

import numpy as np

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, atomic, make_folder, read_json, sha256, write_json
from emohubert.core.parallel import cores
from emohubert.corpus.audio import SAMPLE_RATE
from emohubert.corpus.manifest import read_split

logger = logging.getLogger("emohubert")

TOOLS = Path(__file__).resolve().parent
_MEASURE = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as f:
    json.dump([time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)], f)
sys.exit(1 if status else 0)
"""
"""Runs a command from a process that is itself small: a child's peak memory starts at that of its parent."""


def write_random_hubert(path, seed=1, clusters=100, normalize=False, **architecture):
    """Write a HuBERT with random weights as fairseq's own training saves it; returns the path.

    Args:
        path: of the checkpoint.
        seed: of the weights.
        clusters: size of its dictionary.
        normalize: whether waveforms are to be normalised (HuBERT large).
        architecture: fields of fairseq's HubertConfig; HuBERT base by default.
    """
    import torch
    from fairseq.data.dictionary import Dictionary
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
    from omegaconf import OmegaConf

    dictionary = Dictionary()
    for symbol in range(clusters):
        dictionary.add_symbol(str(symbol))
    rate = 50.0
    model = HubertConfig(_name="hubert", label_rate=rate, **architecture)
    task = HubertPretrainingConfig(
        _name="hubert_pretraining", data="", labels=["km"], label_rate=rate, sample_rate=SAMPLE_RATE, normalize=normalize
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = HubertModel(model, argparse.Namespace(sample_rate=SAMPLE_RATE), [dictionary]).state_dict()
    state = {
        "args": None,
        "cfg": {name: OmegaConf.to_container(OmegaConf.structured(c), enum_to_str=True) for name, c in (("model", model), ("task", task))},
        "model": weights,
        "task_state": {"dictionaries": [dictionary]},
        "extra_state": {"train_iterator": {"epoch": 1}},
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": None}, "num_updates": 0}],
    }
    with atomic(path, "wb") as f:
        torch.save(state, f)
    return path


class Steps:
    """Measured commands, each in a process of its own; what is measured with the same settings is not run again."""

    def __init__(self, folder, settings, overwrite):
        self.folder, self.settings, self.overwrite = make_folder(folder), settings, overwrite

    def run(self, name, command, written):
        """Seconds, peak_bytes, written_bytes and feature_bytes of a command that writes into the folder `written`."""
        command = [str(c) for c in (sys.executable, *command)]
        measured = self.folder / f"{name.replace(' ', '-')}.json"
        stamp = Stamp(measured.with_suffix(".stamp"), {**self.settings, "command": command}, [measured])
        if not self.overwrite and stamp.is_current() and written.is_dir():
            return read_json(measured)
        stamp.clear()
        shutil.rmtree(written, ignore_errors=True)
        make_folder(written)
        logger.info("%s …", name)
        log, result = measured.with_suffix(".log"), self.folder / "last.json"
        with log.open("wb") as f:
            code = subprocess.run([sys.executable, "-S", "-c", _MEASURE, result, *command], stdout=f, stderr=subprocess.STDOUT).returncode
        if code:
            last = (log.read_text(errors="replace").strip().splitlines() or ["nothing printed"])[-1]
            raise InputError(f"{log}: the step “{name}” failed: {last[:200]}")
        seconds, peak = read_json(result)
        sizes = {p: p.stat().st_size for p in written.rglob("*") if p.is_file()}
        features = sum(n for p, n in sizes.items() if p.suffix == ".npy")
        step = {"seconds": seconds, "peak_bytes": peak, "written_bytes": sum(sizes.values()), "feature_bytes": features}
        write_json(measured, step)
        stamp.write()
        logger.info("%s: %.1f s, %.0f MB", name, seconds, peak / 1e6)
        return step


def run_benchmark(args, checkpoint, out):
    """Measure everything; returns a dict of steps and comparisons."""
    from emohubert.pseudo_labels.recordings import audio_fingerprint

    manifest, split, stock_script = Path(args.manifest_dir).resolve(), args.split, Path(args.stock).resolve()
    recordings = read_split(manifest, split)
    layers, clusters = sorted(set(args.layers)), sorted(set(args.clusters))
    settings = {"audio": audio_fingerprint(recordings), "checkpoint": sha256(checkpoint), "split": split}
    steps = Steps(out / "steps", settings, args.overwrite)
    stock, ours = {}, {}
    encoder = ["--checkpoint", checkpoint, "--layers", *layers]
    grid = [manifest, out / "ours", *encoder, "--clusters", *clusters, "--splits", split, "--fit-split", split]
    ours["grid"] = steps.run("ours grid", [TOOLS / "make_labels.py", *grid], out / "ours")
    features = out / "stages" / "features"
    dump = [TOOLS / "dump_features.py", manifest, split, features, *encoder]
    ours["dump, all layers"] = steps.run("ours dump", dump, features)
    for layer in layers:
        folder, mine = out / "stock" / f"L{layer}", features / f"L{layer}"
        dump = [stock_script, "dump", manifest, split, checkpoint, layer, folder / "features"]
        stock[f"dump L{layer}"] = steps.run(f"stock dump L{layer}", dump, folder / "features")
        for k in clusters:
            km, fitted = folder / f"km{k}" / "km.bin", out / "stages" / f"L{layer}-km{k}"
            labels, our_labels = folder / f"km{k}-labels", out / "stages" / f"L{layer}-km{k}-labels"
            fits, labelling = f"k-means L{layer} K={k}", f"label L{layer} K={k}"
            stock[fits] = steps.run(f"stock {fits}", [stock_script, "kmeans", folder / "features", split, km, k], km.parent)
            stock[labelling] = steps.run(f"stock {labelling}", [stock_script, "label", folder / "features", split, km, labels], labels)
            learn = [TOOLS / "learn_kmeans.py", mine, split, 1, fitted / "kmeans.npz", "--clusters", k]
            ours[fits] = steps.run(f"ours {fits}", learn, fitted)
            label = [TOOLS / "dump_labels.py", mine, split, km, 1, 0, our_labels]
            ours[labelling] = steps.run(f"ours {labelling}", label, our_labels)
    total = sum(step["seconds"] for step in stock.values())
    return {
        "audio_seconds": float(recordings.n_samples.sum()) / SAMPLE_RATE,
        "cores": cores(),
        "stock": stock,
        "ours": ours,
        "stock_seconds": total,
        "ours_seconds": ours["grid"]["seconds"],
        "speed_up": total / ours["grid"]["seconds"],
        "sets": {f"L{layer}/km{k}": compare(out, split, layer, k) for layer in layers for k in clusters},
    }


def compare(out, split, layer, k):
    """Inertia of both fits on the same features, and the share of frames with the same label for the same centroids."""
    from emohubert.pseudo_labels.centroid_files import load_centroids

    folder = out / "stock" / f"L{layer}"
    features = np.load(folder / "features" / f"{split}_0_1.npy", mmap_mode="r", allow_pickle=False)
    theirs = load_centroids(folder / f"km{k}" / "km.bin")
    ours = load_centroids(out / "ours" / f"L{layer}" / f"km{k}" / "kmeans.npz")
    labels = [p / f"{split}_0_1.km" for p in (folder / f"km{k}-labels", out / "stages" / f"L{layer}-km{k}-labels")]
    a, b = (path.read_text().split() for path in labels)
    if len(a) != len(b):
        raise InputError(f"{folder}: {len(a)} labels of fairseq, {len(b)} of ours; run again with --overwrite")
    different = sum(x != y for x, y in zip(a, b, strict=True))
    inertias = [inertia(features, model.centroids) for model in (ours, theirs)]
    return {
        "frames": len(a),
        "different_labels": different,
        "agreement": 1 - different / len(a),
        "inertia": inertias[0],
        "stock_inertia": inertias[1],
        "inertia_ratio": inertias[0] / inertias[1],
    }


def inertia(features, centroids):
    """Mean squared distance to the nearest centroid, in float64."""
    from emohubert.pseudo_labels.kmeans import BLOCK, Assigner

    total = 0.0
    assigner = Assigner(centroids)
    for start in range(0, len(features), BLOCK):
        block = np.array(features[start : start + BLOCK])
        total += float(np.square(block - centroids[assigner.labels(block).numpy()], dtype=np.float64).sum())
    return total / len(features)


def report(result):
    """The results as lines of text."""
    stock, ours = result["stock"], result["ours"]
    grid = ours["grid"]
    lines = [
        f"audio {result['audio_seconds']:.0f} s, {result['cores']} cores",
        f"grid: fairseq {result['stock_seconds']:.1f} s, ours {result['ours_seconds']:.1f} s: {result['speed_up']:.1f} times as fast",
        f"feature bytes on disk: fairseq {sum(s['feature_bytes'] for s in stock.values())}, ours {grid['feature_bytes']}; "
        f"all bytes: {sum(s['written_bytes'] for s in stock.values())}, {grid['written_bytes']}",
        f"peak memory: fairseq {max(s['peak_bytes'] for s in stock.values()) / 1e6:.0f} MB, ours {grid['peak_bytes'] / 1e6:.0f} MB",
        "",
        f"{'single step':<20} {'fairseq s':>10} {'ours s':>8} {'ratio':>6}",
    ]
    dumps = [s["seconds"] for name, s in stock.items() if name.startswith("dump")]
    rows = [("dump, all layers", sum(dumps), ours["dump, all layers"]["seconds"])]
    rows += [(name, s["seconds"], ours[name]["seconds"]) for name, s in stock.items() if name in ours]
    lines += [f"{name:<20} {theirs:>10.1f} {mine:>8.1f} {theirs / mine:>6.1f}" for name, theirs, mine in rows]
    lines += ["", f"{'set':<12} {'inertia':>10} {'fairseq':>10} {'ratio':>7} {'same labels for the same centroids':>36}"]
    for name, s in result["sets"].items():
        agreement = f"{100 * s['agreement']:.4f} % ({s['different_labels']} of {s['frames']} differ)"
        lines.append(f"{name:<12} {s['inertia']:>10.3f} {s['stock_inertia']:>10.3f} {s['inertia_ratio']:>7.4f} {agreement:>36}")
    return lines


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("--stock", required=True, metavar="SCRIPT", help="script that runs fairseq's side")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", metavar="CKPT", help="HuBERT checkpoint that fairseq can load")
    model.add_argument("--random-base", action="store_true", help="make a HuBERT base with random weights: good for timing")
    parser.add_argument("--layers", type=cli.positive_int, nargs="+", metavar="L", default=[6, 9, 11], help="layers of the grid")
    parser.add_argument("--clusters", type=cli.positive_int, nargs="+", metavar="K", default=[50, 100, 150], help="clusters of the grid")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for everything")
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if not Path(args.stock).is_file():
        raise InputError(f"{args.stock}: no such script; give the one that runs fairseq's side with --stock")
    out, checkpoint = make_folder(args.out).resolve(), args.checkpoint
    if args.random_base:
        checkpoint = out / f"random_base_{args.seed}.pt"
        if args.overwrite or not checkpoint.is_file():
            write_random_hubert(checkpoint, args.seed)
    result = run_benchmark(args, Path(checkpoint).resolve(), out)
    write_json(out / "bench.json", result)
    print("\n".join(report(result)))


if __name__ == "__main__":
    main()
