"""Measures of labels, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from corpus import make_corpus, make_labels
from scripts import run
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from emohubert.pseudo_labels.quality import association, quality


def test_association_is_scikit_learns():
    rng = np.random.default_rng(0)
    a, b = rng.integers(6, size=2000), rng.integers(4, size=2000)
    b[a == 2] = 1
    counts = np.zeros((6, 4))
    np.add.at(counts, (a, b), 1)
    found = association(counts)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(b, a), abs=1e-12)
    assert found["mutual_information"] == pytest.approx(mutual_info_score(b, a) / np.log(2), abs=1e-12)
    assert found["purity"] == pytest.approx(sum(np.bincount(b[a == k]).max() for k in range(6)) / 2000)
    assert found["majority"] == pytest.approx(np.bincount(b).max() / 2000)


def test_clusters_that_are_the_classes_and_clusters_that_say_nothing():
    same = association([[5, 0], [0, 7]])
    assert (same["purity"], same["nmi"]) == (1.0, pytest.approx(1.0))
    nothing = association([[2, 4], [3, 6]])
    assert nothing["nmi"] == pytest.approx(0.0, abs=1e-12)
    assert nothing["purity"] == nothing["majority"] == pytest.approx(2 / 3)


def test_by_hand():
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 1, 1, 1])
    offsets = np.array([0, 4, 4, 10])  # the second utterance has no frame
    found = quality(labels, offsets, 4, {"emotion": ["sad", "sad", None], "speaker": ["a", "b", "b"]}, hop=320)
    assert found["sizes"] == {"used": 3, "largest_share": 0.4, "perplexity": pytest.approx(2**1.5709505945)}
    assert found["runs"] == {"number": 4, "mean_ms": pytest.approx(50.0)}  # 000 | 1 || 222 | 111
    assert "emotion" not in found["targets"]  # a single class says nothing
    assert found["targets"]["speaker"]["purity"] == pytest.approx((3 + 3 + 3) / 10)


def test_a_run_ends_with_its_utterance():
    found = quality(np.zeros(10, int), np.array([0, 5, 10]), 1, {}, hop=160)
    assert found["runs"]["number"] == 2
    assert found["runs"]["mean_ms"] == pytest.approx(50.0)


def test_chance_is_what_random_labels_reach():
    rng = np.random.default_rng(1)
    offsets = np.arange(0, 3001, 50)
    labels = np.repeat(rng.integers(20, size=60), 50)  # one cluster per utterance, at random
    speakers = [str(i % 10) for i in range(60)]
    found = quality(labels, offsets, 20, {"speaker": speakers}, hop=320)["targets"]["speaker"]
    assert found["nmi"] > 0.3
    assert found["nmi_chance"] == pytest.approx(found["nmi"], rel=0.2)


def test_the_tool_measures_a_tree(tmp_path, capsys):
    manifest = make_corpus(tmp_path / "c", train=8, valid=2, test=2)
    for name, k, hop in (("L2/km8", 8, 320), ("L10/km8", 8, 320), ("L2/km12", 12, 320), ("mfcc/km8", 8, 160), ("L2/km8-pieces20", 20, 320)):
        make_labels(manifest, tmp_path / "l" / name, classes=k, hop=hop)
    assert run("tools/label_quality.py", tmp_path / "l", manifest, "train", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "label_quality_train.json").read_text())
    assert list(found) == ["L2/km8", "L2/km8-pieces20", "L2/km12", "L10/km8", "mfcc/km8"]
    assert {"emotion", "speaker"} == set(found["L2/km12"]["targets"])
    assert found["mfcc/km8"]["frames"] > 1.8 * found["L2/km8"]["frames"]
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:6] == ["labels", "K", "used", "perplexity", "largest", "run"]
    assert len(table) == 6
    assert (tmp_path / "out" / "label_quality_train.png").read_bytes().startswith(b"\x89PNG")
    assert run("tools/label_quality.py", tmp_path / "l" / "L2" / "km8", manifest, "valid") == 0
    assert (tmp_path / "l" / "L2" / "km8" / "label_quality_valid.json").is_file()


def test_labels_that_are_not_there_or_do_not_fit_are_errors(tmp_path, capsys):
    manifest = make_corpus(tmp_path / "c", train=4, valid=2, test=2)
    (tmp_path / "l").mkdir()
    assert run("tools/label_quality.py", tmp_path / "l", manifest, "train") == 2
    make_labels(manifest, tmp_path / "l")
    (tmp_path / "l" / "train.km").write_text("1 2\n" * 3)
    assert run("tools/label_quality.py", tmp_path / "l", manifest, "train") == 2
    errors = capsys.readouterr().err.splitlines()
    assert "holds no train.km" in errors[0]
    assert "3 lines for 4 utterances" in errors[1]
