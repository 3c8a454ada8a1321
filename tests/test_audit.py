"""The audit of a run: records tell exactly what was seen, planted leaks are found, a clean run is clean."""

import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import make_corpus
from scripts import run
from training import MICRO, train

from emohubert.core.errors import InputError
from emohubert.core.files import read_json
from emohubert.corpus.manifest import Utterance, read_split, write_splits
from emohubert.provenance import audit, records
from emohubert.report import page as report

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

SESSIONS = {"anna": "s1", "ben": "s1", "cleo": "s2", "dan": "s3"}
TRAIN, VALID, TEST = ("anna", "ben"), ("cleo",), ("dan",)
LABELS = "labels/L1/km4"


def utterances(corpus, speakers, first=0, last=None):
    """Some of the utterances of a corpus by their speakers."""
    found = []
    for name in ("train", "valid", "test"):
        split = read_split(corpus / "manifest", name)
        for i, speaker in enumerate(split.speakers):
            meta = {"session": SESSIONS[speaker]}
            found.append(Utterance(split.paths[i], int(split.n_samples[i]), speaker, split.emotions[i], {}, meta))
    return [u for s in speakers for u in [u for u in found if u.speaker == s][first:last]]


def unlabelled(folder, corpus, *extra):
    """A manifest directory for pretraining: the training speakers' audio, and more."""
    listed = [Utterance(u.path, u.n_samples, u.speaker, meta=u.meta) for u in (*utterances(corpus, TRAIN, 0, 8), *extra)]
    write_splits(folder, corpus / "audio", {"train": listed})
    return folder


def pretrain(folder, manifest, labels, updates, *more):
    options = [f"task.data={manifest}", f"task.label_dir={labels}", f"checkpoint.save_dir={folder}", "task.speakers=null"]
    done = train("hubert_tiny", *MICRO, *options, f"optimization.max_update={updates}", "dataset.disable_validation=true", *more)
    assert done.returncode == 0, done.stdout[-3000:]


def finetune(folder, manifest, init, *more):
    options = [f"task.data={manifest}", f"model.init_from={init}", f"checkpoint.save_dir={folder}", "optimization.max_epoch=1"]
    done = train("ser_classification_tiny", *options, "model.mask_channel_length=4", "model.freeze=none", *more)
    assert done.returncode == 0, done.stdout[-3000:]


def label(folder, manifest, checkpoint, out="labels"):
    options = ["--checkpoint", checkpoint, "--layers", 1, "--clusters", 4, "--overwrite"]
    assert run("tools/make_labels.py", manifest, folder / out, *options) == 0


def evaluate(checkpoint, manifest, split, out, *more):
    assert run("tools/evaluate.py", checkpoint, manifest, split, out, "--repeats", 2, *more) == 0


def score(out, split):
    """An evaluation of the classifier as far as the audit looks at it, without the work."""
    folder = out / "classifier" / split
    folder.mkdir()
    shutil.copy(out / "classifier" / "test" / "metrics.json", folder)
    listed = read_split(out / "manifest", split)
    records.write_evaluation(folder, out / "classifier" / "checkpoint_best.pt", listed, listed.ids)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """(corpus, run): MFCC labels → HuBERT → labels → continued pretraining → fine-tuning → test, speakers and sessions apart."""
    corpus = tmp_path_factory.mktemp("audit")
    make_corpus(corpus, seconds=(0.3, 0.6), train=32, valid=8, test=8)
    out = corpus / "run"
    splits = {
        "train": utterances(corpus, TRAIN, 0, 8),
        "valid": utterances(corpus, VALID),
        "test": utterances(corpus, TEST, 0, 8),
        "test_seen": utterances(corpus, TRAIN, 8),
    }
    write_splits(out / "manifest", corpus / "audio", splits)
    unlabelled(out / "unlabelled", corpus)
    assert run("tools/make_labels.py", out / "unlabelled", out / "mfcc_labels", "--mfcc", "--clusters", 8) == 0
    pretrain(out / "hubert", out / "unlabelled", out / "mfcc_labels" / "mfcc" / "km8", 2)
    label(out, out / "unlabelled", out / "hubert" / "checkpoint_last.pt")
    init = f"model.init_from={out}/hubert/checkpoint_last.pt"
    pretrain(out / "tapt", out / "unlabelled", out / LABELS, 2, init)
    finetune(out / "classifier", out / "manifest", out / "tapt" / "checkpoint_last.pt")
    evaluate(out / "classifier" / "checkpoint_best.pt", out / "manifest", "test", out / "classifier" / "test")
    return corpus, out


