"""Prediction of audio files: any format, long recordings, bad files, new speakers, and what it must agree with."""

import csv
import io
import json
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from corpus import CLASSES, make_corpus
from random_hubert import write_checkpoint, write_random_hubert
from scripts import run
from training import TINY

from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.corpus.manifest import read_split
from emohubert.evaluation import predict_files as prediction
from emohubert.evaluation.inference import predict_split
from emohubert.evaluation.predict_files import find_files, in_order, predict_files, windows
from emohubert.tasks.trained import load_trained

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

DIMENSIONS = ("arousal", "valence")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, seconds=(0.2, 1.5), train=2, valid=2, test=12)
    encoder = write_random_hubert(folder / "hubert.pt", **TINY)
    rng = torch.Generator().manual_seed(0)
    head = torch.randn(4, 48, generator=rng) * 0.5, torch.zeros(4)
    write_checkpoint(folder / "classes.pt", encoder, classes=CLASSES, head=head)
    write_checkpoint(folder / "dimensions.pt", encoder, dimensions=DIMENSIONS, head=(head[0][:2], head[1][:2]))
    return folder


@pytest.fixture(scope="module")
def classifier(corpus):
    return load_trained(corpus / "classes.pt")


def test_files(corpus):
    return sorted(str(p) for p in (corpus / "audio").glob("test*.wav"))


test_files.__test__ = False


def predict(classifier, paths, **options):
    return list(in_order(predict_files(*classifier, list(map(str, paths)), **options)))


def values(predictions):
    return np.concatenate([p.values for p in predictions])


def write(path, samples, rate=16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def noise(seconds, rate=16_000, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


# --- what it agrees with ----------------------------------------------------------------------------------------------


def test_files_get_what_evaluation_says_of_them(corpus, classifier):
    expected, embeddings = predict_split(*classifier, read_split(corpus / "manifest", "test"))
    found = predict(classifier, test_files(corpus), embeddings=True)
    assert [os.path.basename(p.path)[:-4] for p in found] == expected.ids
    np.testing.assert_array_equal(values(found), expected.probabilities)
    np.testing.assert_array_equal(np.concatenate([p.embeddings for p in found]), embeddings)
    assert np.ptp(expected.probabilities, axis=0).min() > 0.01  # files differ: agreement means something


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch_seconds", [0.1, 3, 100])
def test_results_depend_on_neither_batches_nor_workers(corpus, classifier, padded, batch_seconds):
    reference = values(predict(classifier, test_files(corpus), workers=1))
    found = predict(classifier, test_files(corpus), padded=padded, batch_seconds=batch_seconds, workers=3)
    np.testing.assert_allclose(values(found), reference, rtol=0, atol=1e-5 if padded else 0)


def test_every_format_rate_and_channel_number(corpus, classifier, tmp_path):
    """The same sound as FLAC, stereo, AIFF … at 16 kHz gives the same; other rates and lossy formats nearly the same."""
    t = np.arange(32_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 1330 * t)).astype(np.float32)
    tone = (tone * 32767).round() / 32768
    exact = [write(tmp_path / name, tone) for name in ("a.wav", "b.flac", "c.aiff", "d.au", "e.w64", "f.caf")]
    exact += [write(tmp_path / "g.wav", np.stack([tone, tone], 1)), write(tmp_path / "h.wav", tone, subtype="DOUBLE")]
    found = values(predict(classifier, exact))
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=0, atol=1e-6)
    t = np.arange(96_000) / 48_000
    tone48 = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 1330 * t)
    near = [write(tmp_path / name, tone48, 48_000) for name in ("i.wav", "j.mp3", "k.ogg")]
    assert np.abs(values(predict(classifier, near)) - found[0]).max() < 0.02


