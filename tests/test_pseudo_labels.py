"""Labels from audio: the features of fairseq's scripts, independent of batches, order and interruptions."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simple_kmeans
import soundfile
import torch
from corpus import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from random_hubert import write_random_hubert
from scripts import ROOT, load, run
from training import SERVER, TINY

from emohubert.core import device
from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.corpus.manifest import read_split
from emohubert.models.from_pretrained import load_encoder
from emohubert.pseudo_labels import features as features_module
from emohubert.pseudo_labels import label_frames
from emohubert.pseudo_labels.features import EncoderFeatures, MfccFeatures, pieces
from emohubert.pseudo_labels.kmeans import KMeans
from emohubert.pseudo_labels.label_frames import LabelMaker
from emohubert.pseudo_labels.recordings import choose_recordings

SMALL = {**TINY, "encoder_layers": 4}
LARGE = {**SMALL, "extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), seconds=(0.1, 1.5), train=18, valid=5, test=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_hubert(tmp_path_factory.mktemp("base") / "hubert.pt", seed=1, **SMALL)


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    return write_random_hubert(tmp_path_factory.mktemp("large") / "hubert.pt", seed=2, normalize=True, **LARGE)


def extract(features, split):
    """All features: {(utterance, name): array}, from pieces in whatever order they come."""
    found = {}

    def keep(piece, features):
        for name, values in features.items():
            found.setdefault((piece.utterance, name), []).append((piece.first, values.numpy().copy()))

    for _ in features.extract(split, np.arange(len(split)), keep):
        pass
    return {key: np.concatenate([v for _, v in sorted(parts, key=lambda p: p[0])]) for key, parts in found.items()}


def label_files(folder):
    """Name → content; records name the folder that they are in, which is not compared."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes().replace(str(folder).encode(), b"HERE")
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


# --- features ---------------------------------------------------------------------------------------------------------


def test_mfccs_are_fairseqs_bit_for_bit(manifest):
    split = read_split(manifest, "train")
    reader = simple_kmeans.load("dump_mfcc_feature").MfccFeatureReader(16_000)
    found = extract(MfccFeatures(), split)
    for i in range(len(split)):
        assert np.array_equal(found[i, "mfcc"], reader.get_feats(str(split.audio(i))).numpy())


def test_mfccs_of_a_long_recording_in_parts(tmp_path):
    manifest = make_corpus(tmp_path, seconds=(7.0, 8.0), train=2, valid=1, test=1)
    split = read_split(manifest, "train")
    whole, parts = extract(MfccFeatures(), split), extract(MfccFeatures(max_chunk_seconds=1.3), split)
    for key in whole:
        assert whole[key].shape == parts[key].shape == (audio.n_frames(split.n_samples[key[0]], 160), 39)
        assert np.abs(whole[key] - parts[key]).max() < 1e-4 * np.abs(whole[key]).max()


@pytest.mark.parametrize("kind", ["base", "large"])
def test_layers_are_fairseqs(manifest, kind, request, monkeypatch):
    path = request.getfixturevalue("checkpoint" if kind == "base" else "large_checkpoint")
    split = read_split(manifest, "valid")
    found = extract(EncoderFeatures(load_encoder(path), [1, 3, 4]), split)
    for layer in (1, 3, 4):
        stock = simple_kmeans.hubert_features(monkeypatch, path, layer, [split.audio(i) for i in range(len(split))])
        for i, features in enumerate(stock):
            assert found[i, f"L{layer}"].shape == features.shape
            assert np.abs(found[i, f"L{layer}"] - features).max() < 1e-5


