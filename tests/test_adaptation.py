"""Embeddings of speakers outside the table: the offset that their audio gives, their file, and what of the model may change."""

import json
import shutil

import numpy as np
import pytest
import torch
from finetuning import checkpoint, finetune
from scripts import run

from emohubert.core.errors import InputError
from emohubert.core.files import sha256
from emohubert.corpus.manifest import read_split
from emohubert.data.speaker_vectors import SpeakerVectors
from emohubert.data.speaker_vectors import read as read_vectors
from emohubert.models.speaker_conditioning import AtOutput
from emohubert.speakers.new_speakers import NewSpeakers, adapt, rows_of
from emohubert.tasks.trained import load_trained

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

NEW = ("eve", "fritz")


def renamed(manifest, out, split="test", names=("anna", "ben")):
    """A copy of a manifest in which two of the speakers of a split are called `NEW`."""
    shutil.copytree(manifest, out)
    speakers = (out / f"{split}.spk").read_text()
    for before, after in zip(names, NEW, strict=True):
        speakers = speakers.replace(before, after)
    (out / f"{split}.spk").write_text(speakers)
    return out


@pytest.fixture(scope="module")
def manifest(corpus, tmp_path_factory):
    return renamed(corpus / "manifest", tmp_path_factory.mktemp("renamed") / "manifest")


@pytest.fixture(scope="module")
def finetuned(corpus, tmp_path_factory):
    """A fine-tuned checkpoint whose speakers, at the output, differ: a few updates have moved them by nothing worth the name."""
    folder = tmp_path_factory.mktemp("finetuned")
    options = ("task.target=[arousal]", "optimization.max_epoch=8", "model.speaker_position=output", f"checkpoint.save_dir={folder}")
    finished = finetune(corpus, "regression", *options)
    assert finished.returncode == 0, finished.stdout[-3000:]
    path = folder / "checkpoint_best.pt"
    state = torch.load(path, weights_only=True)
    table = state["model"]["backbone.speaker_conditioning.embedding.weight"]
    table[:] = 0.05 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    torch.save(state, path)
    return path


# --- the closed form --------------------------------------------------------------------------------------------------


def vectors_of(folder):
    """{speaker: pooled vectors} of an embeddings.npz, float64."""
    with np.load(folder / "embeddings.npz") as found:
        speakers, x = found["speakers"], found["embeddings"].astype(np.float64)
    return {s: x[speakers == s] for s in sorted(set(speakers))}


def test_the_offset_brings_the_speakers_mean_to_that_of_the_training_speakers(finetuned, manifest, tmp_path):
    """By the formula, from the pooled vectors that evaluate.py writes; four utterances go half of the way."""
    base, quick = ("tools/evaluate.py", finetuned, manifest), ("--embeddings", "--repeats", "5")
    for split in ("train", "test"):
        assert run(*base, split, tmp_path / split, *quick) == 0
    assert run("tools/adapt_speaker.py", finetuned, manifest, "test", tmp_path / "new.npz") == 0
    assert run(*base, "test", tmp_path / "adapted", *quick, "--speaker-vectors", tmp_path / "new.npz") == 0
    train, before, after = (vectors_of(tmp_path / name) for name in ("train", "test", "adapted"))
    known = set(load_trained(finetuned)[0].speakers)
    target = np.mean([x.mean(0) for s, x in train.items() if s in known], axis=0)
    for name in NEW:
        assert len(before[name]) == 4
        np.testing.assert_allclose(after[name].mean(0), (before[name].mean(0) + target) / 2, atol=1e-5)
        assert np.abs(target - before[name].mean(0)).max() > 0.1
        spread = [x - x.mean(0) for x in (before[name], after[name])]
        np.testing.assert_allclose(*spread, atol=1e-5)  # an offset, and nothing else
    assert all(np.array_equal(before[s], after[s]) for s in before if s not in NEW)


@pytest.mark.parametrize("fc", [False, True])
def test_rows_of_the_table_that_give_an_offset(fc):
    torch.manual_seed(0)
    conditioning = AtOutput(3, 8, fc=fc).double()
    for parameter in conditioning.parameters():
        torch.nn.init.normal_(parameter)
    offsets = np.random.default_rng(0).normal(size=(5, 8))
    with torch.no_grad():
        unknown = conditioning.vectors(torch.tensor([0]))
        conditioning.embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(rows_of(conditioning, offsets)))
        found = conditioning.vectors(torch.arange(len(offsets)))
    np.testing.assert_allclose((found - unknown).numpy(), offsets, atol=1e-9)


