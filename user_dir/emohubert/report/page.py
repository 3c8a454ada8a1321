"""One web page about a run: what was run, on what, what came out, and what to look at first.

Everything is found below the run's folder; what is missing is said, what cannot be read is named.
"""

import json
import math
import re
import tempfile
from pathlib import Path

import yaml

from ..core.files import atomic, fingerprint, make_folder, natural, sha256
from ..evaluation import figures, metrics
from ..training.curves import chosen_update
from . import collect, html, warnings
from .collect import discover, is_number, is_robustness
from .html import Html, count, folded, join, number, picture, table, tag

REPORT = "report.html"
MOST_PICTURES = 30 * 2**20
"""Bytes of figures in a page; figures beyond are named instead."""
MOST_FIRST = 12
"""Findings on top of the page; the others stand in their sections."""
CAPTIONS = {
    "confusion": "Confusion matrix: rows are references",
    "reliability": "Is the confidence deserved?",
    "speakers": "Per speaker",
    "threshold": "Decision threshold",
    "scatter": "Predicted against reference",
    "embeddings_pca": "Utterance embeddings, PCA",
    "embeddings_tsne": "Utterance embeddings, t-SNE",
    "nearest_speakers": "Nearest training speakers",
    "before_after": "Each speaker before and after calibration",
    "gain": "Gain of calibration over the number of utterances heard",
    "robustness": "Change against clean recordings; lines are intervals over speakers",
    "lengths": "Lengths of the clips",
    "classes": "Classes",
    "demographics": "Who speaks",
    "voices": "Voices of the speakers, mean MFCCs",
}
BADGES = {"problem": "problem", "look": "look here", "note": "note"}


def write(folder, overwrite=False):
    """Write `report.html` into a run's folder, unless it is there and made from the same files.

    Returns:
        (path of the page, the Run, whether it was written now).

    Raises:
        InputError: as `discover`; or the folder cannot be written to.
    """
    run = discover(folder)
    path = run.folder / REPORT
    pictures = [p for folder in {*(e.folder for e in run.evaluations), *_result_folders(run)} for p in _pictures(folder)]
    sources = [sha256(module.__file__) for module in (figures, warnings, collect, html)]
    stamp = fingerprint([run.inputs, run.unread, sorted((str(p), sha256(p)) for p in pictures), sources, sha256(__file__)])
    if not overwrite and path.is_file() and f'content="{stamp}"' in path.read_text(encoding="utf-8", errors="replace")[:4000]:
        return path, run, False
    make_folder(run.folder)
    with atomic(path) as f:
        f.write(html.page(f"Report: {run.folder.resolve().name}", render(run), emohubert_inputs=stamp))
    return path, run, True


def render(run):
    """The page's body.

    Args:
        run: of `discover`.
    """
    budget = _Budget(MOST_PICTURES)
    sections = [
        _header(run),
        _first(run),
        _overview(run),
        *(_results(run, name, content, budget) for name, content in run.results.items()),
        _data(run),
        *(_evaluation(run, evaluation, budget) for evaluation in run.evaluations),
        *(_training(training, budget) for training in run.trainings),
        _footer(run, budget),
    ]
    return join(sections, "\n")


class _Budget:
    """How many bytes of pictures the page may still hold, and what did not fit."""

    def __init__(self, left):
        self.left, self.left_out = left, []

    def picture(self, path, caption, name):
        png = Path(path).read_bytes()
        if len(png) > self.left:
            self.left_out.append(name)
            return Html("")
        self.left -= len(png)
        return picture(png, caption)


def _pictures(folder):
    """The figures that were drawn for a folder, in natural order."""
    found = [*folder.glob("*.png"), *(folder / "figures").glob("*.png")]
    return sorted(found, key=lambda p: natural(p.name))


def _result_folders(run):
    """Folders of collected results; not those of evaluations, whose figures stand in their own sections."""
    folders = {(run.folder / name).parent for name in run.results}
    return sorted(folders - {e.folder for e in run.evaluations})