@pytest.fixture
def planted(clean, tmp_path):
    """(corpus, run): a copy of the clean run that records itself as the original."""
    corpus, original = clean
    out = tmp_path / "run"
    shutil.copytree(original, out)
    for record in out.rglob("*.seen"):
        text = record.read_text().replace(str(original), str(out))
        record.write_text(text)
        if "-" in record.stem:  # the fingerprint of what it holds
            record.rename(record.with_name(f"{record.stem.rpartition('-')[0]}-{sha256(text.encode()).hexdigest()[:12]}.seen"))
    return corpus, out


def leaks(out, *options, status=2):
    """{(role, kind): shared} of all leaks that the program finds."""
    assert run("tools/audit_run.py", out, *options) == status
    content = read_json(out / "audit.json")
    assert content["ok"] == (status == 0)
    return {(leak["role"], leak["kind"]): leak["shared"] for leak in content["leaks"]}


def listed(path):
    record = records.read(path)
    u = record.utterances
    return record.role, list(zip(u.paths, u.n_samples, u.speakers, u.sessions, strict=True))


def as_rows(chosen):
    return [(u.path, u.n_samples, u.speaker, u.meta["session"]) for u in chosen]


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_are_what_was_seen(clean):
    corpus, out = clean
    heard = as_rows(utterances(corpus, TRAIN, 0, 8))
    found = {p.name.rpartition("-")[0]: listed(p) for p in (out / "classifier").glob("*.seen")}
    assert found == {"train": ("train", heard), "valid": ("selection", as_rows(utterances(corpus, VALID)))}
    for folder in ("hubert", "tapt"):
        assert [listed(p) for p in (out / folder).glob("*.seen")] == [("pretraining", heard)]
    for centroids in (out / "mfcc_labels" / "mfcc" / "km8", out / LABELS):
        role, rows = listed(centroids / "kmeans.npz.seen")
        assert role == "clustering" and sorted(rows) == sorted(heard)
    assert listed(out / "classifier" / "test" / "predictions.seen") == ("evaluation", as_rows(utterances(corpus, TEST, 0, 8)))
    training = records.read(next((out / "classifier").glob("train-*.seen")))
    assert training.facts["labels"] == ["emo"] and training.utterances.root == str((corpus / "audio").resolve())
    assert [s["path"] for s in training.sources] == [str(out / "tapt" / "checkpoint_last.pt")]


def test_a_record_is_written_once(clean, tmp_path):
    split = read_split(clean[1] / "manifest", "train")
    first = records.write(tmp_path, "train", split, labels=["emo"])
    before = first.stat().st_ino
    assert records.write(tmp_path, "train", split, labels=["emo"]) == first and first.stat().st_ino == before
    assert records.write(tmp_path, "train", split, [3, 1], labels=["emo"]) != first
    assert len(list(tmp_path.iterdir())) == 2
    assert records.read(first).utterances.paths == split.paths


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[:-1],
        lambda t: t.replace("\t", " ", 1),
        lambda t: t.rpartition("train")[0],
        lambda t: "{}\n",
        lambda t: "",
        lambda t: "[1]\n",
    ],
)
def test_a_damaged_record_is_named(clean, tmp_path, damage):
    path = records.write(tmp_path / "x.seen", "train", read_split(clean[1] / "manifest", "train"))
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=r"x\.seen: not a record"):
        records.read(path)