def test_the_unknown_speaker_is_heard(corpus, tmp_path):
    """A speaker-conditioned checkpoint gives what the same weights give for the unknown speaker's row."""
    checkpoint = write_checkpoint(
        tmp_path / "c.pt", corpus / "hubert.pt", classes=CLASSES, speakers=["anna", "ben"], speaker_position="input"
    )
    task, model = load_trained(checkpoint)
    with torch.no_grad():
        model.backbone.speaker_conditioning.embedding.weight.normal_()
    split = read_split(corpus / "manifest", "test")
    known, _ = predict_split(task, model, split)
    split.speakers = ["somebody else"] * len(split)
    unknown, _ = predict_split(task, model, split)
    assert np.abs(known.probabilities - unknown.probabilities).max() > 1e-4
    task.state.merge_state_dict({"corpus": "another"})  # whose anna and ben are other people, but for those added meanwhile
    split = read_split(corpus / "manifest", "test")
    np.testing.assert_array_equal(predict_split(task, model, split)[0].probabilities, unknown.probabilities)
    task.added_speakers = {"anna", "ben"}
    np.testing.assert_array_equal(predict_split(task, model, split)[0].probabilities, known.probabilities)
    np.testing.assert_array_equal(values(predict((task, model), test_files(corpus))), unknown.probabilities)


# --- time lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "window", "hop"), [(10, 4, 2), (11, 4, 2), (9, 4, 4), (3, 4, 2), (4, 4, 1), (100, 7, 3), (101, 10, 10)])
def test_windows_cover_everything_and_end_with_the_recording(n, window, hop):
    spans = windows(n, window, hop)
    assert spans[0, 0] == 0 and spans[-1, 1] == n
    covered = np.zeros(n, dtype=bool)
    for start, stop in spans:
        assert stop - start == min(window, n)
        covered[start:stop] = True
    assert covered.all()
    steps = np.diff(spans[:, 0])
    assert (steps[:-1] == hop).all() and (steps > 0).all() and (steps <= hop).all()


def test_a_time_line_gives_what_the_windows_give_as_files(corpus, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_BLOCK", 20_000)  # several blocks, and windows across their borders
    samples = noise(5.1)
    path = write(tmp_path / "long.wav", samples, subtype="FLOAT")
    other = write(tmp_path / "short.wav", samples[:5000], subtype="FLOAT")
    line, short = predict(classifier, [path, other], window=1.0, hop=0.3)
    assert len(line.spans) == 15 and line.spans[-1].tolist() == [81_600 - 16_000, 81_600]
    assert short.spans.tolist() == [[0, 5000]]
    pieces = [write(tmp_path / f"{i}.wav", samples[a:b], subtype="FLOAT") for i, (a, b) in enumerate(line.spans)]
    np.testing.assert_array_equal(line.values, values(predict(classifier, pieces)))
    np.testing.assert_array_equal(short.values, values(predict(classifier, [other])))


def test_a_recording_is_decoded_once(corpus, classifier, tmp_path, monkeypatch):
    path, decoded, lock = write(tmp_path / "long.wav", noise(8)), [], threading.Lock()
    original = audio.read

    def counting(path, start=0, stop=None, n_samples=None):
        found = original(path, start, stop, n_samples)
        with lock:
            decoded.append(len(found))
        return found

    monkeypatch.setattr(audio, "read", counting)
    (line,) = predict(classifier, [path], window=1.0, hop=0.1)
    assert len(line.spans) == 71 and decoded == [128_000]


def test_a_resampled_time_line_equals_slices_of_the_whole(corpus, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_BLOCK", 16_000)
    path = write(tmp_path / "long.wav", noise(3.3, 44_100), 44_100, subtype="FLOAT")
    (line,) = predict(classifier, [path], window=0.5, hop=0.4)
    whole = audio.read(path)
    pieces = [write(tmp_path / f"{i}.wav", whole[a:b], subtype="FLOAT") for i, (a, b) in enumerate(line.spans)]
    np.testing.assert_allclose(line.values, values(predict(classifier, pieces)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"hop": 1.0}, "--hop without"), ({"window": 1.0, "hop": 2.0}, "nothing is lost"), ({"window": 0.01}, "under one frame")],
)
def test_windows_that_make_no_sense(corpus, classifier, options, expected):
    with pytest.raises(InputError, match=expected):
        predict(classifier, test_files(corpus), **options)