def _header(run):
    settings = list(dict.fromkeys(e.setting for e in run.evaluations if e.setting and not e.is_training_split))
    leaks = "not found" if not run.checks else ("passed" if all(c.get("ok") for c in run.checks.values()) else "failed")
    corpora = ", ".join(sorted({str(c.get("corpus", "?")) for c in run.corpora.values()})) or "not found"
    tiles = [("corpus", corpora), ("trainings", len(run.trainings)), ("evaluations", len(run.evaluations)), ("leak check", leaks)]
    if run.audits:
        tiles.append(("audit of the run", "passed" if all(a.get("ok") for a in run.audits.values()) else "failed"))
    tests = [e for e in run.evaluations if not e.is_training_split]
    if len(tests) == 1:
        only = tests[0]
        best = {"UA": only.scores["UA"]} if only.is_classification else {f"CCC {d}": v["ccc"] for d, v in only.scores["dims"].items()}
        tiles += [(name, number(value)) for name, value in best.items()]
    said = "; ".join(settings) or "not declared, and not to be told from the speakers"
    return join(
        [
            tag("h1", run.folder.resolve().name),
            tag("p", "Report of a run of emohubert. Setting: ", tag("b", said), class_="soft"),
            tag("div", *(tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in tiles), class_="tiles"),
        ]
    )


def _first(run):
    kinds = {}
    for finding in warnings.of_run(run):
        kinds.setdefault((finding.level, finding.kind), []).append(finding)
    groups = list(kinds.values())
    parts = [tag("h2", "What to look at first")]
    parts.append(_list(groups[:MOST_FIRST]) if groups else tag("p", "Nothing stands out."))
    if len(groups) > MOST_FIRST:
        parts.append(tag("p", f"… and {count(len(groups) - MOST_FIRST, 'kind')} of findings more, in the sections below.", class_="soft"))
    return join(parts)


def _list(groups):
    """Findings as a list; of a group of findings of one kind the first is told and the places of the others are named."""
    items = []
    for first, *others in groups:
        places = [f.where for f in others if f.where]
        also = f"; likewise {', '.join(places[:4])}" + (f" and {len(places) - 4} more" if len(places) > 4 else "") if places else ""
        place = tag("span", f" ({first.where}{also})", class_="soft small") if first.where not in ("", ".") or also else ""
        items.append(tag("li", tag("span", BADGES[first.level], class_="badge"), first.message, place, class_=first.level))
    return tag("ul", *items, class_="findings")


def _list_own(found):
    """Findings of one section, whose place is clear."""
    found = sorted(found, key=lambda f: warnings.LEVELS.index(f.level))
    return _list([(warnings.Finding(f.level, f.kind, f.message),) for f in found]) if found else Html("")


def _overview(run):
    if not run.evaluations:
        return Html("")
    classes = [e for e in run.evaluations if e.is_classification]
    dims = [e for e in run.evaluations if not e.is_classification]
    parts = [tag("h2", "Results")]
    if classes:
        header = ("evaluation", f"UA {_level(classes)}", "UA over speakers", "WA", "macro F1", "ECE", "n", "speakers", "setting")
        parts.append(table(header, [_class_row(e) for e in classes], numbers=range(1, 8)))
    if dims:
        header = ("evaluation", "dimension", f"CCC {_level(dims)}", "CCC over speakers", "Pearson", "RMSE", "bias", "n", "setting")
        parts.append(table(header, [_dimension_row(e, name) for e in dims for name in e.scores["dims"]], numbers=range(2, 8)))
    note = "In brackets: interval by bootstrap over speakers. ±: standard deviation over speakers. Bias: mean of prediction − reference."
    parts.append(tag("p", note, class_="soft small"))
    return join([*parts, _over_folds(run), _calibration(run)])


def _class_row(e):
    s = e.scores
    over_speakers = _plus_minus((s.get("speakers") or {}).get("UA") or {})
    scores = (_with_interval(e, "UA"), over_speakers, number(s["WA"]), number(s["macro_f1"]), number(s.get("ece")))
    return (_link(e), *scores, s["n"], len(s["per_speaker"]), e.setting)