def test_stages_record_the_same_fit(clean, tmp_path):
    """Shards, fitted in stages: the recordings of the fit, and the way back from the labels; foreign shards are unknown."""
    _, out = clean
    manifest, features = out / "unlabelled", tmp_path / "features"
    for rank in range(2):
        checkpoint = ["--checkpoint", out / "hubert" / "checkpoint_last.pt", "--layers", 1]
        assert run("tools/dump_features.py", manifest, "train", features, *checkpoint, "--nshard", 2, "--rank", rank) == 0
    centroids = tmp_path / "km" / "k4.npz"
    learn = ["tools/learn_kmeans.py", features / "L1", "train", 2, centroids, "--clusters", 4]
    assert run(*learn) == 0
    assert run("tools/dump_labels.py", features / "L1", "train", centroids, 2, 0, tmp_path / "labels") == 0
    made, direct = records.read(records.beside(centroids)), records.read(out / LABELS / "kmeans.npz.seen")
    assert sorted(made.utterances.paths) == sorted(direct.utterances.paths) and made.utterances.root == direct.utterances.root
    assert made.sources == direct.sources and made.sources[0]["path"] == str(out / "hubert" / "checkpoint_last.pt")
    (labels,) = (tmp_path / "labels").glob("*.seen")
    assert [s["kind"] for s in records.read(labels).sources] == ["centroids", "checkpoint"]
    assert records.read(labels).sources[0]["path"] == str(centroids)
    records.beside(features / "L1" / "train_1_2.npy").unlink()
    assert run(*learn, "--overwrite") == 0
    assert records.read(records.beside(centroids)).facts["unknown"] == [str(features / "L1" / "train_1_2.npy")]


# --- what is clean ----------------------------------------------------------------------------------------------------


def test_a_clean_run_is_clean(clean, capsys):
    _, out = clean
    assert leaks(out, status=0) == {}
    assert capsys.readouterr().out.splitlines()[-1] == "no leaks"
    content = read_json(out / "audit.json")
    (evaluation,) = content["evaluations"]
    assert evaluation["name"] == "classifier/test" and evaluation["utterances"] == 8 and evaluation["test"]
    met = {(m["role"], Path(m["record"]).parent.as_posix(), m["utterances"]) for m in evaluation["met"]}
    assert met == {
        ("train", "classifier", 16),
        ("selection", "classifier", len(read_split(out / "manifest", "valid"))),
        ("pretraining", "tapt", 16),
        ("pretraining", "hubert", 16),
        ("clustering", LABELS, 16),
        ("clustering", "mfcc_labels/mfcc/km8", 16),
    }
    assert content["unknown"] == [] and content["problems"] == []
    way = next(m["via"] for m in evaluation["met"] if m["record"].startswith("mfcc_labels"))
    assert way[0] == "classifier/checkpoint_best.pt" and way[-1] == "mfcc_labels/mfcc/km8"


def test_a_run_that_was_moved_is_still_followed(clean, tmp_path):
    corpus, out = clean
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    try:
        assert leaks(moved, status=0) == {}
        content = read_json(moved / "audit.json")
        assert len(content["evaluations"][0]["met"]) == 6 and content["unknown"] == []
    finally:
        shutil.move(moved, out)


def test_scores_on_training_and_validation_data_are_no_test(planted, capsys):
    _, out = planted
    for split in ("train", "valid"):
        score(out, split)
    assert leaks(out, status=0) == {}
    assert capsys.readouterr().out.count("not a test") == 2


# --- planted leaks ----------------------------------------------------------------------------------------------------


def test_a_test_utterance_in_the_fit_of_the_centroids(planted, capsys):
    corpus, out = planted
    (one,) = utterances(corpus, TEST, 3, 4)
    label(out, unlabelled(out / "more", corpus, one), out / "hubert" / "checkpoint_last.pt")
    found = leaks(out)
    path = str((corpus / "audio").resolve() / one.path)
    assert found == {("clustering", "audio"): [path], ("clustering", "speaker"): ["dan"], ("clustering", "session"): ["s3"]}
    error = capsys.readouterr().err
    assert f"classifier/test: leak of audio: 1 of 8 recordings of test were in the fit of centroids or acoustic pieces ({path})" in error
    assert f"see {LABELS}/kmeans.npz.seen (via classifier/checkpoint_best.pt ← tapt/checkpoint_last.pt ← {LABELS})" in error
    assert error.splitlines()[-1].startswith("error: ") and error.splitlines()[-1].endswith("(3 problems in all)")
    assert leaks(out, "--allow", "transductive", status=0) == found
    assert leaks(out, "--allow", "speaker,session:clustering") == found
    assert leaks(out, "--allow", "speaker,session:clustering", "--allow", "audio:test", status=0) == found
    assert leaks(out, "--allow", "adapted,speaker:pretraining,audio:train") == found