def test_features_do_not_depend_on_batches_workers_or_padding(manifest, checkpoint):
    split, encoder = read_split(manifest, "train"), load_encoder(checkpoint)
    reference = extract(EncoderFeatures(encoder, [2, 4], workers=1), split)
    for options, rounding in (({"batch_seconds": 1}, 0), ({"workers": 3}, 0), ({"padded": True, "batch_seconds": 20}, 2.5e-6)):
        found = extract(EncoderFeatures(encoder, [2, 4], **options), split)
        for key, alone in reference.items():
            assert (np.linalg.norm(found[key] - alone, axis=1) <= rounding * np.linalg.norm(alone, axis=1)).all()


@settings(max_examples=200, deadline=None)
@given(samples=st.integers(0, 500_000), window=st.integers(6_400, 60_000), context=st.integers(0, 6_000), hop=st.sampled_from([160, 320]))
def test_pieces_hold_every_frame_once(samples, window, context, hop):
    context = min(context, window // 4)
    found = pieces(7, samples, window, context, hop)
    frames = audio.n_frames(samples, hop)
    assert [p.first for p in found] == [0, *(p.last for p in found[:-1])][: len(found)]
    assert sum(p.last - p.first for p in found) == frames
    for p in found:
        assert p.samples <= window
        assert 0 <= p.start < p.stop <= samples
        assert p.start == (p.first - p.skip) * hop
        assert p.skip + p.last - p.first <= audio.n_frames(p.samples, hop)
        assert p.first == 0 or p.skip >= context // hop
        assert (
            p.last == frames or (p.stop - audio.RECEPTIVE_FIELD) // hop - (p.start // hop + p.skip + p.last - p.first - 1) >= context // hop
        )


def test_seams_of_a_long_recording(tmp_path, large_checkpoint, checkpoint):
    """Frames of the convolutions are those of the whole recording; later layers differ, least far from the seam."""
    manifest = make_corpus(tmp_path, seconds=(11.0, 12.0), train=1, valid=1, test=1)
    split = read_split(manifest, "train")
    for path in (large_checkpoint, checkpoint):
        encoder = load_encoder(path)
        whole = extract(EncoderFeatures(encoder, [1, 4]), split)
        cut = extract(EncoderFeatures(encoder, [1, 4], max_chunk_seconds=5), split)
        for key in whole:
            assert whole[key].shape == cut[key].shape == (audio.n_frames(split.n_samples[0]), 48)
            cosine = (whole[key] * cut[key]).sum(1) / np.linalg.norm(whole[key], axis=1) / np.linalg.norm(cut[key], axis=1)
            assert cosine.min() > 0.98
    waveform = torch.from_numpy(audio.normalise(audio.read(split.audio(0))))
    model = load_encoder(large_checkpoint).model
    with torch.inference_mode():
        frames = model.feature_extractor(waveform[None], [len(waveform)])[0].T
        for piece in pieces(0, len(waveform), 80_000, 20_000):
            part = model.feature_extractor(waveform[None, piece.start : piece.stop], [piece.samples])[0].T
            kept = slice(piece.skip, piece.skip + piece.last - piece.first)
            assert (part[kept] - frames[piece.first : piece.last]).abs().max() < 1e-5


def test_a_recording_in_pieces_is_normalised_as_a_whole(tmp_path, large_checkpoint):
    manifest = make_corpus(tmp_path, seconds=(6.0, 7.0), train=1, valid=1, test=1)
    split = read_split(manifest, "train")
    wave = audio.read(split.audio(0)) * np.linspace(0.1, 1, int(split.n_samples[0]), dtype=np.float32)
    soundfile.write(split.audio(0), wave, 16_000, subtype="FLOAT")
    assert features_module.mean_and_variance(split, 0) == pytest.approx((wave.mean(dtype=float), wave.var(dtype=float)), rel=1e-9)
    expected = audio.normalise(wave)
    for piece in pieces(0, len(wave), 40_000, 6_400):
        found = features_module._waveform(split, piece, lambda utterance: features_module.mean_and_variance(split, utterance))
        assert np.abs(found - expected[piece.start : piece.stop]).max() < 1e-6


def test_damaged_audio_and_broken_weights_are_errors(tmp_path, checkpoint):
    manifest = make_corpus(tmp_path, train=3, valid=1, test=1)
    split = read_split(manifest, "train")
    encoder = load_encoder(checkpoint)
    with torch.no_grad():
        encoder.model.encoder.layers[1].fc1.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"train00\d.wav: its features are not finite"):
        extract(EncoderFeatures(encoder, [4]), split)
    split.audio(1).write_bytes(split.audio(1).read_bytes()[:-2000])
    for features in (MfccFeatures(), EncoderFeatures(load_encoder(checkpoint), [1], padded=True)):
        threads = torch.get_num_threads()
        with pytest.raises(InputError, match=r"train001.wav: truncated WAV"):
            extract(features, split)
        assert torch.get_num_threads() == threads


