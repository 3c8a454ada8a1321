"""The report: what it finds, what it says first, and that nothing in a run's files can become markup or be fetched."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import run as run_program
from test_evaluation import a_split, some_classes, some_dimensions
from test_figures import JsonProgressBar, fairseq_log

from emohubert.core.errors import InputError
from emohubert.core.files import write_json
from emohubert.evaluation import scoring
from emohubert.report import html, warnings
from emohubert.report import page as report
from emohubert.report.collect import Evaluation, Training, discover
from emohubert.training.curves import read_training_log

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def save(folder, made, **meta):
    return scoring.save(folder, made, a_split(made, **meta))


def without_figures(folder, made, name="metrics.json", **meta):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, scoring.evaluate(made, a_split(made, **meta), repeats=200))


def training(folder, config="task: {_name: emotion_finetuning}\n", log=True):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    if log:
        fairseq_log(folder / "hydra_train.log", JsonProgressBar)
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run with everything a report knows."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    save(folder / "fold1" / "test", some_classes(seed=1), sex=["f", "m"] * 60, file=[str(i) for i in range(120)])
    without_figures(folder / "fold2" / "test", some_classes(seed=2))
    after = some_dimensions()
    without_figures(folder / "calibrated", after, "metrics_before.json")
    after.predicted[:, 0] += 0.3
    save(folder / "calibrated", after)
    (folder / "manifest").mkdir()
    counts = {"fold1": {"train": 300, "test": 120}, "fold2": {"train": 301, "test": 119}}
    corpus = {"corpus": "emodb", "utterances": 420, "hours": 0.5, "speakers": 10, "classes": {"angry": 200, "sad": 220}, "counts": counts}
    write_json(folder / "manifest" / "corpus.json", {**corpus, "left_out": {"too short": ["x.wav"]}})
    leak = {"kind": "speaker", "first": "train.tsv", "second": "test.tsv", "shared": ["s1", "s2"], "allowed": False}
    write_json(folder / "check_manifest.json", {"ok": False, "errors": [], "leaks": [leak], "notes": [], "splits": {}})
    write_json(folder / "results.json", {"setting": "inductive", "UA": {"mean": 0.61234, "std": 0.05678, "n": 5}, "pooled": {"UA": 0.6}})
    training(folder / "pretrain", "task: {_name: speaker_hubert_pretraining, labels: [mfcc/km50]}\nmodel: {speaker_position: film}\n")
    return folder


@pytest.fixture(scope="module")
def whole_page(whole_run):
    path, _, written = report.write(whole_run)
    assert written
    return path.read_text(encoding="utf-8")


def test_everything_is_found_and_told(whole_run, whole_page):
    text = Page(whole_page).text
    for part in (
        "my run",
        "Setting: inductive",
        "emodb",
        "420 utterances, 0.5 hours, 10 speakers",
        "1 recordings left out: too short",
        "fold*/test",
        "0.612 ± 0.057 (n = 5)",
        "speaker position",
        "film",
        "mfcc/km50",
        "best ua at update",
        "Leak of speaker (not allowed): 2 shared by train.tsv and test.tsv: s1, s2.",
        "Columns with too many values to break down: file.",
    ):
        assert part in text, part
    scores = json.loads((whole_run / "fold1" / "test" / "metrics.json").read_text())
    low, high = scores["ci"]["UA"]
    assert f"{scores['UA']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"{scores['speakers']['UA']['mean']:.3f} ± {scores['speakers']['UA']['std']:.3f} (n = 6)" in text
    folds = [json.loads((whole_run / f / "test" / "metrics.json").read_text())["UA"] for f in ("fold1", "fold2")]
    assert f"{np.mean(folds):.3f} ± {np.std(folds):.3f}" in text


def test_before_and_after_calibration(whole_run, whole_page):
    before, after = (json.loads((whole_run / "calibrated" / f).read_text())["dims"] for f in ("metrics_before.json", "metrics.json"))
    text = Page(whole_page).text
    assert f"Worse after calibration: arousal: ccc {before['arousal']['ccc']:.3f} → {after['arousal']['ccc']:.3f}" in text
    assert f"{after['arousal']['ccc'] - before['arousal']['ccc']:+.3f}worse" in text


def test_leaks_and_problems_come_first(whole_run):
    found = warnings.of_run(discover(whole_run))
    assert [f.level for f in found] == sorted((f.level for f in found), key=warnings.LEVELS.index)
    assert (found[0].kind, found[0].level) == ("leak speaker False", "problem")


def test_the_page_needs_nothing_from_outside(whole_run, whole_page):
    page = Page(whole_page)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "video", "audio"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith("data:image/png;base64,") if name == "img" else re.fullmatch(r"#e-[0-9a-f]+", value)
    assert "url(" not in whole_page and "@import" not in whole_page
    assert "default-src &#x27;none&#x27;" in whole_page
    pictures = [base64.b64decode(a["src"].split(",")[1]) for name, a in page.elements if name == "img"]
    drawn = [p.read_bytes() for p in whole_run.rglob("figures/*.png")]
    assert len(pictures) == len(drawn) + 1  # and the training curves
    assert set(drawn) <= set(pictures)
    assert all(a["alt"] for name, a in page.elements if name == "img")
    targets = {a["id"] for _, a in page.elements if "id" in a}
    assert {a["href"][1:] for _, a in page.elements if "href" in a} <= targets


ALLOWED = """html head meta title style body main h1 h2 h3 p b div span table thead tbody tr th td ul li a
figure img figcaption details summary pre footer"""
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"


def test_no_text_of_a_run_becomes_markup(tmp_path):
    folder = tmp_path / "run <b>bold<"
    made = some_classes(12, speakers=2)
    rename = {name: HOSTILE if name == "sad" else name for name in made.classes}
    made.classes = [rename[c] for c in made.classes]
    made.emotions, made.predicted = [rename[c] for c in made.emotions], [rename[c] for c in made.predicted]
    made.speakers = [s + HOSTILE for s in made.speakers]
    without_figures(folder / "<i>eval", made, **{HOSTILE: [HOSTILE, "b"] * 6})
    (folder / "<i>eval" / "figures").mkdir()
    (folder / "<i>eval" / "figures" / "confusion_<b>.png").write_bytes(b"\x89PNG")
    write_json(folder / "results.json", {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}, "setting": HOSTILE, "list": [{HOSTILE: HOSTILE}]})
    corpus = dict.fromkeys(("corpus", "utterances", "hours", "speakers", "options"), HOSTILE)
    corpus |= {"classes": {HOSTILE: HOSTILE}, "counts": {HOSTILE: {HOSTILE: HOSTILE}}, "left_out": {HOSTILE: [HOSTILE]}}
    write_json(folder / "corpus.json", corpus)
    leak = {"kind": HOSTILE, "first": HOSTILE, "second": HOSTILE, "shared": [HOSTILE]}
    splits = {HOSTILE: {HOSTILE: {"utterances": HOSTILE, "classes": {HOSTILE: HOSTILE}}}}
    write_json(folder / "check_manifest.json", {"errors": [HOSTILE], "leaks": [leak], "splits": splits})
    training(folder / "<u>train", f"task: {{_name: {json.dumps(HOSTILE)}}}\n{json.dumps(HOSTILE)}: 1\n", log=False)
    (folder / "<i>eval" / "metrics_before.json").write_text(HOSTILE)
    page = Page(report.write(folder)[0].read_text(encoding="utf-8"))
    used = {name for name, _ in page.elements}
    assert used <= set(ALLOWED.split())
    assert "alert(1)" in page.text
    assert all(attributes.get("src", "data:").startswith("data:") and "onerror" not in attributes for _, attributes in page.elements)


def test_a_second_run_changes_nothing_and_a_changed_file_is_noticed(tmp_path):
    without_figures(tmp_path, some_classes(20))
    path, _, written = report.write(tmp_path)
    first, when = path.read_bytes(), path.stat().st_mtime_ns
    assert written
    assert report.write(tmp_path)[2] is False
    assert path.stat().st_mtime_ns == when
    assert report.write(tmp_path, overwrite=True)[2] is True
    assert path.read_bytes() == first
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "confusion.png").write_bytes(b"\x89PNG")
    assert report.write(tmp_path)[2] is True
    without_figures(tmp_path, some_classes(21))
    assert report.write(tmp_path)[2] is True


NO_JSON = ["", "{", "a: 2024-99-99", "!!python/name:os.system x", "[" * 100_000]
WRONG_SHAPE = ["null", "3", "[]", '{"n": 3, "UA": 1, "by": 1, "per_speaker": {}}', '{"errors": [], "leaks": [1], "counts": 2}']
BROKEN = {
    "metrics.json": NO_JSON + WRONG_SHAPE,
    "metrics_before.json": NO_JSON + WRONG_SHAPE,
    "check_manifest.json": NO_JSON + WRONG_SHAPE,
    "calibration.json": [*NO_JSON, "null", "3", "[]", '{"paired": [1]}'],
    "corpus.json": [*NO_JSON, "null", "3", "[]", WRONG_SHAPE[-1]],
    "results.json": [*NO_JSON, "null", "3"],
    ".hydra/config.yaml": ["", "{", "[]", "null", "3", "a: 2024-99-99", "!!python/name:os.system x"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in BROKEN.items() for content in contents])
def test_broken_files_are_named_and_the_rest_is_reported(tmp_path, name, content):
    without_figures(tmp_path / "good", some_classes(20))
    folder = tmp_path / "broken"
    (folder / ".hydra").mkdir(parents=True)
    if name in ("metrics_before.json", "calibration.json"):
        without_figures(folder, some_classes(20))
    (folder / name).write_text(content)
    path, run, _ = report.write(tmp_path)
    text = Page(path.read_text(encoding="utf-8")).text
    assert list(run.unread) == [f"broken/{name}"]
    assert f"broken/{name}" in text
    assert "Evaluation: good" in text


def test_tables_of_results_and_comparisons(tmp_path):
    runs = [{"name": "PAPT", "setting": ["inductive (2 speakers)"], "runs": 2, "utterances": 40, "scores": {"UA %": [60.0, 70.0]}}]
    runs.append({"name": "TAPT", "setting": ["seen"], "runs": 1, "utterances": 20, "scores": {"CCC arousal": [None]}})
    write_json(tmp_path / "results.json", {"title": "A table", "systems": runs})
    this, other = some_classes(60, seed=3), some_classes(60, seed=3, skill=0.5)
    comparison = scoring.compare(this, other, repeats=100)
    write_json(tmp_path / "comparison.json", comparison)
    text = Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text
    assert "A table (results.json)" in text
    assert "PAPT65.000 ± 5.000240inductive (2 speakers)" in text
    assert "TAPT–120seen" in text
    ua = comparison["tests"]["UA"]
    low, high = ua["ci"]
    numbers = f"UA{ua['this']:.3f}{ua['other']:.3f}{ua['difference']:+.3f}[{html.number(low)}, {html.number(high)}]{ua['p']:.3f}6"
    assert numbers in text
    assert f"McNemar: {comparison['mcnemar']['only_this']} right only here" in text


def test_a_training_split_is_no_test(tmp_path):
    without_figures(tmp_path / "train", some_classes(20, skill=0))
    without_figures(tmp_path / "test", some_classes(200, skill=5))
    run = discover(tmp_path)
    assert [f.kind for f in warnings.of_run(run) if f.where == "train"] == ["training split"]
    scores = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert f"{scores['UA']:.3f}UA" in Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text  # the tile


def test_the_paired_test_of_a_calibration_is_shown(tmp_path):
    before, after = some_dimensions(60), some_dimensions(60)
    after.predicted = 0.5 * after.predicted + 0.5 * after.references
    without_figures(tmp_path, before, "metrics_before.json")
    without_figures(tmp_path, after)
    paired = scoring.compare(after, before, repeats=100)["tests"]
    write_json(tmp_path / "calibration.json", {"paired": paired, "trust": [[1.0]]})
    text = Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text
    test = paired["ccc_arousal"]
    assert f"ccc_arousal{test['difference']:+.3f}[{test['ci'][0]:.3f}, {test['ci'][1]:.3f}]{test['p']:.3f}6" in text
    assert "Worse after calibration" not in text


@pytest.mark.parametrize("part", ["evaluation", "training", "results"])
def test_any_one_part_is_enough(tmp_path, part):
    if part == "evaluation":
        without_figures(tmp_path, some_dimensions(30))
    elif part == "training":
        training(tmp_path)
    else:
        write_json(tmp_path / "results.json", {"UA": 0.5})
    text = Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text
    assert "No leak check was found" in text
    assert "No corpus.json was found" in text


def test_metrics_of_the_contract_alone_are_enough(tmp_path):
    """Another program may write no more than the contract promises."""
    classes = {"n": 4, "UA": 0.75, "WA": 0.75, "macro_f1": 0.73, "classes": ["a", "b"], "confusion": [[2, 0], [1, 1]]}
    values = {"ccc": 0.5, "pearson": 0.6, "rmse": 0.1, "speaker_ccc_mean": None, "speaker_ccc_std": None}
    for name, scores in {"c": classes, "d": {"n": 9, "dims": {"arousal": values}}}.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "metrics.json", {**scores, "per_speaker": {}, "by": {}})
    text = Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text
    assert "0.750" in text and "0.500" in text and "Lowest recall: “b”, 1 of 2 found" in text


@pytest.mark.slow
def test_figures_beyond_the_budget_are_named(tmp_path, monkeypatch):
    save(tmp_path, some_classes(20))
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "figures").glob("*.png")}
    monkeypatch.setattr(report, "MOST_PICTURES", sizes["confusion.png"] + 10)
    html = report.write(tmp_path)[0].read_text(encoding="utf-8")
    assert html.count("<img ") == 1
    assert f"{len(sizes) - 1} figures are not in this page" in html
    assert "figures/reliability.png" in html


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        report.write(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no metrics.json"):
        report.write(tmp_path)


def test_links_are_not_followed_out_of_the_run(tmp_path):
    without_figures(tmp_path / "elsewhere", some_classes(10))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds no metrics.json"):
        discover(tmp_path / "run")


def test_configuration_from_a_checkpoint_where_hydra_left_none(tmp_path):
    (tmp_path / "ft").mkdir()
    torch.save(
        {"cfg": {"task": {"_name": "emotion_finetuning"}, "optimization": {"lr": [0.001]}}, "model": {}},
        tmp_path / "ft" / "checkpoint_best.pt",
    )
    (found,) = discover(tmp_path).trainings
    assert (found.source, found.get("optimization.lr")) == ("checkpoint_best.pt", [0.001])


def test_speakers_of_pretraining_tell_the_setting(tmp_path):
    data = tmp_path / "manifest"
    data.mkdir()
    (data / "dict.spk.txt").write_text("s00 10\ns01 10\n")
    training(tmp_path / "pretrain", "task: {_name: speaker_hubert_pretraining, data: ../manifest}\n", log=False)
    (tmp_path / "pretrain" / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: {json.dumps(str(tmp_path / 'pretrain'))}}}}}\n")
    for name, speakers in {"seen": ["s00", "s01"], "unseen": ["s02", "s03"], "mixed": ["s01", "s02"]}.items():
        made = some_classes(20)
        made.speakers = speakers * 10
        without_figures(tmp_path / name, made)
    settings = {e.name: e.setting for e in discover(tmp_path).evaluations}
    assert settings == {
        "seen": "speakers seen in pretraining",
        "unseen": "speakers unseen in pretraining",
        "mixed": "1 of 2 speakers seen in pretraining",
    }


# --- findings ---------------------------------------------------------------------------------------------------------


def kinds(made, **meta):
    scores = json.loads(json.dumps(scoring.evaluate(made, a_split(made, **meta), repeats=300)))
    return {f.kind: f for f in warnings.of_evaluation(Evaluation("e", Path("e"), scores))}


def test_a_good_evaluation_has_no_problem():
    found = kinds(some_classes(600, speakers=12, skill=4))
    assert all(f.level != "problem" for f in found.values())
    assert "few" not in found


def test_chance_never_predicted_and_lowest_recall():
    made = some_classes(200)
    made.predicted = ["sad"] * 200
    found = kinds(made)
    assert found["chance"].level == "problem" and "always naming one class gives 0.250" in found["chance"].message
    assert {k for k in found if k.startswith("never")} == {"never angry", "never happy", "never neutral"}
    made = some_classes(200, skill=9)
    sad = [i for i, e in enumerate(made.emotions) if e == "sad"]
    for i in sad[: len(sad) // 2]:
        made.predicted[i] = "neutral"
    right = sum(made.predicted[i] == "sad" for i in sad)
    message = kinds(made)["recall"].message
    assert message == f"Lowest recall: “sad”, {right} of {len(sad)} found, most often taken for “neutral” ({len(sad) // 2})."


def test_few_data_and_rare_and_absent_classes():
    made = some_classes(40, speakers=3)
    part = made.take([i for i, e in enumerate(made.emotions) if e != "happy"])
    part.emotions = [e if e != "sad" or i < 8 else "-" for i, e in enumerate(part.emotions)]
    found = kinds(part)
    assert "3 speakers" in found["few"].message and "too narrow" in found["few"].message
    assert "“sad”" in found["few of a class"].message
    assert "“happy”" in found["absent"].message
    assert "without a reference" in found["unscored"].message


def test_dimensions_that_are_off_constant_or_chance():
    shifted = some_dimensions(300, speakers=10)
    shifted.predicted[:, 0] += 0.4
    shifted.predicted[:, 1] = 0.5
    found = kinds(shifted)
    assert "mean or scale is off" in found["scale arousal"].message
    assert found["constant valence"].level == "problem"
    noise = some_dimensions(300, speakers=10)
    noise.predicted = np.random.default_rng(99).uniform(size=noise.predicted.shape)
    assert kinds(noise)["chance arousal"].level == "problem"


def test_unequal_groups_and_uneven_speakers():
    made = some_dimensions(300, speakers=10)
    sex = ["f" if s < "s05" else "m" for s in made.speakers]
    rows = [i for i, s in enumerate(sex) if s == "f"]
    made.predicted[rows] = np.random.default_rng(0).uniform(size=(len(rows), 2))
    found = kinds(made, sex=sex)
    assert found["unequal sex"].level == "look" and "f minus m" in found["unequal sex"].message
    assert found["speakers CCC of arousal"].level == "look"
    two = made.take([i for i, s in enumerate(made.speakers) if s in ("s00", "s09")])
    found = kinds(two, sex=["f" if s == "s00" else "m" for s in two.speakers])
    assert found["unequal sex"].level == "note" and "one speaker has to stand for a group" in found["unequal sex"].message


def test_nothing_scored():
    made = some_classes(5)
    made.emotions = ["-"] * 5
    assert list(kinds(made)) == ["nothing"]


def curves(losses, best):
    updates = np.arange(1, len(losses) + 1) * 10
    chosen = {"best_loss": {"valid": (updates, np.array(best))}} if best else {}
    return {"loss": {"train": (updates, np.array(losses)), "valid": (updates, np.array(losses))}, **chosen}


def test_findings_about_trainings():
    def of(c):
        return [f.kind for f in warnings.of_training(Training("t", None, curves=c))]

    assert of({}) == ["no log"]
    assert of({"loss": {"train": (np.array([1]), np.array([2.0]))}}) == ["no validation"]
    assert of(curves([4.0, 3.0, 2.0], [4.0, 3.0, 2.0])) == ["improving"]
    assert of(curves([4.0, 2.0, 3.0], [4.0, 2.0, 2.0])) == ["overfitting"]
    assert of(curves([4.0, 2.0, 2.1], [4.0, 2.0, 2.0])) == []


def test_a_pretraining_that_has_learnt_nothing_from_what_it_hears_is_a_problem():
    def of(**last):
        updates = np.array([10, 20])
        c = {name: {split: (updates, np.array([9.0, v])) for split, v in of.items()} for name, of in last.items()}
        return [f.message for f in warnings.of_training(Training("t", None, curves=c)) if f.kind == "unigram"]

    assert of(loss_masked_0={"train": 5.4, "valid": 5.58}, unigram_masked_0={"train": 5.5, "valid": 5.52})[0].count("valid") == 1
    assert of(loss_masked_0={"train": 5.7, "valid": 5.4}, unigram_masked_0={"train": 5.5, "valid": 5.52}) == []
    assert "5.490 bits" in of(loss_masked_0={"train": 5.49}, unigram_masked_0={"train": 5.5})[0]
    assert of(unigram_masked_0={"train": 5.5}) == [] and of(loss_masked_0={"train": 9.0}) == []


def test_the_log_of_a_real_training_bar_tells_the_chosen_update(tmp_path):
    training(tmp_path)
    assert read_training_log(tmp_path / "hydra_train.log")["best_ua"]["valid"][1].tolist() == [0.3, 0.6, 0.6, 0.6]
    assert "best ua at update20" in Page(report.write(tmp_path)[0].read_text(encoding="utf-8")).text


# --- program and markup -----------------------------------------------------------------------------------------------


def test_program(tmp_path, capsys):
    without_figures(tmp_path / "eval", some_classes(20))
    assert run_program("tools/report.py", tmp_path) == 0
    assert (tmp_path / "report.html").is_file()
    assert "1 evaluations" in capsys.readouterr().out
    assert run_program("tools/report.py", tmp_path) == 0
    assert "made from the same files" in capsys.readouterr().out
    assert run_program("tools/report.py", tmp_path / "absent") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "absent" in error


def test_numbers_are_written_as_people_read_them():
    written = [html.number(v) for v in (0.61249, 3, 0.0, 1e-5, 123456.7, math.nan, None, True, -0.5)]
    assert written == ["0.612", "3", "0.000", "1e-05", "1.23e+05", "–", "–", "–", "-0.500"]
    assert (html.count(1, "speaker"), html.count(0, "speaker")) == ("1 speaker", "0 speakers")
