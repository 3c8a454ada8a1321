"""Our labels against those of fairseq's simple_kmeans scripts: time, memory, disk, inertia and agreement."""

import argparse
import logging
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf

from ..core.errors import InputError
from ..core.files import Stamp, atomic, make_folder, read_json, sha256, write_json
from ..core.parallel import cores
from ..corpus.audio import SAMPLE_RATE
from ..corpus.manifest import read_split
from .centroid_files import load_centroids
from .features import audio_fingerprint
from .kmeans import BLOCK, Assigner

logger = logging.getLogger("emohubert")

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


@dataclass
class Step:
    """One measured command.

    Attributes:
        name: such as "dump L9".
        seconds: wall clock.
        peak_bytes: largest resident memory.
        written_bytes: size of what it wrote; `feature_bytes` of that are features.
    """

    name: str
    seconds: float
    peak_bytes: int
    written_bytes: int
    feature_bytes: int


class Benchmark:
    """Both sides on the same audio and checkpoint, each step in a process of its own; finished steps are kept.

    Args:
        manifest_dir, split: the audio.
        checkpoint: a HuBERT that both sides can load.
        stock: script that runs fairseq's side: `dump TSV_DIR SPLIT CKPT LAYER FEAT_DIR`, `kmeans FEAT_DIR SPLIT KM_PATH K` and
            `label FEAT_DIR SPLIT KM_PATH LAB_DIR`.
        tools: folder of our programs.
        layers, clusters: the grid.
        out: folder for everything.
        overwrite: measure finished steps again.
    """

    def __init__(self, manifest_dir, split, checkpoint, stock, tools, layers, clusters, out, overwrite=False):
        self.manifest, self.split, self.checkpoint = Path(manifest_dir).resolve(), split, Path(checkpoint).resolve()
        self.stock, self.tools = Path(stock).resolve(), Path(tools).resolve()
        if not self.stock.is_file():
            raise InputError(f"{self.stock}: no such script; give the one that runs fairseq's side with --stock")
        self.layers, self.clusters = sorted(set(layers)), sorted(set(clusters))
        self.out, self.overwrite = make_folder(out).resolve(), overwrite
        recordings = read_split(manifest_dir, split)
        self.seconds = float(recordings.n_samples.sum()) / SAMPLE_RATE
        self._settings = {"audio": audio_fingerprint(recordings), "checkpoint": sha256(checkpoint), "split": split}

    def run(self):
        """Measure everything; returns a dict of steps and comparisons, also written to `bench.json`."""
        stock, ours = {}, {}
        where = self.out / "stock"
        options = ["--checkpoint", self.checkpoint, "--layers", *self.layers]
        whole = [
            self.manifest,
            self.out / "ours",
            *options,
            "--clusters",
            *self.clusters,
            "--splits",
            self.split,
            "--fit-split",
            self.split,
        ]
        ours["grid"] = self._step("ours grid", [self.tools / "make_labels.py", *whole], self.out / "ours")
        for layer in self.layers:
            folder = where / f"L{layer}"
            arguments = ["dump", self.manifest, self.split, self.checkpoint, layer, folder / "features"]
            stock[f"dump L{layer}"] = self._step(f"stock dump L{layer}", [self.stock, *arguments], folder / "features")
            for k in self.clusters:
                km = folder / f"km{k}" / "km.bin"
                arguments = ["kmeans", folder / "features", self.split, km, k]
                stock[f"k-means L{layer} K={k}"] = self._step(f"stock kmeans L{layer} {k}", [self.stock, *arguments], km.parent)
                labels = folder / f"km{k}-labels"
                arguments = ["label", folder / "features", self.split, km, labels]
                stock[f"label L{layer} K={k}"] = self._step(f"stock label L{layer} {k}", [self.stock, *arguments], labels)
        features = self.out / "stages" / "features"
        arguments = [self.manifest, self.split, features, *options]
        ours["dump, all layers"] = self._step("ours dump", [self.tools / "dump_features.py", *arguments], features)
        for layer in self.layers:
            for k in self.clusters:
                folder = self.out / "stages" / f"L{layer}-km{k}"
                arguments = [features / f"L{layer}", self.split, 1, folder / "kmeans.npz", "--clusters", k]
                ours[f"k-means L{layer} K={k}"] = self._step(
                    f"ours kmeans L{layer} {k}", [self.tools / "learn_kmeans.py", *arguments], folder
                )
                labels = self.out / "stages" / f"L{layer}-km{k}-labels"
                km = where / f"L{layer}" / f"km{k}" / "km.bin"
                arguments = [features / f"L{layer}", self.split, km, 1, 0, labels]
                ours[f"label L{layer} K={k}"] = self._step(f"ours label L{layer} {k}", [self.tools / "dump_labels.py", *arguments], labels)
        result = {
            "audio_seconds": self.seconds,
            "cores": cores(),
            "stock": {name: asdict(step) for name, step in stock.items()},
            "ours": {name: asdict(step) for name, step in ours.items()},
            "stock_seconds": sum(step.seconds for step in stock.values()),
            "ours_seconds": ours["grid"].seconds,
            "sets": {f"L{layer}/km{k}": self._compare(layer, k) for layer in self.layers for k in self.clusters},
        }
        result["speed_up"] = result["stock_seconds"] / result["ours_seconds"]
        write_json(self.out / "bench.json", result)
        return result

    def _step(self, name, command, folder):
        """Run a command that writes into `folder`, unless it is already measured."""
        command = [str(c) for c in command]
        measured = self.out / "steps" / f"{name.replace(' ', '-')}.json"
        stamp = Stamp(make_folder(measured.parent) / f".{measured.stem}.stamp", {**self._settings, "command": command}, [measured])
        if not self.overwrite and stamp.is_current() and folder.is_dir():
            return Step(**read_json(measured))
        stamp.clear()
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        logger.info("%s …", name)
        log = measured.with_suffix(".log")
        result = self.out / "steps" / "last.json"
        with log.open("wb") as f:
            code = subprocess.run(
                [sys.executable, "-S", "-c", _MEASURE, result, sys.executable, *command], stdout=f, stderr=subprocess.STDOUT
            )
        if code.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or ["nothing printed"])[-1]
            raise InputError(f"{log}: the step “{name}” failed: {last[:200]}")
        seconds, peak = read_json(result)
        sizes = {p: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        step = Step(name, seconds, peak, sum(sizes.values()), sum(n for p, n in sizes.items() if p.suffix == ".npy"))
        write_json(measured, asdict(step))
        stamp.write()
        logger.info("%s: %.1f s, %.0f MB", name, seconds, peak / 1e6)
        return step

    def _compare(self, layer, k):
        """Inertia of both fits on the same features, and the share of frames with the same label for the same centroids."""
        folder = self.out / "stock" / f"L{layer}"
        features = np.load(folder / "features" / f"{self.split}_0_1.npy", mmap_mode="r", allow_pickle=False)
        theirs = load_centroids(folder / f"km{k}" / "km.bin")
        ours = load_centroids(self.out / "ours" / f"L{layer}" / f"km{k}" / "kmeans.npz")
        stock_labels = (folder / f"km{k}-labels" / f"{self.split}_0_1.km").read_text().split()
        our_labels = (self.out / "stages" / f"L{layer}-km{k}-labels" / f"{self.split}_0_1.km").read_text().split()
        if len(stock_labels) != len(our_labels):
            raise InputError(f"{folder}: {len(stock_labels)} labels of fairseq, {len(our_labels)} of ours; run again with --overwrite")
        same = sum(a == b for a, b in zip(stock_labels, our_labels, strict=True))
        inertias = [inertia(features, model.centroids) for model in (ours, theirs)]
        return {
            "frames": len(stock_labels),
            "different_labels": len(stock_labels) - same,
            "agreement": same / len(stock_labels),
            "inertia": inertias[0],
            "stock_inertia": inertias[1],
            "inertia_ratio": inertias[0] / inertias[1],
        }


def inertia(features, centroids):
    """Mean squared distance to the nearest centroid, in float64."""
    total = 0.0
    assigner = Assigner(centroids)
    for start in range(0, len(features), BLOCK):
        block = np.array(features[start : start + BLOCK])
        total += float(np.square(block - centroids[assigner.labels(block).numpy()], dtype=np.float64).sum())
    return total / len(features)


def report(result):
    """A benchmark's results as lines of text."""
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