def test_a_test_speaker_in_pretraining(planted):
    """Training that goes on with the same data leaves one record, and with other data it does not go on."""
    corpus, out = planted
    manifest, init = out / "unlabelled", f"model.init_from={out}/hubert/checkpoint_last.pt"
    before = {p: p.read_bytes() for p in (out / "tapt").glob("*.seen")}
    pretrain(out / "tapt", manifest, out / LABELS, 3, init)
    assert {p: p.read_bytes() for p in (out / "tapt").glob("*.seen")} == before and len(before) == 1
    (other,) = utterances(corpus, TEST, 8, 9)  # of the test speaker, but not in the test split
    unlabelled(manifest, corpus, other)
    label(out, manifest, out / "hubert" / "checkpoint_last.pt")
    with pytest.raises(AssertionError, match="go on"):
        pretrain(out / "tapt", manifest, out / LABELS, 4, init)
    shutil.rmtree(out / "tapt")
    pretrain(out / "tapt", manifest, out / LABELS, 4, init)
    found = {key: shared for key, shared in leaks(out).items() if key[0] == "pretraining"}
    assert found == {("pretraining", "speaker"): ["dan"], ("pretraining", "session"): ["s3"]}
    leaks(out, "--allow", "transductive", status=0)


def test_selection_on_the_test_split_is_never_allowed(planted):
    _, out = planted
    shutil.rmtree(out / "classifier")
    finetune(out / "chosen", out / "manifest", out / "tapt" / "checkpoint_last.pt", "dataset.valid_subset=test")
    evaluate(out / "chosen" / "checkpoint_last.pt", out / "manifest", "test", out / "chosen" / "last")
    assert leaks(out, status=0) == {}  # validated on, but not chosen by
    watched = [m for m in read_json(out / "audit.json")["evaluations"][0]["met"] if m["role"] == "watched"]
    assert [m["shared"]["audio"] for m in watched] == [8]
    evaluate(out / "chosen" / "checkpoint_best.pt", out / "manifest", "test", out / "chosen" / "test")
    found = leaks(out)
    assert {key: len(shared) for key, shared in found.items()} == {
        ("selection", "audio"): 8,
        ("selection", "speaker"): 1,
        ("selection", "session"): 1,
    }
    assert leaks(out, "--allow", "audio,speaker,session,transductive,unknown") == found
    assert run("tools/audit_run.py", out, "--allow", "audio:selection") == 2
    (record,) = (out / "chosen").glob("test-*.seen")  # a training that validation can stop was chosen by it, the last one too
    record.write_text(record.read_text().replace('"validation_decides_when_to_stop": false', '"validation_decides_when_to_stop": true'))
    leaks(out)
    assert {leak["evaluation"] for leak in read_json(out / "audit.json")["leaks"]} == {"chosen/last", "chosen/test"}


def test_the_same_audio_under_two_names(planted):
    """A FLAC copy with another speaker's name; other audio of the same length is no copy."""
    corpus, out = planted
    (one,) = utterances(corpus, TEST, 2, 3)
    samples, rate = soundfile.read(corpus / "audio" / one.path, dtype="int16")
    soundfile.write(corpus / "audio" / "renamed.flac", samples, rate)
    soundfile.write(corpus / "audio" / "different.wav", np.roll(samples, 1), rate)
    extra = [Utterance(name, one.n_samples, "anna", meta={"session": "s1"}) for name in ("different.wav", "renamed.flac")]
    label(out, unlabelled(out / "more", corpus, *extra), out / "hubert" / "checkpoint_last.pt")
    audio = (corpus / "audio").resolve()
    assert leaks(out) == {("clustering", "audio"): [f"{audio / one.path} = {audio / 'renamed.flac'}"]}
    assert leaks(out, "--names-only", status=0) == {}