def test_memory_is_bounded_and_the_order_kept_for_many_files(corpus, classifier, monkeypatch):
    monkeypatch.setattr(prediction, "_FILES", 5)
    monkeypatch.setattr(prediction, "_PARTS", 3)
    reference = values(predict(classifier, test_files(corpus)))
    seen, most = set(), 0
    for p in predict_files(*classifier, test_files(corpus)):
        most = max(most, p.index - len(seen))
        seen.add(p.index)
    assert seen == set(range(12)) and most < 3
    np.testing.assert_array_equal(values(predict(classifier, test_files(corpus))), reference)


# --- the program ------------------------------------------------------------------------------------------------------


def test_bad_files_are_named_and_the_rest_goes_on(corpus, tmp_path, capsys):
    good = shutil.copy(corpus / "audio" / "test000.wav", tmp_path / "b_good.wav")
    (tmp_path / "a_not_audio.wav").write_bytes(b"nonsense" * 100)
    (tmp_path / "c_empty.flac").touch()
    write(tmp_path / "d_short.wav", noise(0.02))
    bad = noise(0.5)
    bad[77] = np.nan
    write(tmp_path / "e_nan.wav", bad, subtype="FLOAT")
    write(tmp_path / "f_long.wav", noise(3))
    cut = (corpus / "audio" / "test001.wav").read_bytes()
    (tmp_path / "g_cut.wav").write_bytes(cut[: len(cut) // 2])
    status = run("tools/predict.py", corpus / "classes.pt", tmp_path, tmp_path / "nowhere.wav", "--format", "json", "--longest", "2")
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 2 and [row["file"] for row in rows] == [str(good)]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    names = ["a_not_audio", "c_empty", "d_short", "e_nan", "f_long", "g_cut", "nowhere"]
    for name, line in zip(names, errors, strict=False):
        assert name in line
    assert errors[-1] == "error: 7 of 8 files could not be predicted; they are named above" and len(errors) == 8
    assert "under one frame" in errors[2] and "use --window" in errors[4] and "Traceback" not in err


def test_the_three_formats_say_the_same(corpus, classifier, tmp_path, capsys):
    expected = predict(classifier, test_files(corpus), window=0.5, hop=0.25)
    texts = {}
    for name in ("table", "json", "csv"):
        assert run("tools/predict.py", corpus / "classes.pt", corpus / "audio", "--format", name, "--window", "0.5", "--hop", "0.25") == 0
        texts[name] = capsys.readouterr().out
    kept = [row for row in map(json.loads, texts["json"].splitlines()) if os.path.basename(row["file"]).startswith("test")]
    np.testing.assert_allclose([[row["probabilities"][c] for c in CLASSES] for row in kept], values(expected), rtol=0, atol=1e-8)
    spans = np.concatenate([p.spans for p in expected]) / 16_000
    np.testing.assert_allclose([[row["start"], row["end"]] for row in kept], spans, rtol=0, atol=1e-6)
    assert all(row["emotion"] == max(row["probabilities"], key=row["probabilities"].get) for row in kept)
    table = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert list(table[0]) == ["file", "start", "end", "emotion", *(f"p_{c}" for c in CLASSES)]
    objects = [json.loads(line) for line in texts["json"].splitlines()]
    assert [(r["file"], float(r["start"]), r["emotion"]) for r in table] == [(o["file"], o["start"], o["emotion"]) for o in objects]
    lines = texts["table"].splitlines()
    assert lines[0].split() == ["file", "start", "end", "emotion", *CLASSES] and len(lines) == 1 + len(table)
    assert all(line.split()[3] == o["emotion"] for line, o in zip(lines[1:], objects, strict=True))


def test_dimensions(corpus, capsys):
    assert run("tools/predict.py", corpus / "dimensions.pt", corpus / "audio" / "test000.wav", "--format", "json") == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    (expected,) = predict(load_trained(corpus / "dimensions.pt"), [corpus / "audio" / "test000.wav"])
    assert list(row) == ["file", "dimensions"] and list(row["dimensions"]) == list(DIMENSIONS)
    np.testing.assert_allclose(list(row["dimensions"].values()), expected.values[0], atol=1e-7)


def test_output_is_skipped_when_it_is_whole_and_made_with_the_same_settings(corpus, tmp_path, caplog):
    out = tmp_path / "new" / "p.csv"
    command = ("tools/predict.py", corpus / "classes.pt", corpus / "audio", "--format", "csv", "--output", out)
    assert run(*command) == 0
    first = out.read_bytes()
    out.write_text("kept")
    assert run(*command) == 0 and out.read_text() == "kept"
    assert run(*command, "--overwrite") == 0 and out.read_bytes() == first
    assert run(*command, "--window", "0.5") == 0 and out.read_bytes() != first
    assert run(*command, tmp_path / "nowhere.wav") == 2 and len(out.read_text().splitlines()) == len(first.splitlines())
    assert run(*command, tmp_path / "nowhere.wav") == 2  # not skipped: it is not whole
    assert [p.name for p in out.parent.iterdir()] == ["p.csv"]


def test_files_of_folders(tmp_path, caplog):
    for name in ("b/2.WAV", "b/1.flac", "a.mp3", "b/notes.txt", "b/._1.flac", ".hidden/x.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    caplog.set_level("INFO")
    found = find_files([tmp_path / "b" / "notes.txt", tmp_path, tmp_path / "a.mp3"])
    assert [os.path.relpath(p, tmp_path) for p in found] == ["b/notes.txt", "a.mp3", "b/1.flac", "b/2.WAV"]
    assert "1 .wav" in caplog.text and "1 .flac" in caplog.text and "1 .txt" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        find_files([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{corpus}/hubert.pt", "{corpus}/audio"], "give a checkpoint that emohubert trained"),
        (["/nowhere.pt", "{corpus}/audio"], "no such checkpoint"),
        (["{corpus}/classes.pt", "{corpus}/audio", "--window", "0"], "--window"),
        (["{corpus}/classes.pt", "{corpus}/audio", "--workers", "-1"], "--workers"),
        (["{corpus}/classes.pt", "{corpus}/audio", "--speaker", "folder"], "without speaker normalisation"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(corpus, capsys, arguments, expected):
    assert run("tools/predict.py", *(a.format(corpus=corpus) for a in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]


# --- a new speaker ----------------------------------------------------------------------------------------------------


def test_normalisation_is_by_what_was_heard_so_far(corpus, tmp_path, capsys):
    """The formula by loops, from the average speaker on, and what a speaker's later files are does not matter."""
    checkpoint = write_checkpoint(
        tmp_path / "a.pt", corpus / "hubert.pt", classes=CLASSES, training_speakers=["x"], speaker_normalisation=True
    )
    state, rng = torch.load(checkpoint, weights_only=True), torch.Generator().manual_seed(1)
    state["model"]["normalisation.table"] = torch.rand(2, 2, 48, generator=rng) + torch.tensor([0.0, 0.5])[:, None, None]
    torch.save(state, checkpoint)
    task, model = load_trained(checkpoint)
    split = read_split(corpus / "manifest", "test")
    predictions, vectors = predict_split(task, model, split)
    nobody, _ = predict_split(task, model, replace(split, speakers=None), average=model.normalisation.average)
    np.testing.assert_array_equal(nobody.probabilities, predictions.probabilities)  # not as if all were one speaker
    mean, deviation = model.normalisation.table[:, 0].double().numpy()

    def head(x):
        with torch.no_grad():
            return model.head(torch.from_numpy(x).float()[None])["output"].softmax(1)[0].numpy()

    def rows(files, *options):
        assert run("tools/predict.py", checkpoint, *files, "--format", "json", *options) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [row.get("heard") for row in found], [[*row["probabilities"].values()] for row in found]

    expected = []
    for n in range(1, 13):
        own = vectors[:n].astype(np.float64)
        squares = ((own - own.mean(0)) ** 2).sum(0)
        expected.append(head((own[-1] - (own.sum(0) + 4 * mean) / (n + 4)) / np.sqrt((squares + 4 * deviation**2) / (n + 3))))
    heard, found = rows(test_files(corpus), "--speaker", "all")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert heard == list(range(1, 13)) and rows(test_files(corpus)[:5], "--speaker", "all") == (heard[:5], found[:5])
    heard, found = rows(test_files(corpus))
    np.testing.assert_allclose(found, [head((x - mean) / deviation) for x in vectors], rtol=0, atol=1e-6)
    assert heard == [None] * 12 and np.abs(np.array(found) - expected).max() > 0.01
    for i, path in enumerate(test_files(corpus)[:2]):
        (tmp_path / f"speaker{i}").mkdir()
        shutil.copy(path, tmp_path / f"speaker{i}")
    heard, found = rows([tmp_path / "speaker0", tmp_path / "speaker1"], "--speaker", "folder")
    first = head((vectors[1] - (vectors[1] + 4 * mean) / 5) / deviation)
    np.testing.assert_allclose(found, [expected[0], first], rtol=0, atol=1e-6)
    a, b = test_files(corpus)[:2]
    (tmp_path / "s.csv").write_text(f"path,speaker\n{a},anna\n{b},ben\n{a},\n")
    assert rows([], "--segments", tmp_path / "s.csv", "--speaker", "segments")[0] == [1, 1, 1] and found[1] != rows([b])[1][0]
    _, parts = rows([], "--segments", tmp_path / "s.csv", "--speaker", "segments")
    np.testing.assert_allclose(parts, [expected[0], rows([a])[1][0], first], rtol=0, atol=1e-6)  # a file's parts together


# --- transformers -----------------------------------------------------------------------------------------------------


def test_the_pipeline_of_transformers_says_the_same(corpus, tmp_path, capsys):
    status = run("tools/bench_predict.py", corpus / "audio", "--tiny", "--files", "6", "--out", tmp_path / "bench.json")
    assert status == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["files"] == 6 and figures["spread"] > 0.01
    assert figures["pipeline"]["1"]["max_difference"] < 1e-5
    assert figures["pipeline"]["1"]["ratio"] == pytest.approx(figures["pipeline"]["1"]["seconds"] / figures["ours"])


def test_the_model_in_the_package_predicts_without_a_checkpoint(tmp_path, capsys):
    """Four classes, and how far to trust them; more is known of a person with every recording."""
    rng = np.random.default_rng(0)
    for i in range(3):
        wave = np.cumsum(rng.standard_normal(24_000)) * np.sin(np.arange(24_000) / (900 + 300 * i))
        soundfile.write(tmp_path / f"{i}.wav", 0.5 * wave / np.abs(wave).max(), 16_000)
    found = {}
    for name, options in (("default", ()), ("named", ("ser_small",)), ("person", ("--speaker", "all"))):
        first, rest = (options, ()) if name == "named" else ((), options)
        assert run("tools/predict.py", *first, tmp_path, *rest, "--format", "csv") == 0
        printed = capsys.readouterr()
        assert "chance 25 %" in printed.err
        header, *rows = [line.split(",") for line in printed.out.splitlines()]
        at = [header.index(f"p_{c}") for c in ("angry", "happy", "neutral", "sad")]
        found[name] = np.array([[float(row[i]) for i in at] for row in rows])
    np.testing.assert_allclose(found["default"].sum(1), 1, atol=1e-3)
    np.testing.assert_array_equal(found["default"], found["named"])
    assert (found["person"] != found["default"]).any()
    assert run("tools/predict.py", tmp_path / "none.pt", tmp_path) == 2 and "none.pt" in capsys.readouterr().err
