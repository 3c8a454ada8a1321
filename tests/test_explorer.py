"""The explorer: that its data are those of the files, that it needs nothing from outside, and, in Chromium, that it does what it shows."""

import base64
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from scripts import run as run_program
from test_evaluation import some_classes, some_dimensions
from test_report import HOSTILE, Page

from emohubert.core.errors import InputError
from emohubert.core.files import write_json
from emohubert.corpus import audio
from emohubert.corpus.manifest import Utterance, write_splits
from emohubert.evaluation import scoring
from emohubert.evaluation.cross_validation import pooled
from emohubert.evaluation.predictions import from_probabilities, write_attention, write_predictions
from emohubert.report import explorer, page
from emohubert.report.collect import discover

ELEMENTS = """html head meta title style body header h1 label select span details summary div aside main button input kbd table thead tbody tr p
noscript script"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def add_evaluation(run, made, rate=16000, name="test", **meta):
    """Predictions, and a manifest of 0.2 s of noise for each utterance, at a rate of its own."""
    corpus, rng = run.parent / "corpus", np.random.default_rng(0)
    corpus.mkdir(parents=True, exist_ok=True)
    for i in range(len(made)):
        soundfile.write(corpus / f"{i}.wav", rng.uniform(-0.5, 0.5, (rate // 5, 2)), rate)
    columns = [{key: values[i] for key, values in meta.items()} for i in range(len(made))]
    listed = [Utterance(f"{i}.wav", 3200, s, "sad", meta={"id": made.ids[i], **columns[i]}) for i, s in enumerate(made.speakers)]
    write_splits(run.parent / "manifest", corpus, {name: listed})
    save(run / name, made, {"split": str(run.parent / "manifest" / f"{name}.tsv")})
    return run


def save(folder, made, about):
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.tsv", made)
    write_json(folder / "metrics.json", {**about, **scoring.evaluate(made, repeats=10)})


def written(run, **options):
    """(notes, evaluations of the page, its elements)."""
    path, notes = explorer.write(discover(run), **options)
    page = Page(path)
    blocks = re.findall(r'<script type="application/json" class="evaluation"[^>]*>(.*?)</script>', page.source, re.DOTALL)
    return notes, [json.loads(block) for block in blocks], page.elements


def test_the_page_holds_the_predictions_and_plays_the_recordings(tmp_path):
    made = some_classes(12, speakers=3)
    made.emotions[3] = "-"
    run = add_evaluation(tmp_path / "run", made, 44100, sex=["f", "m"] * 6)
    write_attention(run / "test" / "attention.npz", {"u1": np.repeat([0, 0.2], 5), "u2": np.arange(200.0)})
    notes, (e,), _ = written(run)
    assert notes == []
    assert (e["ids"], e["speakers"], e["meta"]["sex"]) == (made.ids, made.speakers, ["f", "m"] * 6)
    assert [e["classes"][i] if i >= 0 else "-" for i in e["reference"]] == made.emotions
    assert [e["classes"][i] for i in e["predicted"]] == made.predicted
    np.testing.assert_allclose(e["p"], made.probabilities, rtol=1e-3)
    assert e["seconds"] == [0.2] * 12
    assert e["attention"][0] is None and e["attention"][1] == "0" * 50 + "z" * 50
    assert e["attention"][2][::33] == "0cnz" and len(e["attention"][2]) == 100  # means of two, 35 · (2 i + 0.5) / 198.5
    for i, name in enumerate(e["clips"]):
        clip, rate = soundfile.read(run / "explore" / "audio" / name)
        assert rate == 16000
        np.testing.assert_allclose(clip, audio.read(tmp_path / "corpus" / f"{i}.wav"), atol=1 / 32768)
    assert explorer.write(discover(run))[1] is None
    assert 'href="explore/index.html"' in page.write(run)[0].read_text()
    made.speakers[0] = "another"
    write_predictions(run / "test" / "predictions.tsv", made)
    assert explorer.write(discover(run))[1] == []


def test_what_has_no_clip_is_counted(tmp_path):
    made = some_classes(12)
    run = add_evaluation(tmp_path / "run", made)
    made.emotions[4], made.probabilities[4] = made.classes[0], [0.001, 0.997, 0.001, 0.001]  # the greatest surprise
    write_predictions(run / "test" / "predictions.tsv", made)
    size = max(p.stat().st_size for p in (explorer.write(discover(run))[0].parent / "audio").iterdir())
    notes, (e,), _ = written(run, most_mb=1.5 * size / 2**20)
    assert [i for i, clip in enumerate(e["clips"]) if clip] == [4] and len(list((run / "explore" / "audio").iterdir())) == 1
    assert notes[0].startswith("11 of 12 recordings, those of the smallest errors, are beyond")
    notes, (e,), _ = written(run, most_mb=0)
    assert not any(e["clips"]) and not list((run / "explore" / "audio").iterdir()) and notes == []
    (tmp_path / "corpus" / "4.wav").write_text("no audio")
    notes, (e,), _ = written(run, overwrite=True)
    assert [i for i, clip in enumerate(e["clips"]) if not clip] == [4]
    assert "1 recordings could not be read" in notes[0] and "4.wav" in notes[0]
    (tmp_path / "manifest" / "test.tsv").unlink()
    notes, (e,), _ = written(run)
    assert "manifest of 12 utterances was not found" in notes[0] and not any(e["clips"])


def test_pooled_folds_have_the_audio_of_their_parts(tmp_path, capsys):
    made = some_classes(12)
    run = add_evaluation(tmp_path / "run" / "fold1" / "seed1", made)
    save(run.parents[1] / "pooled" / "seed1", pooled([made]), {"pooled": ["fold1/seed1"]})
    notes, (one, both), _ = written(run.parents[1])
    assert notes == [] and all(one["clips"]) and one["clips"] == both["clips"]
    assert run_program("tools/report.py", run.parents[1], "--explore") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{run.parents[1]}/explore/index.html")


def test_dimensions(tmp_path):
    made = some_dimensions(12)
    made.references[2, 0] = np.nan
    run = add_evaluation(tmp_path / "run", made)
    _, (e,), _ = written(run)
    assert e["dims"] == made.dims and e["reference"][2][0] is None and e["meta"]["emotion"] == ["sad"] * 12
    np.testing.assert_allclose(e["predicted"], made.predicted, rtol=1e-3)


def test_nothing_to_explore(tmp_path, capsys):
    run = add_evaluation(tmp_path / "run", some_classes(12))
    (run / "test" / "predictions.tsv").write_text("id\n")
    with pytest.raises(InputError, match="no evaluation in it has a predictions.tsv that can be read"):
        explorer.write(discover(run))
    for option in (["--no-audio"], ["--audio-mb", "3"]):
        assert run_program("tools/report.py", run, *option) == 2
        assert f"error: {option[0]} is of the explorer; add --explore" in capsys.readouterr().err


def hostile_run(folder):
    """Every name is an attack, and there is one utterance for each that a table cell could take."""
    made = some_classes(12, speakers=2)
    rename = {name: HOSTILE if name == "sad" else name for name in made.classes}
    made = from_probabilities(
        [f"{i}{HOSTILE}" for i in made.ids],
        [s + HOSTILE for s in made.speakers],
        [rename[c] for c in made.emotions],
        list(rename.values()),
        made.probabilities,
    )
    return add_evaluation(folder / "run <b>bold<", made, **{HOSTILE: [HOSTILE, "b"] * 6})


def test_no_text_of_a_run_becomes_markup_and_no_script_runs_but_ours(tmp_path):
    notes, (e,), elements = written(hostile_run(tmp_path))
    assert notes == [] and HOSTILE in e["classes"]
    assert {name for name, _ in elements} <= set(ELEMENTS.split())
    assert not any(key.startswith("on") or key in ("src", "href") for _, attributes in elements for key in attributes)
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "run <b>bold</explore/index.html").read_text(), re.DOTALL)
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}';" in policy
    assert policy.startswith("default-src 'none'") and not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|innerHTML|eval\(", script)


def in_chromium(folder, script):
    """What a script on the page leaves as the JSON `told`, and all that Chromium says. The page is a copy in which inline scripts may run."""
    source = (folder / "explore" / "index.html").read_text(encoding="utf-8")
    page = folder / "explore" / "driven.html"
    source = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", source)
    end = '<script>Promise.resolve((async () => { %s })()).then(told => document.body.append(h("pre", {}, JSON.stringify(told))));</script>'
    page.write_text(source.replace("</body>", end % script + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    options += ["--autoplay-policy=no-user-gesture-required", "--mute-audio", f"--user-data-dir={folder.parent / 'profile'}"]
    done = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, encoding="utf-8", timeout=60)
    (told,) = re.findall(r"<pre>(.*)</pre>", done.stdout, re.DOTALL) or pytest.fail(done.stderr[-2000:])
    assert "CONSOLE" not in done.stderr
    return json.loads(told.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


KEY = 'const key = k => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));'
LOOK = """const look = () => ({ count: $("count").textContent, ids: [...document.querySelectorAll(".row b")].map(b => b.textContent),
  at: document.querySelector("[aria-selected=true] b")?.textContent });"""


@needs_chromium
def test_filters_order_keys_and_player_of_classes(tmp_path):
    made = some_classes(120)
    run = add_evaluation(tmp_path / "run", made, sex=["f", "m"] * 60)
    written(run)
    of = {name: i for i, name in enumerate(made.classes)}
    cell = next((a, b) for a, b in zip(made.emotions, made.predicted, strict=True) if a != b)
    press = f"document.querySelector('[data-cell=\"{of[cell[0]]},{of[cell[1]]}\"]').click();"
    steps = ["", press, 'key("j"); key("j");', 'key("k");', 'key("Escape");', '$("errors").click();', 'sortBy("confidence");']
    steps += ['key("Escape"); for (const b of document.querySelectorAll(".chips button")) if (b.firstChild.data === "s01") b.click();']
    script = f"{KEY}{LOOK} const told = []; " + "".join(f"{step} told.push(look());" for step in steps)
    playing = 'key("j"); key(" "); await new Promise(done => sound.onloadedmetadata = done); told.push(sound.duration);'
    start, chosen, second, first, all_again, errors, confident, speaker, seconds = in_chromium(run, f"{script} {playing} return told;")

    p = np.array([row[of[c]] for row, c in zip(made.probabilities, made.emotions, strict=True)])
    by_surprise = [made.ids[i] for i in np.argsort(p, kind="stable")]
    right = [a == b for a, b in zip(made.emotions, made.predicted, strict=True)]
    assert start["count"] == f"120 utterances, {round(100 * np.mean(right))} % right" and start["ids"] == by_surprise[:50]
    inside = [name for name in by_surprise if (made.emotions[made.ids.index(name)], made.predicted[made.ids.index(name)]) == cell]
    assert chosen["ids"] == inside and chosen["count"] == f"{len(inside)} of 120 utterances, 0 % right"
    assert (second["at"], first["at"]) == (inside[1] if len(inside) > 1 else inside[0], inside[0])
    assert all_again["count"] == start["count"]
    wrong = [name for name in by_surprise if not right[made.ids.index(name)]]
    assert errors["ids"] == wrong[:50]
    assert confident["ids"][0] == max(wrong, key=lambda name: made.confidence[made.ids.index(name)])
    assert speaker["count"].startswith("20 of 120") and seconds == pytest.approx(0.2)


@needs_chromium
def test_filters_and_order_of_dimensions(tmp_path):
    made = some_dimensions(60)
    run = add_evaluation(tmp_path / "run", made)
    written(run, most_mb=0)
    box = "F.box = [0, 0.5, -9, 9]; update(); told.push(look());"
    script = f"{LOOK} const told = [look()]; {box} clearAll(); choose(1); build(); refilter(); told.push(look()); go(0); return told;"
    told = in_chromium(run, script)
    error = np.abs(made.predicted - made.references)
    for shown, column in ((told[0], 0), (told[2], 1)):
        assert shown["ids"] == [made.ids[i] for i in np.argsort(-error[:, column], kind="stable")][:50]
    assert told[1]["count"].startswith(f"{(made.references[:, 0] <= 0.5).sum()} of 60 ")


@needs_chromium
def test_hostile_names_are_shown_and_do_nothing(tmp_path):
    run = hostile_run(tmp_path)
    written(run)
    script = "window.alert = text => { window.ran = text; }; go(0); await new Promise(done => setTimeout(done, 500));"
    told = in_chromium(run, f'{script} return [window.ran ?? null, document.querySelectorAll("img").length, shown[0].id, document.title];')
    assert told[:2] == [None, 0] and told[2].endswith(HOSTILE) and told[3] == "run <b>bold<: listen to the errors"
