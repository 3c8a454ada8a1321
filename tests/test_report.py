"""The report: what it finds, that its numbers are those of the files, and that nothing in them can become markup or be fetched."""

import base64
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scripts import run as run_program
from test_evaluation import a_split, some_classes, some_dimensions, take
from test_figures import JsonProgressBar, fairseq_log

from emohubert.core.errors import InputError
from emohubert.core.files import write_json
from emohubert.evaluation import scoring
from emohubert.report import page as report
from emohubert.report import systems, table_cells, warnings
from emohubert.report.collect import EvaluationFolder, RunFolder, TrainingFolder, discover

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Elements, text and table rows of a page; fails on a tag that is not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.text, self.rows, self.source = [], [], "", [], Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append({})
        if tag == "td":
            self.cell = dict(attrs)["data-name"]
            self.rows[-1][self.cell] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open:
            self.rows[-1][self.cell] += data


def written(folder):
    return Page(report.write(folder)[0])


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
    path, _, is_new = report.write(whole_run)
    assert is_new
    return Page(path)


def scores_of(folder, name="metrics.json"):
    return json.loads((folder / name).read_text())


def test_everything_is_found_and_told(whole_page):
    told = ("my run", "emodb", "fold1:\n    train: 300", "too short:\n  - x.wav", "task.labelsmfcc/km50", "speaker_positionfilm")
    assert [part for part in told if part not in whole_page.text] == []
    assert "mean: 0.61234" in whole_page.text
    assert "Leak of speaker (not allowed): 2 shared by train.tsv and test.tsv: s1, s2." in whole_page.text
    assert "Columns with too many values to break down: file." in whole_page.text


def test_distances_from_the_votes_are_shown(tmp_path):
    made = some_classes()
    split = a_split(made)
    split.votes = {"sad": np.ones(len(made)), "angry": np.arange(len(made)) % 3.0}
    scores = scoring.evaluate(made, split, repeats=20)
    (tmp_path / "test").mkdir()
    write_json(tmp_path / "test" / "metrics.json", scores)
    (row,) = [row for row in written(tmp_path).rows if "total variation" in row]
    assert list(row.values()) == ["test", *(f"{scores['votes'][name]:.3f}" for name in ("kl", "js", "tv")), "120"]


def test_every_number_of_the_tables_is_that_of_the_files(whole_run, whole_page):
    def three(*values):
        return [f"{v:.3f}" for v in values]

    for name in ("fold1/test", "fold2/test"):
        (row,) = [row for row in whole_page.rows if row.get("evaluation") == name]
        s = scores_of(whole_run / name)
        low, high, mean, std = three(*s["ci"]["UA"], s["speakers"]["UA"]["mean"], s["speakers"]["UA"]["std"])
        shown = [
            f"[{low}, {high}]",
            f"{mean} ± {std} (n = 6)",
            *three(*(s[k] for k in ("WA", "macro_f1", "ece", "aurc"))),
            "120",
            "6",
            "not recorded",
        ]
        assert list(row.values()) == [name, *three(s["UA"]), *shown]
        for speaker, own in s["per_speaker"].items():
            scores = {score: f"{own[score]:.3f}" for score in ("UA", "WA", "macro_f1")}
            assert {"speaker": speaker, "n": str(own["n"]), **scores} in whole_page.rows
    (row,) = [row for row in whole_page.rows if row.get("system") == "fold*/test"]
    for score, name in (("UA", "UA"), ("WA", "WA"), ("macro F1", "macro_f1")):
        values = [scores_of(whole_run / fold / "test")[name] for fold in ("fold1", "fold2")]
        assert row[score] == f"{np.mean(values):.3f} ± {np.std(values):.3f}"
    assert (row["runs"], row["utterances"]) == ("2", "240")
    before, after = (scores_of(whole_run / "calibrated", name)["dims"] for name in ("metrics_before.json", "metrics.json"))
    after_ci = scores_of(whole_run / "calibrated")["ci"]["dims"]
    rows = {row["score"]: row for row in whole_page.rows if row.get("evaluation") == "calibrated" and "before" in row}
    for dimension, v in after.items():
        for name in ("ccc", "pearson", "rmse"):
            b, a, change = before[dimension][name], v[name], v[name] - before[dimension][name]
            row = rows[f"{name}_{dimension}"]
            assert [row[k] for k in ("before", "after", "change")] == [*three(b, a), f"{change:+.3f}"]
        (row,) = [row for row in whole_page.rows if row.get("dimension") == dimension and "setting" in row]
        low, high, mean, std = three(*after_ci[dimension]["ccc"], v["speaker_ccc_mean"], v["speaker_ccc_std"])
        shown = [f"[{low}, {high}]", f"{mean} ± {std} (n = {v['speakers_with_ccc']})", *three(v["pearson"], v["rmse"], v["bias"])]
        assert list(row.values()) == ["calibrated", dimension, *three(v["ccc"]), *shown, str(v["n"]), "not recorded"]
        for speaker, s in scores_of(whole_run / "calibrated")["per_speaker"].items():
            scores = {name: f"{s['dims'][dimension][name]:.3f}" for name in ("ccc", "pearson", "rmse", "bias")}
            assert {"speaker": speaker, "n": str(s["n"]), "dimension": dimension, **scores} in whole_page.rows
    assert rows["ccc_arousal"][""] == "worse" and rows["ccc_valence"][""] == ""
    assert f"Worse after calibration: ccc_arousal {rows['ccc_arousal']['before']} → {rows['ccc_arousal']['after']}" in whole_page.text


