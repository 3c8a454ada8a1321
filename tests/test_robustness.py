"""Robustness: every condition is what its name says, does not depend on batches, and is made once."""

import json
import math

import numpy as np
import pytest
import scipy.signal
import soundfile
from finetuning import make_pretrained_corpus
from scripts import run
from sklearn.metrics import balanced_accuracy_score
from training import train

from emohubert.corpus.manifest import read_split
from emohubert.data import degradations
from emohubert.data.masking import rng_for
from emohubert.evaluation import robustness
from emohubert.evaluation.inference import predict_split
from emohubert.evaluation.predictions import read_predictions
from emohubert.report import page as report
from emohubert.tasks.trained import load_trained

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

FEW = ["--snr", "10", "-5", "--noise", "white", "--t60", "0.4", "--cutoff", "600", "--repeats", "50"]
NAMES = ["clean", "white noise 10 dB", "white noise -5 dB", "reverberation 0.4 s", "low-pass 600 Hz"]

STEMS = ["clean", "white_noise_10_db", "white_noise_5_db", "reverberation_0.4_s", "low_pass_600_hz"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_pretrained_corpus(tmp_path_factory.mktemp("corpus"), seconds=(0.3, 1.0), valid=4, test=16)


def finetune(corpus, kind, *overrides):
    options = [f"task.data={corpus}/manifest", f"model.init_from={corpus}/hubert/checkpoint_last.pt", "model.mask_channel_length=4"]
    options += [f"checkpoint.save_dir={corpus}/{kind}", "optimization.lr=[0.003]", "model.freeze=none"]
    finished = train(f"ser_{kind}_tiny", *options, *overrides)
    assert finished.returncode == 0, finished.stdout[-3000:]
    return corpus / kind / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def classifier(corpus):
    return finetune(corpus, "classification", "optimization.max_epoch=12")


@pytest.fixture(scope="module")
def finished(corpus, classifier):
    assert run("tools/robustness.py", classifier, corpus / "manifest", "test", corpus / "robustness", *FEW) == 0
    return corpus / "robustness"


def values(folder):
    return json.loads((folder / "robustness.json").read_text())


def predictions(folder):
    return {path.stem: read_predictions(path) for path in (folder / "conditions").glob("*.tsv")}


# ------------------------------------------------------------------------------------------------------------ what is done


def test_every_condition_is_what_predicting_degraded_files_gives(corpus, classifier, finished, tmp_path):
    """The audio is degraded here, by scipy where that can do it, and written to files."""
    task, model = load_trained(classifier)
    split = read_split(corpus / "manifest", "test")

    def noise(wave, index):
        added = rng_for(1, 0, index, "augment").standard_normal(len(wave))
        return wave + added * np.sqrt(np.mean(wave**2) / np.mean(added**2)) * 10 ** (5 / 20)

    def room(wave, index):
        response = degradations.impulse_response(0.4, 0, rng_for(1, 0, index, "augment"))
        wet = scipy.signal.fftconvolve(wave, response)[: len(wave)]
        return wet * np.sqrt(np.mean(wave**2) / np.mean(wet**2))

    def low_pass(wave, _):
        sections = scipy.signal.butter(8, 600, fs=16_000, output="sos")
        return scipy.signal.sosfiltfilt(sections, wave, padlen=min(107, len(wave) - 1))

    by_hand = {"white_noise_5_db": noise, "reverberation_0.4_s": room, "low_pass_600_hz": low_pass}
    found = predictions(finished)
    for name, change in {"clean": lambda wave, _: wave, **by_hand}.items():
        for index, path in enumerate(split.paths):
            wave, _ = soundfile.read(split.audio(index))
            wave = change(wave, index)
            split.n_samples[index] = len(wave)
            soundfile.write(tmp_path / path, wave, 16_000, subtype="DOUBLE")
        degraded = read_split(corpus / "manifest", "test")
        degraded.root, degraded.n_samples = tmp_path, split.n_samples
        expected, _ = predict_split(task, model, degraded)
        np.testing.assert_allclose(found[name].probabilities, expected.probabilities, atol=2e-4, err_msg=name)
    changed = [np.abs(found[name].probabilities - found["clean"].probabilities).max() for name in by_hand]
    assert min(changed) > 0.01, "a condition that changes nothing proves nothing"


def test_scores_and_changes(finished):
    content, found = values(finished), predictions(finished)
    assert [c["name"] for c in content["conditions"]] == NAMES
    assert len(found) == len(NAMES) and (content["n"], content["speakers"]) == (16, 4)
    clean = content["conditions"][0]["scores"]
    reference = found["clean"].emotions
    for condition, predicted in zip(content["conditions"], (found[name] for name in STEMS), strict=True):
        ua = balanced_accuracy_score(reference, predicted.predicted)
        score = condition["scores"]["UA"]
        assert list(condition["scores"]) == ["UA", "WA", "macro F1"]
        assert score["value"] == pytest.approx(ua)
        assert score["change"] == pytest.approx(ua - clean["UA"]["value"])
        assert score["ci"][0] <= score["value"] <= score["ci"][1] and score["change_ci"][0] <= score["change"] <= score["change_ci"][1]
    assert clean["UA"]["value"] > 0.6, "four tones are easy"
    assert min(c["scores"]["UA"]["change"] for c in content["conditions"]) < -0.2


def test_the_clean_row_is_that_of_evaluate(corpus, classifier, finished, tmp_path):
    assert run("tools/evaluate.py", classifier, corpus / "manifest", "test", tmp_path, "--repeats", "50") == 0
    scores, clean = json.loads((tmp_path / "metrics.json").read_text()), values(finished)["conditions"][0]["scores"]
    for name, shown in robustness.SCORES.items():
        assert (clean[shown]["value"], clean[shown]["ci"]) == (scores[name], scores["ci"][name])


def test_tables(finished):
    content = values(finished)
    table = (finished / "robustness.md").read_text().splitlines()
    assert len(table) == 2 + len(NAMES) and {line.count("|") for line in table} == {8}
    assert f"| {content['conditions'][2]['scores']['UA']['value']:.3f} [" in table[4]


@pytest.mark.slow
def test_dimensions(corpus, tmp_path):
    checkpoint = finetune(corpus, "regression", "task.target=[arousal,valence]", "optimization.max_epoch=2")
    assert run("tools/robustness.py", checkpoint, corpus / "manifest", "test", tmp_path, *FEW) == 0
    rows = values(tmp_path)["conditions"]
    assert [list(c["scores"]) for c in rows] == [["CCC arousal", "CCC valence"]] * len(NAMES)
    for row in rows[1:]:
        for name, score in row["scores"].items():
            assert score["change"] == pytest.approx(score["value"] - rows[0]["scores"][name]["value"])


# ---------------------------------------------------------------------------------------------- batches, seeds, resuming


def state(folder):
    return {p.stem: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "conditions").glob("*.tsv")}