def test_only_known_training_speakers_and_new_speakers_count(finetuned, manifest):
    train, split = read_split(manifest, "train"), read_split(manifest, "test")
    new = adapt(finetuned, train, split)
    assert new.speakers.ids == list(NEW) and new.speakers.counts.tolist() == [4, 4] and new.checkpoint == sha256(finetuned)
    split.speakers = ["<unk>" if s == "fritz" else s for s in split.speakers]
    alone = adapt(finetuned, train, split)
    assert alone.speakers.ids == ["eve"]
    np.testing.assert_array_equal(alone.speakers.vectors[0], new.speakers.vectors[0])
    train.speakers = ["<unk>"] * len(train)
    with pytest.raises(InputError, match="none of its speakers is in the table"):
        adapt(finetuned, train, split)


# --- files ------------------------------------------------------------------------------------------------------------


def some_speakers(checkpoint, ids=("x", "y"), width=32):
    rng = np.random.default_rng(0)
    vectors = SpeakerVectors(list(ids), rng.normal(size=(len(ids), width)), np.arange(1, len(ids) + 1))
    return NewSpeakers(vectors, sha256(checkpoint))


def test_file_holds_plain_arrays_and_comes_back(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"1")
    new = some_speakers(tmp_path / "model.pt")
    new.write(tmp_path / "a.npz")
    new.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = NewSpeakers.read(tmp_path / "a.npz", tmp_path / "model.pt")
    assert (back.checkpoint, back.speakers.ids) == (new.checkpoint, ["x", "y"])
    np.testing.assert_array_equal(back.speakers.vectors, new.speakers.vectors)
    np.testing.assert_array_equal(read_vectors(tmp_path / "a.npz").counts, [1, 2])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert {archive[name].dtype.kind for name in archive.files} <= set("Ufi")


@pytest.mark.parametrize(("name", "value"), [("checkpoint", "another"), ("checkpoint", None), ("ids", object())])
def test_other_files_are_refused(tmp_path, name, value):
    (tmp_path / "model.pt").write_bytes(b"1")
    some_speakers(tmp_path / "model.pt").write(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays[name] = np.array(value)
    if value is None:
        del arrays[name]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InputError, match="b.npz"):
        NewSpeakers.read(tmp_path / "b.npz", tmp_path / "model.pt")


# --- evaluation -------------------------------------------------------------------------------------------------------


def columns(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_predictions_change_for_the_new_speakers_and_for_no_other(finetuned, manifest, tmp_path):
    some_speakers(finetuned, ["eve", "dan"]).write(tmp_path / "new.npz")  # dan has an embedding already, and keeps it
    base = ("tools/evaluate.py", finetuned, manifest, "test")
    assert run(*base, tmp_path / "before", "--repeats", "20") == 0
    assert run(*base, tmp_path / "after", "--repeats", "20", "--speaker-vectors", tmp_path / "new.npz") == 0
    before, after = (columns(tmp_path / name / "predictions.tsv") for name in ("before", "after"))
    changed = {a[1] for a, b in zip(before, after, strict=True) if a != b}
    assert changed == {"eve"}
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("before", "after")]
    assert metrics[0]["setting"] == "seen (2 speakers), inductive (2 speakers)"
    assert metrics[1]["setting"] == "seen (2 speakers), adapted (1 speakers), inductive (1 speakers)"
    assert metrics[0]["speaker_embedding"] == metrics[1]["speaker_embedding"] == "speaker embedding at the output"
    assert metrics[1]["speaker_vectors"] == str(tmp_path / "new.npz") and "speaker_vectors" not in metrics[0]


def test_a_row_of_the_table_as_a_new_speaker_is_that_speaker(finetuned, manifest, tmp_path):
    """Eve's utterances are Anna's: with Anna's embedding they are predicted as under Anna's name, bit by bit."""
    task, model = load_trained(finetuned)
    row = model.backbone.speaker_conditioning.embedding.weight[1 + task.speakers.index("anna")].detach().numpy()
    NewSpeakers(SpeakerVectors(["eve"], row[None].astype(np.float64), np.array([1])), sha256(finetuned)).write(tmp_path / "anna.npz")
    original = tmp_path / "original"
    shutil.copytree(manifest, original)
    (original / "test.spk").write_text((manifest / "test.spk").read_text().replace("eve", "anna"))
    assert run("tools/evaluate.py", finetuned, original, "test", tmp_path / "a", "--repeats", "20") == 0
    assert (
        run("tools/evaluate.py", finetuned, manifest, "test", tmp_path / "b", "--repeats", "20", "--speaker-vectors", tmp_path / "anna.npz")
        == 0
    )
    a, b = (columns(tmp_path / name / "predictions.tsv") for name in "ab")
    assert [row[2:] for row in a] == [row[2:] for row in b]