def _dimension_row(e, name):
    v = e.scores["dims"][name]
    over_speakers = _plus_minus({"mean": v.get("speaker_ccc_mean"), "std": v.get("speaker_ccc_std"), "n": v.get("speakers_with_ccc")})
    scores = (_with_interval(e, "ccc", name), over_speakers, number(v["pearson"]), number(v["rmse"]), number(v.get("bias")))
    return (_link(e), name, *scores, v.get("n", e.scores["n"]), e.setting)


def _over_folds(run):
    """Mean ± standard deviation over evaluations whose paths differ only in the number of a fold or seed."""
    groups = {}
    for e in run.evaluations:
        pattern = re.sub(r"(fold|seed|session)[_-]?\d+", lambda m: f"{m[1]}*", e.name, flags=re.IGNORECASE)
        if pattern != e.name:
            groups.setdefault((pattern, e.is_classification), []).append(e)
    rows = []
    for (pattern, is_classification), members in groups.items():
        if len(members) < 2:
            continue
        if is_classification:
            columns = {name: [e.scores[name] for e in members] for name in ("UA", "WA", "macro_f1")}
        else:
            dims = [d for d in members[0].scores["dims"] if all(d in e.scores["dims"] for e in members)]
            columns = {f"{d} {s}": [e.scores["dims"][d][s] for e in members] for d in dims for s in ("ccc", "pearson", "rmse")}
        for name, values in columns.items():
            mean, std, n = metrics.mean_std(values)
            rows.append((pattern, name, n, f"{number(mean)} ± {number(std)}", number(min(values)), number(max(values))))
    if not rows:
        return Html("")
    header = ("evaluations", "score", "count", "mean ± std", "lowest", "highest")
    return join([tag("h3", "Over folds and seeds"), table(header, rows, numbers=range(2, 6))])


def _calibration(run):
    rows = [
        (_link(e), c.score, number(c.before), number(c.after), f"{c.after - c.before:+.3f}", "" if c.is_better else "worse")
        for e in run.evaluations
        for c in warnings.changes(e)
    ]
    if not rows:
        return Html("")
    header = ("evaluation", "score", "before", "after", "change", "")
    parts = [tag("h3", "Before and after calibration"), table(header, rows, numbers=(2, 3, 4))]
    tests = [(_link(e), name, *_test(test)) for e in run.evaluations if e.calibration for name, test in e.calibration["paired"].items()]
    if tests:
        header = ("evaluation", "score", "change", "interval", "p", "speakers")
        parts.append(tag("p", "The same as a paired test over speakers: interval by bootstrap, p by permutation.", class_="soft small"))
        parts.append(table(header, tests, numbers=range(2, 6)))
    return join(parts)


def _test(test):
    """Cells of a paired test: difference, interval, p, number of speakers."""
    difference, ci = test.get("difference"), test.get("ci")
    signed = f"{difference:+.3f}" if is_number(difference) else "–"
    interval = f"[{number(ci[0])}, {number(ci[1])}]" if isinstance(ci, list) and len(ci) == 2 else "–"
    return signed, interval, number(test.get("p")), _cell(test.get("speakers"))


def _results(run, name, content, budget):
    folder = (run.folder / name).parent
    shown = []
    if folder in _result_folders(run) and name == next(n for n in run.results if (run.folder / n).parent == folder):
        shown = [budget.picture(path, _caption(path.stem), run.name_of(path)) for path in _pictures(folder)]
    readers = {_systems: _has_systems, _comparison: _has_tests, _robustness: is_robustness}
    reader = next((reader for reader, fits in readers.items() if fits(content)), _json)
    return join([tag("h2", _title(name, content)), reader(content), tag("div", *shown, class_="figures large") if shown else ""])


def _title(name, content):
    title = content.get("title") if isinstance(content, dict) else None
    return join([title, tag("span", f" ({name})", class_="soft small")]) if isinstance(title, str) else name


