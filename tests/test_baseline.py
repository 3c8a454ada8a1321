"""The eGeMAPS baseline: against figures published for it, and on features whose answer is known."""

import json
import shutil

import numpy as np
import pytest
import torch
from scripts import run
from sklearn.preprocessing import StandardScaler

from emohubert.corpus import audio
from emohubert.corpus.manifest import read_split
from emohubert.data.speed_perturbation import at_speeds
from emohubert.evaluation import baseline
from emohubert.models.from_pretrained import load_encoder
from emohubert.pseudo_labels.features import MfccFeatures

PLAIN, NORMALISED = (name.format(baseline.EGEMAPS) for name in (baseline.PLAIN, baseline.NORMALISED))


def test_normalised_is_scikit_learns_scaler_for_each_speaker():
    rng = np.random.default_rng(0)
    features, speakers = rng.normal(3, 2, (40, 5)), list(rng.choice(["a", "b", "c"], 40))
    features[:, 4] = 7
    found = baseline.normalised(features, speakers)
    for speaker in "abc":
        rows = np.array(speakers) == speaker
        np.testing.assert_allclose(found[rows], StandardScaler().fit_transform(features[rows]), atol=1e-12)


@pytest.fixture
def folds(tmp_path, emodb):
    assert run("manifests/emodb.py", emodb, tmp_path / "m") == 0
    return tmp_path / "m"


def scores(out):
    return {s["name"]: s for s in json.loads((out / "results.json").read_text())["systems"]}


def test_speakers_who_differ_by_an_offset_are_normalised_away(folds, tmp_path, monkeypatch):
    """Features that tell the emotion but for an offset of each speaker: normalised it is found, plain it is not."""

    def made_up(splits, cache, workers):
        rng, classes = np.random.default_rng(1), ["angry", "happy", "neutral", "sad"]
        offset = {name: 20 * rng.normal(size=4) for name in sorted({s for split in splits for s in split.speakers})}
        return {
            str(s.audio(i)): np.eye(4)[classes.index(s.emotions[i])] + offset[s.speakers[i]] + 0.1 * rng.normal(size=4)
            for s in splits
            for i in range(len(s))
        }

    monkeypatch.setattr(baseline, "functionals", made_up)
    for fold in (3, 4, 5):
        shutil.rmtree(folds / f"fold{fold}")
    assert run("tools/baseline.py", folds, tmp_path / "out") == 0
    found = scores(tmp_path / "out")
    assert np.mean(found[baseline.MAJORITY]["scores"]["UA %"]) == 25
    assert np.mean(found[NORMALISED]["scores"]["UA %"]) > 95 > 70 > np.mean(found[PLAIN]["scores"]["UA %"])
    assert found[PLAIN]["setting"] == ["inductive (2 speakers)"]
    assert found[NORMALISED]["setting"] == ["normalised by unlabelled audio (2 speakers)"]


def test_probe_of_an_encoder(corpus, tmp_path):
    """The features are mean and standard deviation over the loud frames of a layer, computed here with the encoder itself."""
    split, path = read_split(corpus / "manifest", "test"), corpus / "hubert" / "checkpoint_last.pt"
    vectors, encoder = baseline.encoded([split], path, [2], 2)[2], load_encoder(path)
    for i in range(3):
        x = torch.from_numpy(audio.read(split.audio(i)))[None]
        features, (frames,) = encoder.features(x, [x.size(1)], [2])
        energy = np.array([float((x[0, t * 320 : t * 320 + 400] ** 2).mean()) for t in range(frames)])
        loud = features[2][0].numpy()[10 * np.log10(energy / energy.max()) > -35]
        np.testing.assert_allclose(vectors[str(split.audio(i))], np.concatenate([loud.mean(0), loud.std(0)]), atol=2e-4)
    assert run("tools/baseline.py", corpus / "manifest", tmp_path / "out", "--checkpoint", path, "--layers", "1", "2") == 0
    assert list(scores(tmp_path / "out"))[-1] == "layer 2 + SVM, speakers normalised" and len(scores(tmp_path / "out")) == 5
    copies = at_speeds(split, [0.8])
    assert baseline.encoded([copies], path, [2], 2)[2].keys() == vectors.keys() | {f"{key}@0.8" for key in vectors}
    probe = ["--checkpoint", path, "--layers", "1", "--speed-perturbation", "0.8"]
    assert run("tools/baseline.py", corpus / "manifest", tmp_path / "copies", *probe) == 0
    before, after = (scores(tmp_path / name)["layer 1 + SVM"] for name in ("out", "copies"))
    assert before["scores"] != after["scores"] and before["setting"] == after["setting"]


def test_mfccs_beside_an_encoder(corpus, tmp_path, capsys):
    """Mean and standard deviation over the loud frames, of which every one is two of MFCCs."""
    manifest, path = corpus / "manifest", corpus / "hubert" / "checkpoint_last.pt"
    split, vectors = read_split(manifest, "test"), {}
    for _ in MfccFeatures(1).extract(
        split, range(len(split)), lambda piece, found: vectors.update({piece.utterance: found["mfcc"].numpy()})
    ):
        pass
    found = baseline.cepstra([split], 1)
    for i in range(3):
        x = audio.read(split.audio(i))
        energy = np.array([(x[t * 320 : t * 320 + 400] ** 2).mean() for t in range(audio.n_frames(len(x)))])
        loud = vectors[i][: 2 * len(energy)][np.repeat(10 * np.log10(energy / energy.max()) > -35, 2)[: len(vectors[i])]]
        np.testing.assert_allclose(found[str(split.audio(i))], np.concatenate([loud.mean(0), loud.std(0)]), rtol=1e-3, atol=1e-3)
    options = ["--features", "mfcc", "encoder", "--checkpoint", path, "--layers", "1"]
    assert run("tools/baseline.py", manifest, tmp_path / "out", *options) == 0
    assert {"MFCC + SVM", "layer 1 + SVM, speakers normalised"} < set(scores(tmp_path / "out"))
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert run("tools/baseline.py", manifest, tmp_path / "out", "--features", "mfcc", "--checkpoint", path) == 2
    assert "--features encoder and --checkpoint CKPT, or neither" in capsys.readouterr().err


@pytest.mark.slow
def test_emodb_scores_are_those_known(emodb, tmp_path):
    pytest.importorskip("opensmile")
    assert run("manifests/emodb.py", emodb, tmp_path / "m", "--protocol", "leave-one-speaker-out") == 0
    assert run("tools/baseline.py", tmp_path / "m", tmp_path / "out") == 0
    for name, (mean, std) in {PLAIN: (74.0, 8.4), NORMALISED: (86.1, 8.1)}.items():
        ua = scores(tmp_path / "out")[name]["scores"]["UA %"]
        assert (round(np.mean(ua), 1), round(np.std(ua), 1)) == (mean, std)


def test_bad_input_is_one_line(tmp_path, folds, capsys):
    assert run("tools/baseline.py", tmp_path, tmp_path / "out") == 2
    assert run("tools/baseline.py", folds, tmp_path / "out", "--target", "arousal") == 2
    assert "no “arousal”" in capsys.readouterr().err