def test_the_page_opens_with_a_picture_of_the_systems(tmp_path):
    """Each dot, read back from its place between the ticks, is a number of the files."""
    made = [("PAPT", "inductive (2 speakers)", [60.0, 71.5, 64.25]), ("TAPT", "seen (9 speakers)", [55.0])]
    made = [{"name": n, "setting": [s], "runs": len(v), "utterances": 40, "scores": {"UA %": v, "WA %": v}} for n, s, v in made]
    write_json(tmp_path / "results.json", {"title": "Ours", "systems": made})
    page = written(tmp_path)
    figure = page.source[page.source.index("<figure") : page.source.index("</figure>")]
    assert page.source.index("<figure") < page.source.index("<table") < page.source.index('<h2 id="warnings">')
    assert page.source.count("<figure") == 1  # WA stands in the table
    assert "inductive (2 speakers)" in figure and '<div class="system inductive">' in figure and '<div class="system seen">' in figure
    ticks = [(float(left), float(t)) for left, t in re.findall(r'<span style="left:([\d.]+)%">([\d.]+)</span>', figure)]
    (zero, low), (full, high) = ticks[0], ticks[-1]
    assert (zero, full) == (0, 100)

    def values(kind):
        found = re.findall(rf'<span class="{kind}" style="left:([\d.]+)%', figure)
        return [pytest.approx(low + float(left) / 100 * (high - low), abs=0.01) for left in found]

    assert values("run") == [60.0, 71.5, 64.25]
    assert values("mean") == [np.mean([60.0, 71.5, 64.25]), 55.0]
    assert values("bar") == [np.mean([60.0, 71.5, 64.25]) - np.std([60.0, 71.5, 64.25])]


@pytest.mark.parametrize("values", [[0.5], [-0.2, 0.9], [61.23, 61.24], [1e5, -1e5], [9e5], [0, 0], [0.3, 0.3000001]])
def test_axes_hold_their_values_between_round_ticks(values):
    (plot,) = systems.plots(RunFolder(Path()), [{"name": "A", "scores": {"CCC a": [v]}} for v in values])
    ticks = plot["ticks"]
    assert ticks[0] <= min(values) and max(values) <= ticks[-1] and 2 <= len(ticks) <= 9


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_has_no_place_on_an_axis_is_not_drawn(tmp_path, value):
    (tmp_path / "results.json").write_text(json.dumps({"systems": [{"name": "A", "scores": {"UA %": [value]}}]}))
    assert "<figure" not in written(tmp_path).source


def test_leaks_and_problems_come_first(whole_run):
    found = warnings.of_run(discover(whole_run))
    assert [f.level for f in found] == sorted((f.level for f in found), key=warnings.LEVELS.index)
    assert (found[0].kind, found[0].level) == ("leak speaker not allowed", "problem")


def test_the_page_needs_nothing_from_outside(whole_run, whole_page):
    page = whole_page
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.elements
    assert {name for name, _ in page.elements} <= set(ALLOWED.split())
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith("data:image/png;base64,") if name == "img" else re.fullmatch(r"#warnings|#e-[0-9a-f]+", value)
    assert "url(" not in page.source and "@import" not in page.source
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
    (folder / "a").mkdir()
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
    rows = [{"name": HOSTILE, "setting": [HOSTILE], "runs": HOSTILE, "utterances": HOSTILE, "scores": {HOSTILE: [1.0, 2.0]}}]
    write_json(folder / "a" / "results.json", {"title": HOSTILE, "notes": [HOSTILE], "systems": rows})
    write_json(folder / "audit.json", {"problems": [HOSTILE], "leaks": [{"allowed": True, "kind": HOSTILE}], HOSTILE: HOSTILE})
    page = written(folder)
    assert {name for name, _ in page.elements} <= set(ALLOWED.split())
    assert "alert(1)" in page.text
    assert all(attributes.get("src", "data:").startswith("data:") and "onerror" not in attributes for _, attributes in page.elements)