# --- labels -----------------------------------------------------------------------------------------------------------


def make_labels(manifest, out, checkpoint, clusters=(5, 9), layers=(2, 4), **options):
    extraction = {k: options.pop(k) for k in ("batch_seconds", "padded", "workers", "max_chunk_seconds") if k in options}
    LabelMaker(manifest, out, EncoderFeatures(load_encoder(checkpoint), layers, **extraction), clusters, **options).run()


@pytest.fixture(scope="module")
def labels(manifest, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels")
    make_labels(manifest, out, checkpoint)
    return out


def test_what_is_written(labels, manifest, checkpoint):
    found = label_files(labels)
    assert sorted(found) == sorted(
        f"L{layer}/km{k}/{name}"
        for layer in (2, 4)
        for k in (5, 9)
        for name in ("train.km", "valid.km", "test.km", "dict.km.txt", "frames.km.json", "kmeans.npz", "kmeans.npz.seen")
    )
    split, encoder = read_split(manifest, "test"), load_encoder(checkpoint)
    features = extract(EncoderFeatures(encoder, [4]), split)
    model = KMeans.load(labels / "L4" / "km9" / "kmeans.npz")
    form = {"sample_rate": 16_000, "hop": 320, "normalise": False}
    assert model.features == {"kind": "encoder", "checkpoint": encoder.sha256, "layer": 4, "width": 48, **form}
    assert model.fit["split"] == "train"
    for i, line in enumerate((labels / "L4" / "km9" / "test.km").read_text().splitlines()):
        distances = ((features[i, "L4"][:, None].astype(np.float64) - model.centroids) ** 2).sum(-1)
        assert np.array_equal(np.array(line.split(), int), distances.argmin(1))


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "workers"), [(0.2, 2), (3, 3), (100, 1)])
def test_labels_do_not_depend_on_batches(labels, manifest, checkpoint, tmp_path, seconds, workers):
    make_labels(manifest, tmp_path, checkpoint, batch_seconds=seconds, workers=workers)
    assert label_files(tmp_path) == label_files(labels)


def test_labels_do_not_depend_on_the_order_of_the_manifest(labels, manifest, checkpoint, tmp_path):
    order = np.random.default_rng(0).permutation(18)
    shuffled = tmp_path / "manifest"
    shuffled.mkdir()
    for path in manifest.iterdir():
        lines = path.read_text().splitlines()
        if path.name.startswith("train."):
            head = 1 if path.name in ("train.tsv", "train.dim", "train.meta.tsv") else 0
            lines = lines[:head] + [lines[head:][i] for i in order]
        (shuffled / path.name).write_text("\n".join(lines) + "\n")
    make_labels(shuffled, tmp_path / "out", checkpoint)
    for folder in ("L2/km5", "L4/km9"):
        assert (tmp_path / "out" / folder / "kmeans.npz").read_bytes() == (labels / folder / "kmeans.npz").read_bytes()
        before = (labels / folder / "train.km").read_text().splitlines()
        assert (tmp_path / "out" / folder / "train.km").read_text().splitlines() == [before[i] for i in order]