def _has_systems(content):
    """Whether these are rows of tools/results.py: systems with a list of scores, one for each run."""
    systems = content.get("systems") if isinstance(content, dict) else None
    if not isinstance(systems, list) or not systems or not all(isinstance(s, dict) and isinstance(s.get("scores"), dict) for s in systems):
        return False
    return all(isinstance(v, list) and all(x is None or is_number(x) for x in v) for s in systems for v in s["scores"].values())


def _has_tests(content):
    """Whether this is a comparison of tools/evaluate.py --compare."""
    tests = content.get("tests") if isinstance(content, dict) else None
    return isinstance(tests, dict) and all(isinstance(test, dict) for test in tests.values()) and isinstance(content.get("left_out"), dict)


def _comparison(content):
    counts = ", ".join(f"{name.replace('_', ' ')} {_cell(n)}" for name, n in content["left_out"].items())
    said = f"{_cell(content.get('n'))} utterances of {_cell(content.get('speakers'))} speakers; left out: {counts}."
    rows = [(name, *(number(test.get(k)) for k in ("this", "other")), *_test(test)) for name, test in content["tests"].items()]
    header = ("score", "this", "other", "difference", "interval", "p", "speakers")
    parts = [tag("p", said), table(header, rows, numbers=range(1, 7))]
    mcnemar = content.get("mcnemar")
    if isinstance(mcnemar, dict):
        only, other = (_cell(mcnemar.get(key)) for key in ("only_this", "only_other"))
        parts.append(
            tag("p", f"McNemar: {only} right only here, {other} only there, p {number(mcnemar.get('p'))} (utterances as independent).")
        )
    return join(parts)


def _robustness(content):
    """A line for each condition of tools/robustness.py; its p-values are in the file."""
    names = list(content["conditions"][0]["scores"])
    header = ["condition", *(column for name in names for column in (name, "change"))]
    rows = []
    for condition in content["conditions"]:
        cells = []
        for score in (condition["scores"][name] for name in names):
            change, interval, p, _ = _test({**score, "difference": score["change"], "ci": score["change_ci"]})
            cells += [number(score["value"]), f"{change} {interval}" if p != "–" else "–"]
        rows.append((tag("span", condition["name"], style="white-space: nowrap"), *cells))
    said = f"{_cell(content.get('n'))} utterances of {_cell(content.get('speakers'))} speakers, {_cell(content.get('split'))}."
    note = "Change: against the clean recordings, with its interval by paired bootstrap over speakers."
    return join([tag("p", said), table(header, rows, numbers=range(1, len(header))), tag("p", note, class_="soft small")])


def _systems(content):
    """A table for each set of scores; several runs of a system are mean ± standard deviation."""
    parts, systems = [], content["systems"]
    for scores in dict.fromkeys(tuple(s["scores"]) for s in systems):
        rows = []
        for s in systems:
            if tuple(s["scores"]) != scores:
                continue
            spreads = [(metrics.mean_std(s["scores"][name]), len(s["scores"][name])) for name in scores]
            cells = [number(mean) if n == 1 else f"{number(mean)} ± {number(std)}" for (mean, std, _), n in spreads]
            rows.append((s.get("name", "–"), *cells, *(_cell(s.get(key)) for key in ("runs", "utterances", "setting"))))
        parts.append(table(("system", *scores, "runs", "utterances", "setting"), rows, numbers=range(1, len(scores) + 3)))
    return join(parts)


