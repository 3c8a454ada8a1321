"""From CREMA-D's real names and votes, with generated audio, to calibrated intensities of unseen speakers."""

import csv
import json
from pathlib import Path

import audmetric
import numpy as np
import pytest
import soundfile
from conftest import DATA
from corpus import make_labels
from scripts import run
from training import MICRO, train

from emohubert.core import programs
from emohubert.corpus import synthetic
from emohubert.corpus.audio import SAMPLE_RATE
from emohubert.corpus.manifest import read_split
from emohubert.evaluation.predictions import read_predictions

TABLES = DATA / "crema_d_metadata"
SCRIPT = programs.load("manifests", "synthetic")
ACTORS = range(1001, 1019)
CLIPS = ("IEO_ANG_LO", "IEO_ANG_HI", "IEO_SAD_LO", "ITS_HAP_XX", "ITS_NEU_XX", "TAI_FEA_XX")
SHOWN = {"ANG": "angry", "HAP": "happy", "NEU": "neutral", "SAD": "sad", "FEA": "angry"}  # the synthesiser has four emotions


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A part of the release: its layout and names, the whole tables, and speech of a voice for each actor."""
    if not TABLES.is_dir():
        pytest.skip("the tables of CREMA-D are not here (set EMOHUBERT_DATA)")
    folder = tmp_path_factory.mktemp("crema")
    for name in ("SentenceFilenames.csv", "VideoDemographics.csv"):
        (folder / name).write_bytes((TABLES / name).read_bytes())
    (folder / "processedResults").mkdir()
    (folder / "processedResults/tabulatedVotes.csv").write_bytes((TABLES / "tabulatedVotes.csv").read_bytes())
    official = set((TABLES / "AudioWAV.txt").read_text().split())
    (folder / "AudioWAV").mkdir()
    lexicon = synthetic.draw_lexicon(0)
    for i, (actor, voice) in enumerate(zip(ACTORS, synthetic.draw_voices(len(ACTORS), 0), strict=True)):
        for j, clip in enumerate(CLIPS):
            name, rng = f"{actor}_{clip}.wav", np.random.default_rng([i, j])
            assert name in official
            emotion = SCRIPT.draw_emotion(SHOWN[clip.split("_")[1]], rng)
            wave = synthetic.synthesise(voice, emotion, 0.6, lexicon, rng)
            soundfile.write(folder / "AudioWAV" / name, wave, SAMPLE_RATE)
    return folder


@pytest.mark.slow
def test_from_votes_to_calibrated_intensity(release, tmp_path):
    manifest = tmp_path / "manifest"
    assert run("manifests/crema_d.py", release, manifest) == 0
    assert run("tools/check_manifest.py", manifest) == 0
    splits = {name: read_split(manifest, name) for name in ("train", "valid", "test")}
    who = [set(s.speakers) for s in splits.values()]
    assert sum(map(len, who)) == len(set.union(*who)) == len(ACTORS) and sum(map(len, splits.values())) == len(ACTORS) * len(CLIPS)
    with (TABLES / "tabulatedVotes.csv").open(newline="") as f:
        votes = {r["fileName"]: float(r["meanEmoResp"]) / 100 for r in csv.DictReader(f) if r[""].startswith("1")}  # voice only

    labels = make_labels(manifest, tmp_path / "labels")
    conditioned = ("task.speakers=spk", "model.speaker_position=output")
    data = (f"task.data={manifest}", f"task.label_dir={labels}", f"checkpoint.save_dir={tmp_path}/papt", "optimization.max_update=2")
    finished = train("hubert_tiny", *MICRO, *data, *conditioned)
    assert finished.returncode == 0, finished.stdout[-3000:]
    start = f"model.init_from={tmp_path}/papt/checkpoint_last.pt"
    options = ("task.target=[intensity]", "model.mask_channel_length=4", "optimization.max_epoch=6", "optimization.lr=[0.003]")
    finished = train("ser_regression_tiny", data[0], start, f"checkpoint.save_dir={tmp_path}/ser", *options)
    assert finished.returncode == 0, finished.stdout[-3000:]

    model = tmp_path / "ser" / "checkpoint_best.pt"
    new = tmp_path / "new.npz"
    assert (
        run(
            "tools/adapt_speaker.py",
            model,
            manifest,
            "test",
            new,
        )
        == 0
    )
    for split in ("train", "test"):
        out = tmp_path / split
        assert run("tools/evaluate.py", model, manifest, split, out, "--embeddings", "--repeats", "50", "--speaker-vectors", new) == 0
    files = ("--train-embeddings", tmp_path / "train/embeddings.npz", "--test-embeddings", tmp_path / "test/embeddings.npz")
    where = ("--train-manifest", manifest / "train", "--test-manifest", manifest / "test", "--bootstrap", "50")
    predictions = ("--predictions", tmp_path / "test/predictions.tsv")
    for name, options in (("published", ("--match", "mean", "--always")), ("careful", ())):
        assert run("tools/calibrate.py", *where, *files, *predictions, tmp_path / name, *options) == 0

    before = read_predictions(tmp_path / "test/predictions.tsv")
    assert before.dims == ["intensity"] and sorted(before.ids) == sorted(splits["test"].ids)
    for row, name in enumerate(before.ids):
        assert before.references[row, 0] == pytest.approx(votes[Path(name).name], abs=1e-6)
    scores = json.loads((tmp_path / "test/metrics.json").read_text())
    assert scores["setting"] == f"adapted ({len(who[2])} speakers)"
    mean = {}  # of a speaker's training labels
    for speaker in who[0]:
        mean[speaker] = np.mean(
            [v for s, v in zip(splits["train"].speakers, splits["train"].dimensions["intensity"], strict=True) if s == speaker]
        )
    for name in ("published", "careful"):
        after = read_predictions(tmp_path / name / "predictions.tsv")
        scores = json.loads((tmp_path / name / "metrics.json").read_text())["dims"]["intensity"]
        assert np.isfinite(after.predicted).all() and after.ids == before.ids
        np.testing.assert_array_equal(after.references, before.references)
        assert scores["ccc"] == pytest.approx(audmetric.concordance_cc(after.references[:, 0], after.predicted[:, 0]))
        report = json.loads((tmp_path / name / "calibration.json").read_text())
        if name == "published":  # each speaker's mean is that of k training speakers' labels
            rows = [line.split("\t") for line in (tmp_path / name / "speakers.tsv").read_text().splitlines()[1:]]
            assert {row[0] for row in rows} == who[2]
            for row in rows:
                own = [i for i, s in enumerate(after.speakers) if s == row[0]]
                if report["k"] <= 5:  # speakers.tsv names the five nearest
                    neighbours = [pair.rpartition(":")[0] for pair in row[-1].split()]
                    assert after.predicted[own, 0].mean() == pytest.approx(np.mean([mean[n] for n in neighbours]), abs=1e-6)
                assert min(mean.values()) - 1e-6 <= after.predicted[own, 0].mean() <= max(mean.values()) + 1e-6