def test_two_passes_in_small_windows_give_the_same_labels(labels, manifest, checkpoint, tmp_path, monkeypatch):
    """Labels of recordings in memory and of recordings read again are the same, in one window or many."""
    for folder in ("L2/km5", "L2/km9", "L4/km5", "L4/km9"):
        (tmp_path / folder).mkdir(parents=True)
        for path in (labels / folder).iterdir():
            if path.name in ("kmeans.npz", ".kmeans.stamp", "dict.km.txt"):
                (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(label_frames, "_WINDOW_SECONDS", 2)
    make_labels(manifest, tmp_path, checkpoint)
    assert label_files(tmp_path) == label_files(labels)


def count_reads(monkeypatch):
    seen = []
    original = audio.read
    monkeypatch.setattr(audio, "read", lambda path, *a, **k: (seen.append(Path(path).name), original(path, *a, **k))[1])
    return seen


def test_each_recording_is_read_once_for_all_layers_and_clusters(manifest, checkpoint, tmp_path, monkeypatch):
    seen = count_reads(monkeypatch)
    make_labels(manifest, tmp_path / "all", checkpoint)
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 28
    seen.clear()
    make_labels(manifest, tmp_path / "part", checkpoint, max_memory=4 * 96 * 300)
    assert len(seen) == 28  # recordings of the fit are labelled from memory
    model = KMeans.load(tmp_path / "part" / "L2" / "km5" / "kmeans.npz")
    assert 200 < model.fit["frames"] <= 300
    assert model.fit["recordings"] < 18


def test_whole_sets_are_skipped_and_what_changed_is_made_again(manifest, checkpoint, tmp_path, monkeypatch):
    make_labels(manifest, tmp_path, checkpoint)
    before = label_files(tmp_path)
    seen = count_reads(monkeypatch)
    make_labels(manifest, tmp_path, checkpoint)
    assert seen == []
    (tmp_path / "L4" / "km5" / "valid.km").unlink()
    make_labels(manifest, tmp_path, checkpoint)
    assert len(seen) == 5
    assert label_files(tmp_path) == before
    seen.clear()
    (tmp_path / "L4" / "km5" / "kmeans.npz").unlink()
    make_labels(manifest, tmp_path, checkpoint)
    assert label_files(tmp_path) == before
    assert len(seen) == 18  # the same centroids again, so the labels stay
    make_labels(manifest, tmp_path, checkpoint, seed=2)
    assert label_files(tmp_path) != before
    make_labels(manifest, tmp_path, checkpoint, seed=1, overwrite=True)
    assert label_files(tmp_path) == before


def test_labels_of_other_centroids_do_not_stay_behind(manifest, checkpoint, tmp_path):
    make_labels(manifest, tmp_path, checkpoint, clusters=[5], layers=[2], pieces=[9])
    before = label_files(tmp_path)
    assert len(before) == 7 + 7
    make_labels(manifest, tmp_path, checkpoint, clusters=[5], layers=[2], seed=2, splits=["train"], pieces=[9])
    assert sorted(p for p in label_files(tmp_path) if p.endswith(".km")) == ["L2/km5-pieces9/train.km", "L2/km5/train.km"]
    make_labels(manifest, tmp_path, checkpoint, clusters=[5], layers=[2], pieces=[9])
    assert label_files(tmp_path) == before


def test_given_centroids_are_applied(labels, manifest, checkpoint, tmp_path, capsys):
    centroids = labels / "L4" / "km9" / "kmeans.npz"
    options = (manifest, tmp_path, "--checkpoint", checkpoint, "--centroids", centroids, "--splits", "valid")
    assert run("tools/make_labels.py", *options, "--layers", 4) == 0
    assert (tmp_path / "L4" / "km9" / "valid.km").read_bytes() == (labels / "L4" / "km9" / "valid.km").read_bytes()
    assert run("tools/make_labels.py", *options, "--layers", 2) == 2
    assert "fitted on features with layer = 4, but these have layer = 2" in capsys.readouterr().err


def test_choice_of_recordings():
    frames = np.array([10, 0, 30, 20, 40])
    names = ["e", "d", "c", "b", "a"]
    assert choose_recordings(names, frames, 100, seed=1) == [4, 3, 2, 0]
    chosen = {tuple(choose_recordings(names, frames, 60, seed)) for seed in range(30)}
    assert len(chosen) > 2
    assert all(0 < frames[list(c)].sum() <= 60 and 1 not in c for c in chosen)
    order = [3, 0, 4, 1, 2]
    again = choose_recordings([names[i] for i in order], frames[order], 60, seed=3)
    assert [order[i] for i in again] == choose_recordings(names, frames, 60, seed=3)
    assert choose_recordings(names, frames, 5, seed=1) == []


def test_bf16_labels_are_nearly_those_of_float32(labels, manifest, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "_cpu_flags", lambda: "")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    encoder = ("--checkpoint", checkpoint, "--layers", 4, "--precision", "bf16", "--device", "cpu")
    options = (manifest, tmp_path, *encoder, "--centroids", labels / "L4" / "km9" / "kmeans.npz", "--splits", "train")
    assert run("tools/make_labels.py", *options) == 2
    assert "cpu has no bf16 arithmetic; use --precision float32" in capsys.readouterr().err
    monkeypatch.setattr(device, "_cpu_flags", lambda: "avx512_bf16")
    assert run("tools/make_labels.py", *options) == 0
    reduced, full = ((folder / "L4/km9/train.km").read_text().split() for folder in (tmp_path, labels))
    assert 0.8 < np.mean([a == b for a, b in zip(reduced, full, strict=True)]) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mfcc", "--layers", "3", "--clusters", "4"], "--mfcc, --prosody: only encoders have --layers"),
        (["--mfcc", "--clusters", "0"], "not a whole number of at least 1"),
        (["--mfcc", "--clusters", "4", "--max-memory", "much"], "not an amount of memory"),
        (["--mfcc", "--clusters", "4", "--max-memory", "10"], "no recording has a frame"),
        (["--mfcc", "--clusters", "4", "--splits", "dev"], "dev.tsv: no such file"),
        (["--mfcc", "--clusters", "4", "--fit-split", "dev"], "dev.tsv: no such file"),
        (["--mfcc", "--clusters", "100000"], "frames cannot make 100000 clusters"),
        (["--mfcc", "--clusters", "4", "--pieces", "9", "--splits", "valid"], "name it in --splits too"),
        (["--mfcc"], "one of the arguments --clusters --centroids is required"),
        (["--clusters", "4"], "one of the arguments --mfcc --prosody --checkpoint is required"),
        (["--checkpoint", "CKPT", "--clusters", "4"], "name the layers with --layers"),
        (["--checkpoint", "CKPT", "--layers", "5", "--clusters", "4"], "layers 1 to 4"),
        (["--checkpoint", "CKPT", "--layers", "1", "2", "--centroids", "KM"], "given centroids label one layer"),
        (["--checkpoint", "nothing.pt", "--layers", "1", "--clusters", "4"], "nothing.pt: no such checkpoint"),
        (["--mfcc", "--clusters", "4", "--batch-seconds", "0"], "not a number above 0"),
    ],
)
def test_bad_usage_is_one_line(manifest, checkpoint, labels, tmp_path, capsys, arguments, message):
    given = {"CKPT": checkpoint, "KM": labels / "L2" / "km5" / "kmeans.npz"}
    assert run("tools/make_labels.py", manifest, tmp_path / "out", *(given.get(a, a) for a in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_no_manifest_no_labels(tmp_path, capsys):
    for folder, message in ((tmp_path / "none", "no such manifest directory"), (tmp_path, "holds none of train.tsv")):
        assert run("tools/make_labels.py", folder, tmp_path / "out", "--mfcc", "--clusters", 3) == 2
        assert message in capsys.readouterr().err


# --- interruptions and memory -----------------------------------------------------------------------------------------


def make_in_another_process(arguments, window=3):
    """What tools/make_labels.py does, quietly."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    label_frames._WINDOW_SECONDS = window
    load("tools/make_labels.py").main(list(map(str, arguments)))


def start(*arguments):
    """A process that makes labels in windows of three seconds."""
    process = SERVER.Process(target=make_in_another_process, args=(arguments,))
    process.start()
    return process


def finish(*arguments):
    """Make labels in a process of its own, to the end."""
    process = start(*arguments)
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_kill_at_any_moment_and_run_again(tmp_path):
    """kill -9 at six moments: the files are those of a run without interruption; what was finished is not redone."""
    manifest = make_corpus(tmp_path, seconds=(0.5, 2.0), train=60, valid=10, test=10)
    checkpoint = write_random_hubert(tmp_path / "hubert.pt", seed=1, **SMALL)
    options = ("--checkpoint", checkpoint, "--layers", 2, 4, "--clusters", 20, 60, "--pieces", 80, "--workers", 1)
    finish(manifest, tmp_path / "whole", *options)
    whole = label_files(tmp_path / "whole")
    rng = np.random.default_rng(0)
    moments = set()
    for attempt, files in enumerate((0, 8, 20, 35, 50, 65)):  # killed when so many files are there
        out = tmp_path / f"killed{attempt % 3}"  # three folders, each killed twice, later and later
        process = start(manifest, out, *options)
        while process.exitcode is None and sum(len(names) for _, _, names in os.walk(out)) < files:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        found = label_files(out) if out.is_dir() else {}
        moments.add(len(found))
        for name, content in found.items():
            assert content == whole[name]  # whatever has its final name is whole
    assert len(moments) > 3
    for i in range(3):
        out = tmp_path / f"killed{i}"
        finished = {p: p.stat().st_mtime_ns for p in out.rglob("kmeans.npz") if (p.parent / ".kmeans.stamp").is_file()}
        finish(manifest, out, *options)
        assert label_files(out) == whole
        assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
        assert not [p for p in out.rglob(".*") if not p.name.endswith(".stamp")]


RUNNER = """
import resource, sys
sys.path[:0] = [{tests!r}, {user_dir!r}]
from emohubert.pseudo_labels import label_frames
from scripts import load
label_frames._WINDOW_SECONDS = {window}
load("tools/make_labels.py").main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def command(*arguments, window):
    """The command line of tools/make_labels.py in a process of its own, which prints its peak of memory last."""
    code = RUNNER.format(tests=str(ROOT / "tests"), user_dir=str(ROOT / "user_dir"), window=window)
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.slow
def test_ten_times_the_audio_does_not_take_more_memory(tmp_path):
    manifest = make_corpus(tmp_path, seconds=(1.0, 6.0), train=120, valid=1, test=1)
    checkpoint = write_random_hubert(tmp_path / "hubert.pt", seed=1, **SMALL)
    lines = (manifest / "train.tsv").read_text().splitlines()
    tenfold = tmp_path / "tenfold"
    tenfold.mkdir()
    (tenfold / "train.tsv").write_text("\n".join(lines[:1] + lines[1:] * 10) + "\n")
    single = tmp_path / "single"
    single.mkdir()
    (single / "train.tsv").write_text("\n".join(lines) + "\n")
    peaks = []
    for folder in (single, tenfold):
        encoder = ("--checkpoint", checkpoint, "--layers", 2, 4)
        arguments = [folder, tmp_path / f"out-{folder.name}", *encoder, "--clusters", 20, "--max-memory", "2M"]
        result = subprocess.run(command(*arguments, window=120), check=True, capture_output=True, text=True)
        peaks.append(int(result.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], json.dumps(peaks)
