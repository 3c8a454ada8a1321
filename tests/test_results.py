"""Tables of results: runs of a fold and seed, what is pooled, and the paper's numbers beside them."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_rel
from scripts import ROOT, run

from emohubert.core.errors import InputError
from emohubert.evaluation.results import of_folds, read_published, read_results, write_results


def evaluation(folder, ua, setting="inductive (2 speakers)"):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"n": 10, "UA": ua, "WA": ua, "macro_f1": ua, "setting": setting}))
    return folder


def cross_validation(folder, scores):
    runs = []
    for (fold, seed), ua in scores.items():
        evaluation(folder / f"fold{fold}" / f"seed{seed}" / "test", ua)
        runs.append({"fold": fold, "seed": seed, "folder": f"fold{fold}/seed{seed}/test"})
    for seed in {seed for _, seed in scores}:
        evaluation(folder / "pooled" / f"seed{seed}", 0.55)
    (folder / "results.json").write_text(json.dumps({"runs": runs}))
    return folder


def test_a_cross_validation_stands_for_its_runs(tmp_path):
    whole = cross_validation(tmp_path / "vft", {("1", 1): 0.5, ("1", 2): 0.6, ("2", 1): 0.7, ("2", 2): 0.8})
    single = evaluation(tmp_path / "single", 0.4, "adapted (2 speakers)")
    table = write_results(tmp_path / "table", read_results(of_folds([("V-FT", whole), ("PAPT", single)])), "Title")
    assert [line.split("|")[1].strip() for line in table[2:]] == ["V-FT", "V-FT, folds pooled", "PAPT"]
    assert [c.strip() for c in table[2].split("|")[2:7]] == ["inductive (2 speakers)", "4", "40", "65.0 ± 11.2", "65.0 ± 11.2"]
    assert "adapted (2 speakers)" in table[4]
    with pytest.raises(InputError, match="no runs"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "results.json").write_text("{}")
        of_folds([("x", tmp_path / "empty")])


def test_the_papers_numbers_stand_beside_ours_with_their_source(tmp_path):
    row = f"FLEA, layer 9, 50 clusters, attention={evaluation(tmp_path / 'a', 0.5)}"
    other = f"Ours={evaluation(tmp_path / 'b', 0.6)}"
    assert run("tools/results.py", row, other, "--paper", ROOT / "recipes" / "papers" / "flea.tsv", "--out", tmp_path / "table") == 0
    text = (tmp_path / "table.md").read_text()
    header, _, first, second = (line for line in text.splitlines() if line.startswith("|"))
    assert [c.strip() for c in header.split("|")[-3:-1]] == ["UA %, paper", "WA %, paper"]
    assert [c.strip() for c in first.split("|")[-3:-1]] == ["75.7", "74.7"] and [c.strip() for c in second.split("|")[-3:-1]] == ["", ""]
    assert "Li et al. 2024" in text and json.loads((tmp_path / "table.json").read_text())["published"][0]["UA %"] == "75.7"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "papers").glob("*.tsv")), ids=lambda p: p.stem)
def test_every_published_number_has_a_source(path):
    for row in read_published(path).values():
        scores = {c: float(value) for c, value in row.items() if value and c not in ("system", "source")}
        assert row["source"] and scores, row
        assert all(0 < value < (100 if c in ("UA %", "WA %") else 1) for c, value in scores.items())


def test_the_mean_over_speakers_stands_where_the_paper_has_it(tmp_path):
    ours = {"ccc": 0.5, "speaker_ccc_mean": 0.4}, {"ccc": 0.3, "speaker_ccc_mean": None}
    metrics = {"n": 9, "dims": dict(zip(("arousal", "valence"), ours, strict=True)), "setting": "transductive (2 speakers)"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    row, papers = f"PAPT, transductive={tmp_path}", ROOT / "recipes" / "papers"
    for paper, cells in (
        ("papt", ["0.500", "0.400", "0.300", "–", "0.740", "0.531", "0.663", "0.569"]),
        ("vft", ["0.500", "0.300"]),
    ):
        assert run("tools/results.py", row, "--paper", papers / f"{paper}.tsv", "--out", tmp_path / "table") == 0
        table = [line.split("|")[1:-1] for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
        assert [c.strip() for c in table[2][4:]] == cells


def test_differences_speaker_by_speaker(tmp_path, capsys):
    """Against scipy's paired t-test; a speaker's score is the mean over runs, speakers that only one system has do not count."""
    rng, scores = np.random.default_rng(0), {}
    for system in ("a", "b"):
        for seed in (1, 2):
            per_speaker = {f"s{i}": {"n": 5, "UA": float(rng.uniform(0.2, 0.9)), "WA": 0.5} for i in range(6)}
            per_speaker |= {f"only {system}": {"n": 5, "UA": 0.0, "WA": 0.0}}
            folder = tmp_path / f"{system}{seed}"
            folder.mkdir()
            (folder / "metrics.json").write_text(json.dumps({"n": 30, "UA": 0.5, "WA": 0.5, "setting": "x", "per_speaker": per_speaker}))
            scores.setdefault(system, []).append([100 * per_speaker[f"s{i}"]["UA"] for i in range(6)])
    rows = [f"{system}={tmp_path}/{system}{seed}" for system in ("a", "b") for seed in (1, 2)]
    assert run("tools/results.py", *rows, "--paired", "a", "--out", tmp_path / "table") == 0
    expected = ttest_rel(np.mean(scores["b"], 0), np.mean(scores["a"], 0))
    low, high = expected.confidence_interval(0.95)
    change = np.mean(scores["b"], 0) - np.mean(scores["a"], 0)
    cells = [c.strip() for c in (tmp_path / "table.md").read_text().splitlines()[-1].split("|")[1:-1]]
    assert cells == ["b", "6", f"{change.mean():+.3g}", f"{low:+.3g} to {high:+.3g}", f"{(change > 0).sum()} of 6"]
    assert run("tools/results.py", *rows, "--paired", "c", "--out", tmp_path / "table") == 2
    assert "there are a, b" in capsys.readouterr().err