def test_audio_that_is_not_here_is_compared_by_name(planted, tmp_path):
    """A list made on another machine: another root, the same names; the note says that nothing was decoded."""
    corpus, out = planted
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(corpus / "audio", elsewhere)
    (one,) = utterances(corpus, TEST, 0, 1)
    heard = [Utterance(u.path, u.n_samples, u.speaker, meta=u.meta) for u in (*utterances(corpus, TRAIN, 0, 8), one)]
    write_splits(out / "more", elsewhere, {"train": heard})
    label(out, out / "more", out / "hubert" / "checkpoint_last.pt")
    both = f"{(corpus / 'audio').resolve() / one.path} = {elsewhere.resolve() / one.path}"
    for note in (False, True):
        assert leaks(out, "--allow", "speaker,session")["clustering", "audio"] == [both]
        assert any("cannot be read" in n for n in read_json(out / "audit.json")["notes"]) == note
        shutil.rmtree(elsewhere, ignore_errors=True)


def test_seen_speakers_are_allowed_by_role_or_split(planted):
    _, out = planted
    score(out, "test_seen")
    found = leaks(out)
    assert {key for key in found if key[0] == "train"} == {("train", "speaker"), ("train", "session")}
    assert found["train", "speaker"] == ["anna", "ben"]
    leaks(out, "--allow", "transductive")
    leaks(out, "--allow", "transductive,speaker:train,session:train", status=0)
    leaks(out, "--allow", "speaker:test_seen", "--allow", "session:test_seen", status=0)
    leaks(out, "--allow", "speaker:test_other,session:test_other")


def test_calibration_is_followed_to_the_predictions(planted):
    _, out = planted
    results, manifest = out / "classifier", out / "manifest"
    for split in ("train", "test"):
        evaluate(results / "checkpoint_best.pt", manifest, split, results / split, "--embeddings")
    files = ["--test-embeddings", results / "test" / "embeddings.npz", "--predictions", results / "test" / "predictions.tsv"]
    calibrate = ["--bootstrap", 2, "--top-k", 1]
    train_files = ["--train-manifest", manifest / "train", "--train-embeddings", results / "train" / "embeddings.npz"]
    assert run("tools/calibrate.py", out / "calibrated", *train_files, *files, *calibrate) == 0
    assert {role for role, _ in leaks(out)} == {"adaptation"}, "the test speakers' own audio calibrates them"
    leaks(out, "--allow", "transductive")
    leaks(out, "--allow", "adapted", status=0)
    calibrated = next(e for e in read_json(out / "audit.json")["evaluations"] if e["name"] == "calibrated")
    assert (calibrated["split"], calibrated["utterances"], calibrated["test"]) == ("test", 8, True)
    assert {m["role"] for m in calibrated["met"]} == {"train", "calibration", "adaptation", "pretraining", "clustering", "selection"}
    own = ["--train-manifest", manifest / "test", "--train-embeddings", results / "test" / "embeddings.npz"]
    assert run("tools/calibrate.py", out / "calibrated", *own, *files, *calibrate) == 0
    assert {(r, k): len(s) for (r, k), s in leaks(out).items() if r != "adaptation"} == {
        ("calibration", k): n for k, n in zip(audit.LEAKS, (1, 1, 8), strict=True)
    }


def test_adapted_speakers_are_allowed_by_name(planted):
    """Embeddings of new speakers, made from the test audio: the evaluation that uses them says so."""
    _, out = planted
    split, checkpoint = read_split(out / "manifest", "test"), out / "classifier" / "checkpoint_best.pt"
    records.write_adaptation(out / "adapted.npz", out / "tapt" / "checkpoint_last.pt", split)
    records.write_evaluation(out / "classifier" / "test", checkpoint, split, split.ids, out / "adapted.npz")
    assert {role for role, _ in leaks(out)} == {"adaptation"}
    leaks(out, "--allow", "transductive")
    leaks(out, "--allow", "adapted", status=0)


# --- what is not known ------------------------------------------------------------------------------------------------


def test_missing_records_within_the_run_are_problems(planted, capsys):
    _, out = planted
    for record in (out / "tapt").glob("*.seen"):
        record.unlink()
    leaks(out)
    assert f"error: {out}/tapt/checkpoint_last.pt: checkpoint without a record" in capsys.readouterr().err
    leaks(out, "--allow", "unknown", status=0)
    assert "unknown: " in capsys.readouterr().out
    (out / "classifier" / "test" / "predictions.seen").unlink()
    leaks(out)
    assert f"{out}/classifier/test: evaluation without a record" in capsys.readouterr().err