def test_only_what_is_missing_is_made_and_it_is_the_same(corpus, classifier, finished):
    before, content = state(finished), (finished / "robustness.json").read_bytes()
    picture = (finished / "robustness.png").read_bytes()
    (finished / "conditions" / "white_noise_5_db.tsv").unlink()
    (finished / "conditions" / ".low_pass_600_hz.json").unlink()
    (finished / "robustness.json").unlink()
    options = ["--batch-seconds", "0.5", "--workers", "1"]
    assert run("tools/robustness.py", classifier, corpus / "manifest", "test", finished, *FEW, *options) == 0
    after = state(finished)
    assert {name for name in before if before[name][0] != after[name][0]} == {"white_noise_5_db", "low_pass_600_hz"}
    assert {name: b for name, (_, b) in before.items()} == {name: b for name, (_, b) in after.items()}
    assert (finished / "robustness.json").read_bytes() == content and (finished / "robustness.png").read_bytes() == picture


def test_another_seed_makes_all_but_the_clean_recordings_again(corpus, classifier, tmp_path):
    short = ["--snr", "0", "--noise", "pink", "--t60", "--cutoff", "--repeats", "10"]
    assert run("tools/robustness.py", classifier, corpus / "manifest", "test", tmp_path, *short) == 0
    first = state(tmp_path)
    assert run("tools/robustness.py", classifier, corpus / "manifest", "test", tmp_path, *short, "--seed", "2") == 0
    second = state(tmp_path)
    assert first.keys() == second.keys() == {"clean", "pink_noise_0_db"}
    assert first["clean"] == second["clean"] and first["pink_noise_0_db"][1] != second["pink_noise_0_db"][1]
    assert run("tools/robustness.py", classifier, corpus / "manifest", "test", tmp_path, *short, "--seed", "2", "--overwrite") == 0
    third = state(tmp_path)
    assert all(third[name][0] > second[name][0] and third[name][1] == second[name][1] for name in third)