def test_files_are_predicted_for_a_new_speaker_as_splits_are(finetuned, manifest, tmp_path, capsys):
    some_speakers(finetuned, ["eve"]).write(tmp_path / "new.npz")
    new = ("--speaker-vectors", tmp_path / "new.npz")
    assert run("tools/evaluate.py", finetuned, manifest, "test", tmp_path / "o", "--repeats", "20", *new) == 0
    split = read_split(manifest, "test")
    expected = {row[0]: row[3] for row in columns(tmp_path / "o" / "predictions.tsv") if row[1] == "eve"}
    paths = [split.audio(i) for i, name in enumerate(split.ids) if name in expected]
    command = ("tools/predict.py", finetuned, *paths, "--format", "csv")
    for options, equal in (((*new, "--speaker-id", "eve"), True), ((), False), (("--speaker-id", "anna"), False)):
        capsys.readouterr()
        assert run(*command, *options) == 0
        found = [float(line.split(",")[1]) for line in capsys.readouterr().out.splitlines()[1:]]
        assert len(found) == len(expected) == 4
        assert np.allclose(found, [float(v) for v in expected.values()], atol=1e-6) == equal
    assert run(*command, "--speaker-id", "eve") == 2 and "no embedding of this speaker" in capsys.readouterr().err
    assert run(*command, *new) == 2 and "--speaker-id" in capsys.readouterr().err


def test_speaker_normalisation_at_evaluation(finetuned, corpus, manifest, tmp_path, capsys):
    """The head's outputs for pooled vectors that are normalised here, speaker by speaker."""
    base, quick = ("tools/evaluate.py", finetuned, manifest), ("--embeddings", "--repeats", "5")
    for split in ("train", "test"):
        assert run(*base, split, tmp_path / split, *quick) == 0
    known = tmp_path / "train" / "embeddings.npz"
    assert run(*base, "test", tmp_path / "normalised", *quick, "--normalise-speakers", known) == 0
    (train, who), (x, speakers) = (
        (a["embeddings"], a["speakers"]) for a in (np.load(tmp_path / s / "embeddings.npz") for s in ("train", "test"))
    )
    within = sum(train[who == s].var(0) * (who == s).sum() for s in set(who)) / (len(who) - len(set(who)))
    centre, expected = np.mean([train[who == s].mean(0) for s in set(who)], axis=0), np.zeros_like(x)
    for s in set(speakers):
        own = x[speakers == s]
        spread = (own.var(0) * len(own) + 4 * within) / (len(own) + 3)
        expected[speakers == s] = (own - (own.sum(0) + 4 * centre) / (len(own) + 4)) * np.sqrt(within / spread) + centre
    _, model = load_trained(finetuned)
    with torch.no_grad():
        outputs = model.eval().head(torch.from_numpy(expected))["output"][:, 0]
    rows = columns(tmp_path / "normalised" / "predictions.tsv")
    np.testing.assert_allclose([float(row[3]) for row in rows[1:]], outputs, atol=1e-5)
    assert rows != columns(tmp_path / "test" / "predictions.tsv")
    metrics = json.loads((tmp_path / "normalised" / "metrics.json").read_text())
    assert metrics["setting"] == "seen and normalised (2 speakers), normalised by unlabelled audio (2 speakers)"
    raw = [tmp_path / name / "embeddings.npz" for name in ("test", "normalised")]
    assert raw[0].read_bytes() == raw[1].read_bytes()
    assert (tmp_path / "normalised" / "normalisation.seen").is_file()
    np.savez(tmp_path / "narrow.npz", ids=np.array(["x", "y"]), speakers=np.array(["a", "a"]), embeddings=np.ones((2, 3)))
    assert run(*base, "test", tmp_path / "o", "--normalise-speakers", tmp_path / "narrow.npz") == 2
    assert "training embeddings of width 3" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(finetuned, corpus, manifest, tmp_path, capsys):
    def message(*command):
        assert run(*command) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    some_speakers(finetuned, width=31).write(tmp_path / "narrow.npz")
    found = message("tools/evaluate.py", finetuned, manifest, "test", tmp_path / "o", "--speaker-vectors", tmp_path / "narrow.npz")
    assert found.startswith("error: ") and not (tmp_path / "o" / "metrics.json").exists()

    def adapting(model, folder=manifest, *options):
        return message("tools/adapt_speaker.py", model, folder, "test", tmp_path / "o.npz", *options)

    assert "is a pretrained model" in adapting(checkpoint(corpus))
    assert "no such checkpoint" in adapting(tmp_path / "none.pt")
    assert "every speaker has an embedding" in adapting(finetuned, corpus / "manifest")
    assert "no such file" in adapting(finetuned, manifest, "--train-split", tmp_path / "train")
    at_input = tmp_path / "input.pt"
    state = torch.load(finetuned, weights_only=True)
    state["cfg"]["model"]["backbone"]["speaker_position"] = "input"
    torch.save(state, at_input)
    assert "only an embedding at the output" in adapting(at_input)
    assert not (tmp_path / "o.npz").exists()