def test_a_second_run_changes_nothing_and_a_changed_file_is_noticed(tmp_path):
    without_figures(tmp_path, some_classes(20))
    path, _, is_new = report.write(tmp_path)
    first, when = path.read_bytes(), path.stat().st_mtime_ns
    assert is_new
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
    "corpus.json": [*NO_JSON, "null", "3", "[]"],
    "audit.json": NO_JSON + WRONG_SHAPE,
    "results.json": [*NO_JSON, "null", "3"],
    ".hydra/config.yaml": ["", "{", "[]", "null", "3", "a: 2024-99-99", "!!python/name:os.system x"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_and_the_rest_is_reported(tmp_path, name):
    without_figures(tmp_path / "good", some_classes(20))
    for i, content in enumerate(BROKEN[name]):
        (tmp_path / str(i) / ".hydra").mkdir(parents=True)
        if name in ("metrics_before.json", "calibration.json"):
            (tmp_path / str(i) / "metrics.json").write_bytes((tmp_path / "good" / "metrics.json").read_bytes())
        (tmp_path / str(i) / name).write_text(content)
    path, run, _ = report.write(tmp_path)
    text = Page(path).text
    assert list(run.unread) == [f"{i}/{name}" for i in range(len(BROKEN[name]))]
    assert all(f"({name})" in text for name in run.unread)
    assert "Evaluation: good" in text


def test_tables_of_results(tmp_path):
    runs = [{"name": "PAPT", "setting": ["inductive (2 speakers)"], "runs": 2, "utterances": 40, "scores": {"UA %": [60.0, 70.0]}}]
    runs.append({"name": "TAPT", "setting": ["seen"], "runs": 1, "utterances": 20, "scores": {"CCC arousal": [None]}})
    write_json(tmp_path / "results.json", {"title": "A table", "systems": runs})
    page = written(tmp_path)
    assert {"system": "PAPT", "UA %": "65.0 ± 5.0", "runs": "2", "utterances": "40", "setting": "inductive (2 speakers)"} in page.rows
    assert {"system": "TAPT", "CCC arousal": "–", "runs": "1", "utterances": "20", "setting": "seen"} in page.rows


def test_a_training_split_is_no_test(tmp_path):
    without_figures(tmp_path / "train", some_classes(20, skill=0))
    without_figures(tmp_path / "test", some_classes(200, skill=5))
    run = discover(tmp_path)
    assert [f.kind for f in warnings.of_run(run) if f.where == "train"] == ["training split"]
    assert [row["system"] for row in written(tmp_path).rows if "system" in row] == ["test"]


def test_the_paired_test_of_a_calibration_is_shown(tmp_path):
    before, after = some_dimensions(60), some_dimensions(60)
    after.predicted = 0.5 * after.predicted + 0.5 * after.references
    without_figures(tmp_path, before, "metrics_before.json")
    without_figures(tmp_path, after)
    paired = scoring.paired_tests(after, before, repeats=100)
    write_json(tmp_path / "calibration.json", {"paired": paired, "trust": [[1.0]]})
    page = written(tmp_path)
    (row,) = [row for row in page.rows if row.get("score") == "ccc_arousal"]
    test = paired["ccc_arousal"]
    shown = [f"{test['difference']:+.3f}", f"[{test['ci'][0]:.3f}, {test['ci'][1]:.3f}]", f"{test['p']:.3f}"]
    assert [row[name] for name in ("change", "interval", "p")] == shown
    assert "Worse after calibration" not in page.text


def test_metrics_of_the_contract_alone_are_enough(tmp_path):
    """Another program may write no more than the contract promises."""
    classes = {"n": 4, "UA": 0.75, "WA": 0.75, "macro_f1": 0.73, "classes": ["a", "b"], "confusion": [[2, 0], [1, 1]]}
    values = {"ccc": 0.5, "pearson": 0.6, "rmse": 0.1, "speaker_ccc_mean": None, "speaker_ccc_std": None}
    for name, scores in {"c": classes, "d": {"n": 9, "dims": {"arousal": values}}}.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "metrics.json", {**scores, "per_speaker": {}, "by": {}})
    text = written(tmp_path).text
    assert "0.750" in text and "0.500" in text
    assert "No leak check was found" in text and "Corpus: not found." in text


