"""Is personalising worth it: three settings over the number of speakers, and shifts of speakers."""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr
from scripts import run
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from emohubert.evaluation import personalisation


@pytest.fixture(scope="module")
def voices():
    """Eight speakers whose voices differ more than their three emotions do."""
    rng = np.random.default_rng(1)
    speakers, emotions = np.repeat([f"s{i}" for i in range(8)], 30), np.tile(["angry", "happy", "sad"], 80)
    voice = {s: 4 * rng.normal(size=6) for s in sorted(set(speakers))}
    emotion = {e: 1.5 * rng.normal(size=6) for e in sorted(set(emotions))}
    x = np.stack([voice[s] + emotion[e] for s, e in zip(speakers, emotions, strict=True)]) + 0.5 * rng.normal(size=(240, 6))
    return x, emotions, speakers


def test_offsets_of_speakers_are_what_personalisation_gains(voices):
    found = personalisation.study(*voices, counts=[2, 7])
    means = {setting: np.mean(list(of.values()), axis=0) for setting, of in found["scores"].items()}
    assert means["unheard"][1] < 0.75 and means["normalised"][1] > 0.95 and means["heard"][1] > 0.95
    assert "better for" in "\n".join(personalisation.lines(found))


def test_unheard_is_leave_one_speaker_out_on_half_of_the_speaker(voices):
    x, emotions, speakers = voices
    found = personalisation.study(*voices, counts=[7], seed=3)
    test = np.random.default_rng([3, 2]).permutation(np.flatnonzero(speakers == "s2"))[:15]
    train = speakers != "s2"
    machine = make_pipeline(StandardScaler(), SVC(C=10, class_weight="balanced")).fit(x[train], emotions[train])
    expected = balanced_accuracy_score(emotions[test], machine.predict(x[test]))
    assert found["scores"]["unheard"]["s2"] == [pytest.approx(expected)]


def test_shifts_by_hand(voices):
    x, emotions, speakers = voices
    found = personalisation.study(*voices, counts=[7])
    assert found["shifts"]["label"]["s1"] == pytest.approx(0), "all speakers show the same emotions"
    z = (x - x.mean(0)) / x.std(0)
    own, rest = z[speakers == "s1"], z[speakers != "s1"]
    a, b = own.var(0) + 1e-6, rest.var(0) + 1e-6
    expected = np.mean(np.log(np.sqrt(b / a)) + (a + (own.mean(0) - rest.mean(0)) ** 2) / (2 * b) - 0.5)
    assert found["shifts"]["feature"]["s1"] == pytest.approx(expected)
    r, p = pearsonr([found["shifts"]["feature"][s] for s in sorted(set(speakers))], [v[-1] for v in found["scores"]["unheard"].values()])
    assert found["correlations"] == {"feature": [pytest.approx(r), pytest.approx(p)], "label": None}


def test_dimensions(voices):
    x, _, speakers = voices
    found = personalisation.study(x, x[:, 0] / 10, speakers, counts=[7])
    assert found["score"] == "CCC" and found["scores"]["heard"]["s0"][0] > 0.5


@pytest.mark.slow
def test_program(corpus, tmp_path, capsys):
    arguments = (corpus / "manifest", tmp_path, "--checkpoint", "small", "--split", "train", "--counts", "1", "3")
    assert run("tools/personalisation.py", *arguments) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"personalisation.json", "personalisation.md", "speakers.png", "shifts.png"}
    found = json.loads((tmp_path / "personalisation.json").read_text())
    assert found["counts"] == [1, 3] and "heard - unheard, 3 speakers" in capsys.readouterr().out
    assert run("tools/report.py", tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert "What knowing a speaker would bring" in page and "heard - unheard, 3 speakers" in page and page.count("<img") == 2
    assert run("tools/personalisation.py", *arguments[:-2], "9") == 2 and "give numbers from 1" in capsys.readouterr().err