def garbage(manifest, out, seed=0):
    """A copy of a manifest whose test labels are wrong: classes dealt out anew, and dimensions beyond all scales."""
    shutil.copytree(manifest, out)
    rng = np.random.default_rng(seed)
    emotions = (manifest / "test.emo").read_text().split()
    (out / "test.emo").write_text("".join(f"{e}\n" for e in rng.permutation(emotions)))
    header, *rows = (manifest / "test.dim").read_text().splitlines()
    rows = ["\t".join(f"{x:.3f}" for x in rng.normal(0, 1e4, len(row.split("\t")))) for row in rows]
    (out / "test.dim").write_text("\n".join([header, *rows]) + "\n")
    return out


def test_no_label_of_a_test_utterance_is_read(finetuned, manifest, tmp_path):
    """Embeddings, predictions, pooled vectors and calibration are the same, bit by bit, with test labels that are garbage."""
    wrong = garbage(manifest, tmp_path / "garbage")
    options = ("--embeddings", "--repeats", "20")
    assert run("tools/evaluate.py", finetuned, manifest, "train", tmp_path / "train", *options) == 0
    for name, folder in (("right", manifest), ("wrong", wrong)):
        out = tmp_path / name
        assert run("tools/adapt_speaker.py", finetuned, folder, "test", out / "adapted.npz") == 0
        adapted = ("--speaker-vectors", out / "adapted.npz")
        assert run("tools/evaluate.py", finetuned, folder, "test", out / "test", *options, *adapted) == 0
        learnt = ("--train-manifest", folder / "train", "--train-embeddings", tmp_path / "train" / "embeddings.npz")
        test = ("--test-embeddings", out / "test" / "embeddings.npz", "--predictions", out / "test" / "predictions.tsv")
        shown = ("--test-manifest", folder / "test", "--bootstrap", "20")
        for calibrated in (("plain", "--match", "mean", "--always"), ("careful",)):
            assert run("tools/calibrate.py", *learnt, *test, out / calibrated[0], *calibrated[1:], *shown) == 0
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for name in ("adapted.npz", "test/embeddings.npz"):
        assert (right / name).read_bytes() == (wrong / name).read_bytes(), name
    for name in ("test", "plain", "careful"):
        a, b = (columns(folder / name / "predictions.tsv") for folder in (right, wrong))
        at = a[0].index("arousal")
        assert [row[:at] + row[at + 1 :] for row in a] == [row[:at] + row[at + 1 :] for row in b], name
        assert a[1:] != b[1:]  # the references are the garbage


def test_a_second_run_does_nothing(finetuned, manifest, tmp_path, capsys):
    command = ("tools/adapt_speaker.py", finetuned, manifest, "test", tmp_path / "o.npz")
    assert run(*command) == 0
    first, shown = (tmp_path / "o.npz").stat().st_mtime_ns, capsys.readouterr().out
    assert "embeddings of 2 speakers from 8 utterances" in shown
    assert run(*command) == 0
    assert (tmp_path / "o.npz").stat().st_mtime_ns == first and "already there" in capsys.readouterr().err
    content = (tmp_path / "o.npz").read_bytes()
    assert run(*command, "--overwrite") == 0
    assert (tmp_path / "o.npz").stat().st_mtime_ns > first and (tmp_path / "o.npz").read_bytes() == content