@pytest.mark.slow
def test_a_page_has_figures_of_so_many_evaluations(tmp_path, monkeypatch):
    for name in ("a", "b"):
        save(tmp_path / name, some_classes(20))
    monkeypatch.setattr(report, "MOST_ILLUSTRATED", 1)
    page = written(tmp_path)
    assert page.source.count("<img ") == len(list((tmp_path / "a" / "figures").glob("*.png")))
    assert "those of the first 1 evaluations" in page.text


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


# --- warnings ---------------------------------------------------------------------------------------------------------


def kinds(made, **meta):
    scores = json.loads(json.dumps(scoring.evaluate(made, a_split(made, **meta), repeats=300)))
    found = (warnings.RunWarning(*parts) for parts in warnings.of_evaluation(EvaluationFolder("e", Path("e"), scores)))
    return {f.kind: f for f in found}


def test_chance_and_a_class_never_predicted():
    good = kinds(some_classes(600, speakers=12, skill=4))
    assert all(f.level != "problem" for f in good.values()) and "few" not in good
    made = some_classes(200)
    made.predicted = ["sad"] * 200
    found = kinds(made)
    assert found["chance"].level == "problem" and "always predicting one class gives 0.250" in found["chance"].message
    assert {k for k in found if k.startswith("never")} == {"never angry", "never happy", "never neutral"}


def test_few_data_and_absent_classes():
    made = some_classes(40, speakers=3)
    part = take(made, [i for i, e in enumerate(made.emotions) if e != "happy"])
    part.emotions = [e if e != "sad" or i < 8 else "-" for i, e in enumerate(part.emotions)]
    found = kinds(part)
    assert "3 speakers" in found["few"].message and "too narrow" in found["few"].message
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


def test_unequal_groups():
    made = some_dimensions(300, speakers=10)
    sex = ["f" if s < "s05" else "m" for s in made.speakers]
    rows = [i for i, s in enumerate(sex) if s == "f"]
    made.predicted[rows] = np.random.default_rng(0).uniform(size=(len(rows), 2))
    found = kinds(made, sex=sex)
    assert found["unequal sex"].level == "warning" and "f minus m" in found["unequal sex"].message
    two = take(made, [i for i, s in enumerate(made.speakers) if s in ("s00", "s09")])
    found = kinds(two, sex=["f" if s == "s00" else "m" for s in two.speakers])
    assert found["unequal sex"].level == "note" and "a group of one speaker" in found["unequal sex"].message


def test_nothing_scored():
    made = some_classes(5)
    made.emotions = ["-"] * 5
    assert list(kinds(made)) == ["nothing"]


def test_a_pretraining_that_ignores_its_input_is_a_problem():
    def of(**last):
        updates = np.array([10, 20])
        c = {name: {split: (updates, np.array([9.0, v])) for split, v in of.items()} for name, of in last.items()}
        return [message for _, kind, message in warnings.of_training(TrainingFolder("t", curves=c)) if kind == "unigram"]

    assert of(loss_masked_0={"train": 5.4, "valid": 5.58}, unigram_masked_0={"train": 5.5, "valid": 5.52})[0].count("valid") == 1
    assert of(loss_masked_0={"train": 5.7, "valid": 5.4}, unigram_masked_0={"train": 5.5, "valid": 5.52}) == []
    assert "5.490 bits" in of(loss_masked_0={"train": 5.49}, unigram_masked_0={"train": 5.5})[0]
    assert of(unigram_masked_0={"train": 5.5}) == [] and of(loss_masked_0={"train": 9.0}) == []


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


def test_a_report_loads_neither_torch_nor_fairseq(whole_run):
    code = "import sys; from emohubert.report import page; page.write(sys.argv[1], True); print(*{'torch', 'fairseq'} & set(sys.modules))"
    environment = {"PYTHONPATH": str(Path(report.__file__).parents[2]), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code, whole_run], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_numbers_are_written_as_people_read_them():
    written = [table_cells.number(v) for v in (0.61249, 3, 0.0, 1e-5, 123456.7, math.nan, None, True, -0.5)]
    assert written == ["0.612", "3", "0.000", "1e-05", "1.23e+05", "–", "–", "–", "-0.500"]
    assert (table_cells.count(1, "speaker"), table_cells.count(0, "speaker")) == ("1 speaker", "0 speakers")