def test_labels_and_predictions_without_their_records_are_problems(planted, capsys):
    corpus, out = planted
    (out / LABELS / "kmeans.npz.seen").unlink()
    leaks(out)
    assert f"{out}/{LABELS}: folder of frame labels without a record" in capsys.readouterr().err
    (out / LABELS / "kmeans.npz.seen").write_bytes((out / "mfcc_labels/mfcc/km8/kmeans.npz.seen").read_bytes())
    leaks(out, status=0)
    predictions = out / "classifier" / "test" / "predictions.tsv"
    lines = predictions.read_text().splitlines()
    for wrong in (lines[:-1], [lines[0], *(line.replace("\tdan\t", "\tben\t") for line in lines[1:])]):
        predictions.write_text("\n".join(wrong) + "\n")
        leaks(out)
        assert "predictions.tsv: not the utterances that predictions.seen lists" in capsys.readouterr().err


def test_what_was_made_elsewhere_is_named(planted, tmp_path, capsys):
    _, out = planted
    elsewhere = tmp_path / "official"
    shutil.move(out / "hubert", elsewhere)
    for record in elsewhere.glob("*.seen"):
        record.unlink()
    for record in out.rglob("*.seen"):
        record.write_text(record.read_text().replace(f"{out}/hubert/", f"{elsewhere}/"))
    leaks(out, status=0)
    assert f"unknown: {elsewhere}/checkpoint_last.pt: checkpoint without a record" in capsys.readouterr().out
    assert len(read_json(out / "audit.json")["unknown"]) == 1


def test_given_centroids_lead_to_their_own_record(planted, tmp_path):
    """--centroids FILE: what that file was fitted on; without its record, it is named."""
    corpus, out = planted
    checkpoint = out / "hubert" / "checkpoint_last.pt"
    label(tmp_path, unlabelled(tmp_path / "all", corpus, *utterances(corpus, TEST, 0, 1)), checkpoint, "fitted")
    shutil.rmtree(out / "labels")
    given = tmp_path / "fitted" / "L1" / "km4" / "kmeans.npz"
    options = ["--checkpoint", checkpoint, "--layers", 1, "--centroids", given]
    assert run("tools/make_labels.py", out / "unlabelled", out / "labels", *options) == 0
    assert ("clustering", "audio") in leaks(out)
    records.beside(given).unlink()
    leaks(out, status=0)
    (unknown,) = read_json(out / "audit.json")["unknown"]
    assert unknown.startswith(f"{given}: file of centroids without a record")


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", ["everything", "speaker:", "speaker:everywhere", "transductive:test", "audio:selection", ""])
def test_unknown_names_are_not_allowed(tmp_path, allow, capsys):
    assert run("tools/audit_run.py", tmp_path, "--allow", allow) == 2
    assert "error: argument --allow" in capsys.readouterr().err


def test_no_run_and_no_evaluation(tmp_path, capsys):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no evaluation")):
        assert run("tools/audit_run.py", folder) == 2
        assert message in capsys.readouterr().err


def test_pooled_predictions_are_those_of_other_evaluations(planted):
    _, out = planted
    (out / "pooled").mkdir()
    (out / "pooled" / "metrics.json").write_text('{"pooled": ["classifier/test"]}')
    assert leaks(out, status=0) == {}
    (out / "pooled" / "metrics.json").write_text("{}")
    leaks(out)


def test_the_report_shows_the_verdict(planted):
    corpus, out = planted
    leaks(out, status=0)
    report.write(out)
    assert "Audit of the run" in (page := (out / "report.html").read_text()) and "leak of audio" not in page
    label(out, unlabelled(out / "more", corpus, *utterances(corpus, TEST, 3, 4)), out / "hubert" / "checkpoint_last.pt")
    leaks(out)
    report.write(out)
    page = (out / "report.html").read_text()
    assert "leak of audio: 1 of 8 recordings of test" in page
    leaks(out, "--allow", "transductive", status=0)
    report.write(out)
    assert "Audit, allowed by the user: audio of the evaluation in clustering, in " in (out / "report.html").read_text()