def test_padded_batches_hear_the_same(corpus, classifier):
    """The waveform of an utterance is the same in whatever batch it is read."""
    task, _ = load_trained(classifier)
    split = read_split(corpus / "manifest", "test")
    for condition in robustness.conditions():
        data = task.make_dataset(split, training=False, targets=np.zeros(16, dtype=np.int64), transform=condition)
        items = [data[i] for i in (9, 2, 11)]
        batch = data.collater(items)["net_input"]
        assert batch["lengths"] == [data.size(i) for i in (9, 2, 11)]
        for row, item, index in zip(batch["source"], items, (9, 2, 11), strict=True):
            np.testing.assert_array_equal(row[: data.size(index)], data[index]["source"])
            np.testing.assert_array_equal(row[: data.size(index)], item["source"])


# ------------------------------------------------------------------------------------------------------------- conditions


def test_names_are_unique_and_levels_in_the_order_given():
    levels = {"snr": [20, 0, 20], "t60": [], "cutoff": []}
    chosen = robustness.conditions(levels, noises=("white", "pink", "babble"))
    assert [c.name for c in chosen] == [f"{kind} noise {v} dB" for kind in ("white", "pink", "babble") for v in (20, 0)]
    assert len(robustness.conditions()) == 4 * 2 + 2 * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--snr", "nan"], "--snr nan: not a finite number"),
        (["--t60", "0"], "a reverberation time of 0.0 s"),
        (["--cutoff", "9000"], "a cut-off of 9000.0 Hz"),
        (["--snr", "--t60", "--cutoff"], "no condition is left"),
        (["--noise", "brown"], "invalid choice: 'brown'"),
    ],
)
def test_bad_usage(tmp_path, capsys, options, expected):
    assert run("tools/robustness.py", tmp_path / "none.pt", tmp_path, "test", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and expected in error[0]
    assert not (tmp_path / "out").exists()


def test_a_split_without_references(corpus, classifier, tmp_path, capsys):
    for path in (corpus / "manifest").glob("*"):
        text = path.read_text()
        (tmp_path / path.name).write_text("-\n" * 16 if path.name == "test.emo" else text)
    assert run("tools/robustness.py", classifier, tmp_path, "test", tmp_path / "out", "--repeats", "10") == 2
    assert "no utterance of a known speaker has a reference" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "robustness.json").exists()


# ----------------------------------------------------------------------------------------------------- figure and report


def made_up(changes):
    def scores(change):
        p = None if change == 0 else 0.04
        return {"UA": {"value": 0.8 + change, "ci": [0, 1], "change": change, "change_ci": [change - 0.05, change + 0.05], "p": p}}

    conditions = [{"name": "clean", "scores": scores(0.0)}]
    conditions += [{"name": f"white noise {v} dB", "scores": scores(c)} for v, c in changes.items()]
    return {"title": "Robustness", "n": 99, "speakers": 5, "split": "m/test.tsv", "conditions": conditions}


def test_the_report_shows_table_and_picture(tmp_path):
    content = made_up({20: -0.02, 0: -0.3})
    (tmp_path / "robustness").mkdir()
    (tmp_path / "robustness" / "robustness.json").write_text(json.dumps(content))
    robustness.draw(tmp_path / "robustness" / "robustness.png", content)
    (tmp_path / "robustness" / "robustness.md").write_text("\n".join(robustness.markdown(content)))
    path, _, _ = report.write(tmp_path)
    page = path.read_text()
    assert "-0.300 [-0.350, -0.250] |" in page
    assert page.count("data:image/png") == 1


def test_the_report_survives_null(tmp_path):
    content = made_up({0: -0.1})
    for condition in content["conditions"]:
        condition["scores"]["UA"] = dict.fromkeys(("value", "ci", "change", "change_ci", "p"))
    (tmp_path / "robustness.json").write_text(json.dumps(content))
    assert "white noise 0 dB" in report.write(tmp_path)[0].read_text()


def test_the_figure_takes_gaps(tmp_path):
    content = made_up({20: -0.02, 0: math.nan})
    robustness.draw(tmp_path / "f.png", content)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