def _json(value):
    """JSON as tables: a dict of dicts or a list of dicts is one table, {"mean", "std"} one cell, anything else a line."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return _records([(None, v) for v in value])
    if not isinstance(value, dict) or not value:
        return tag("p", _cell(value))
    plain = {k: v for k, v in value.items() if _is_cell(v)}
    parts = [table(("", "value"), [(k, _cell(v)) for k, v in plain.items()], numbers=(1,))] if plain else []
    for key, inner in value.items():
        if key in plain:
            continue
        records = isinstance(inner, dict) and inner and all(isinstance(v, dict) and not _is_cell(v) for v in inner.values())
        flat = records and all(_is_cell(c) for v in inner.values() for c in v.values())
        parts += [tag("h3", key), _records(list(inner.items())) if flat else _json(inner)]
    return join(parts)


def _records(pairs):
    columns = list(dict.fromkeys(c for _, record in pairs for c in record))
    named = any(name is not None for name, _ in pairs)
    rows = [([name] if named else []) + [_cell(record.get(c, "")) for c in columns] for name, record in pairs]
    first = 1 if named else 0
    numeric = [i + first for i, c in enumerate(columns) if all(_is_numeric_cell(record.get(c)) for _, record in pairs)]
    return table(([""] if named else []) + columns, rows, numbers=numeric)


def _is_cell(value):
    if isinstance(value, dict):
        return {"mean", "std"} <= set(value) <= {"mean", "std", "n"} and all(v is None or is_number(v) for v in value.values())
    if isinstance(value, list):
        return all(not isinstance(v, (dict, list)) for v in value)
    return True


def _is_numeric_cell(value):
    return value is None or is_number(value) or isinstance(value, (int, dict))


def _cell(value):
    if isinstance(value, dict):
        return _plus_minus(value) if value else "–"
    if isinstance(value, list):
        return ", ".join(str(_cell(v)) for v in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return "–" if value is None else value


def _data(run):
    parts = [tag("h2", "Data"), *(_corpus(name, corpus) for name, corpus in run.corpora.items())]
    if not run.corpora:
        parts.append(tag("p", "No corpus.json was found: how many utterances each split has is not known here."))
    parts += [tag("h3", "Leak check"), *(_check(name, check) for name, check in run.checks.items())]
    if not run.checks:
        parts.append(tag("p", "No result of tools/check_manifest.py --json was found."))
    return join([*parts, *(_audit(name, audit) for name, audit in run.audits.items())])


def _corpus(name, corpus):
    facts = ", ".join(f"{corpus.get(key, '?')} {key}" for key in ("utterances", "hours", "speakers"))
    parts = [tag("h3", corpus.get("corpus", "?")), tag("p", facts, tag("span", f" ({name})", class_="soft small"))]
    counts = corpus.get("counts", {})
    splits = list(dict.fromkeys(split for fold in counts.values() for split in fold))
    rows = [("all" if fold == "." else fold, *(of.get(split, "–") for split in splits)) for fold, of in counts.items()]
    parts.append(table(("utterances", *splits), rows, numbers=range(1, len(splits) + 1)) if rows else "")
    rows = [("without a class" if c == "-" else c, n) for c, n in corpus.get("classes", {}).items()]
    parts.append(table(("class", "utterances"), rows, numbers=(1,)) if rows else "")
    for reason, paths in corpus.get("left_out", {}).items():
        parts.append(folded(f"{len(paths)} recordings left out: {reason}", tag("pre", "\n".join(map(str, paths)))))
    if corpus.get("options"):
        parts.append(folded("options of the corpus", tag("pre", json.dumps(corpus["options"], indent=2, ensure_ascii=False))))
    return join(parts)


def _check(name, check):
    leaks, verdict = check["leaks"], "passed" if check.get("ok") else "failed"
    counts = f": {count(len(check['errors']), 'error')}, {count(len(leaks), 'leak')}"
    parts = [tag("p", tag("b", verdict), counts, tag("span", f" ({name})", class_="soft small"))]
    parts.append(tag("ul", *(tag("li", warnings.describe_leak(leak)) for leak in leaks)) if leaks else "")
    rows = []
    for folder, splits in check.get("splits", {}).items():
        for split, of in splits.items():
            classes = ", ".join(f"{c} {n}" for c, n in (of.get("classes") or {}).items())
            rows.append((folder, split, *(_cell(of.get(key)) for key in ("utterances", "hours", "speakers")), classes))
    header = ("manifest", "split", "utterances", "hours", "speakers", "classes")
    parts.append(folded("splits that were checked", table(header, rows, numbers=(2, 3, 4))) if rows else "")
    return join(parts)


def _audit(name, audit):
    """What evaluations share with everything that their models have seen, as tools/audit_run.py found it."""
    verdict = "passed" if audit.get("ok") else "failed"
    allowed = f"; allowed: {', '.join(map(str, audit['allowed']))}" if audit.get("allowed") else ""
    counts = f": {count(len(audit['evaluations']), 'evaluation')}, {count(len(audit['problems']), 'problem')}{allowed}"
    parts = [tag("h3", "Audit of the run"), tag("p", tag("b", verdict), counts, tag("span", f" ({name})", class_="soft small"))]
    parts.append(tag("ul", *(tag("li", str(problem)) for problem in audit["problems"])) if audit["problems"] else "")
    parts.append(folded("made elsewhere", tag("pre", "\n".join(map(str, audit["unknown"])))) if audit["unknown"] else "")
    return join(parts)


def _evaluation(run, evaluation, budget):
    scores = evaluation.scores
    parts = [tag("h2", f"Evaluation: {evaluation.name}", id=_anchor(evaluation))]
    parts.append(_origin(scores))
    parts.append(_list_own(warnings.of_evaluation(evaluation)))
    if evaluation.is_classification and scores["n"]:
        parts.append(_class_table(scores))
    shown, folded_away = [], []
    for path in _pictures(evaluation.folder):
        target = folded_away if path.stem.startswith(("threshold", "embeddings")) else shown
        target.append(budget.picture(path, _caption(path.stem), run.name_of(path)))
    parts.append(tag("div", *shown, class_="figures large") if shown else "")
    if folded_away:
        title = f"decision thresholds and embedding maps ({count(len(folded_away), 'figure')})"
        note = tag("p", "The sweep describes this split; choose a threshold on validation data.", class_="soft small")
        parts.append(folded(title, note if evaluation.is_classification else "", tag("div", *folded_away, class_="figures")))
    for column, groups in scores["by"].items():
        parts.append(folded(f"by {column} ({count(len(groups), 'value')})", _groups(groups, evaluation.is_classification, column)))
    if scores.get("columns_left_out"):
        names = ", ".join(map(str, scores["columns_left_out"]))
        parts.append(tag("p", f"Columns with too many values to break down: {names}.", class_="soft small"))
    if scores["per_speaker"]:
        title = f"all {count(len(scores['per_speaker']), 'speaker')}"
        parts.append(folded(title, _groups(scores["per_speaker"], evaluation.is_classification, "speaker")))
    return join(parts)


def _origin(scores):
    """What the scores were made from, as far as `metrics.json` says it."""
    keys = ("checkpoint", "split", "setting", "speaker_embedding")
    said = [f"{key.replace('_', ' ')}: {scores[key]}" for key in keys if isinstance(scores.get(key), str)]
    return tag("p", "; ".join(said), class_="soft small") if said else Html("")


def _class_table(scores):
    confusion, classes = scores["confusion"], scores["classes"]
    columns = (metrics.recalls(confusion), metrics.precisions(confusion), metrics.f1_scores(confusion))
    rows = [
        (name, *(number(float(values[i])) for values in columns), sum(confusion[i]), sum(row[i] for row in confusion))
        for i, name in enumerate(classes)
    ]
    return table(("class", "recall", "precision", "F1", "references", "predicted"), rows, numbers=range(1, 6))


def _groups(groups, is_classification, column):
    speakers = any("speakers" in s for s in groups.values())
    header, rows = (column, *(["speakers"] if speakers else [])), []
    for value, s in groups.items():
        first = (value, *([s.get("speakers", "–")] if speakers else []))
        if is_classification:
            rows.append((*first, s.get("n", "–"), *(number(s.get(k)) for k in ("UA", "WA", "macro_f1"))))
            continue
        for name, v in (s.get("dims") or {}).items():
            scores = (number(v.get(k)) for k in ("ccc", "pearson", "rmse", "bias"))
            rows.append((*first, name, v.get("n", s.get("n", "–")), *scores))
    header += ("n", "UA", "WA", "macro F1") if is_classification else ("dimension", "n", "CCC", "Pearson", "RMSE", "bias")
    return table(header, rows, numbers=[i for i, name in enumerate(header) if i and name != "dimension"])


FACTS = (
    ("task", "task._name"),
    ("data", "task.data"),
    ("label sets", "task.labels"),
    ("target", "task.target"),
    ("model", "model._name"),
    ("started from", "model.init_from"),
    ("speaker position", "model.speaker_position"),
    ("speaker dropout", "model.speaker_dropout"),
    ("pooling", "model.pooling"),
    ("head", "model.head"),
    ("frozen", "model.freeze"),
    ("criterion", "criterion._name"),
    ("optimizer", "optimizer._name"),
    ("learning rate", "optimization.lr"),
    ("updates at most", "optimization.max_update"),
    ("epochs at most", "optimization.max_epoch"),
    ("chosen by", "checkpoint.best_checkpoint_metric"),
    ("seed", "common.seed"),
)
"""What a reader asks of a configuration first, and where it stands."""


def _training(training, budget):
    parts = [tag("h2", f"Training: {training.name}")]
    parts.append(_list_own(warnings.of_training(training)))
    rows = [(label, _cell(training.get(path))) for label, path in FACTS if training.get(path) not in (None, "", [], 0)]
    if training.curves:
        rows.append(("updates made", training.last_update()))
    if chosen := chosen_update(training.curves):
        rows.append((f"best {chosen[0]} at update", chosen[1]))
    parts.append(table(("", "value"), rows) if rows else "")
    if training.curves:
        with tempfile.TemporaryDirectory() as folder:
            path = figures.training(Path(folder) / "training.png", training.curves)
            drawn = budget.picture(path, "Training and validation curves", f"{training.name}: training curves") if path else ""
        parts.append(tag("div", drawn, class_="figures large"))
    if training.config:
        written = yaml.safe_dump(training.config, sort_keys=False, allow_unicode=True)
        parts.append(folded(f"whole configuration ({training.source})", tag("pre", written)))
    return join(parts)


def _footer(run, budget):
    parts = [tag("p", f"Made from {len(run.inputs)} files below ", tag("span", run.folder, class_="mono"), ".")]
    if budget.left_out:
        size = MOST_PICTURES >> 20
        title = f"{len(budget.left_out)} figures are not in this page, which holds {size} MiB of figures at most"
        parts.append(folded(title, tag("pre", "\n".join(budget.left_out))))
    parts.append(folded("files", tag("pre", "\n".join(run.inputs))))
    return tag("footer", *parts, class_="soft small")


def _anchor(evaluation):
    return "e-" + fingerprint(evaluation.name)


def _link(evaluation):
    return tag("a", evaluation.name, href=f"#{_anchor(evaluation)}")


def _caption(stem):
    for key, caption in CAPTIONS.items():
        if stem == key or stem.startswith(f"{key}_"):
            rest = re.sub(r"^\d+_", "", stem[len(key) :].lstrip("_"))
            return f"{caption}: {rest}" if rest else caption
    return stem.replace("_", " ")


def _with_interval(evaluation, name, dimension=None):
    value = evaluation.scores[name] if dimension is None else evaluation.scores["dims"][dimension][name]
    low, high = evaluation.interval(name, dimension)
    return number(value) + (f" [{low:.3f}, {high:.3f}]" if not math.isnan(low) else "")


def _level(evaluations):
    levels = {(e.scores.get("ci") or {}).get("level") for e in evaluations}
    level = levels.pop() if len(levels) == 1 else None
    return f"[{100 * level:.0f}%]" if is_number(level) else ""


def _plus_minus(spread):
    mean, std, n = (spread.get(k) for k in ("mean", "std", "n"))
    return f"{number(mean)} ± {number(std)}" + (f" (n = {n})" if isinstance(n, int) else "")
