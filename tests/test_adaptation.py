"""Speakers outside the table: averages of similar ones, embeddings fitted to their audio, and what of the model may change."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from corpus import LABELS
from finetuning import checkpoint, finetune
from scipy.optimize import minimize
from scripts import run
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn import functional as F
from training import train

from emohubert.core.errors import InputError
from emohubert.corpus.audio import SAMPLE_RATE, n_frames, read
from emohubert.corpus.frame_labels import NO_LABEL, read_frame_labels
from emohubert.corpus.manifest import read_split
from emohubert.data.frame_labelled import FrameLabelledSpeech
from emohubert.data.masking import Masking, rng_for
from emohubert.data.speaker_vectors import SpeakerVectors, from_utterances
from emohubert.data.speaker_vectors import read as read_vectors
from emohubert.models.from_pretrained import build_encoder, encoder_config, load_encoder
from emohubert.models.hubert import SpeakerHubertModel
from emohubert.models.speaker_conditioning import POSITIONS
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.types import FrameLabelSet
from emohubert.speakers.adaptation import (
    MASKS,
    adapt,
    best_k,
    eigenvoices,
    fit,
    make,
    masked_logits,
    members_of,
    nearest,
    run_length,
    speaker_vectors,
)
from emohubert.speakers.new_speakers import NewSpeakers
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
def spread(corpus, tmp_path_factory):
    """The pretrained checkpoint, with a table of speakers who differ: two updates have moved them by nothing worth the name."""
    path = tmp_path_factory.mktemp("spread") / "papt.pt"
    state = torch.load(checkpoint(corpus), weights_only=True)
    table = state["model"]["speaker_conditioning.embedding.weight"]
    table[:] = 0.05 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def manifest(corpus, tmp_path_factory):
    return renamed(corpus / "manifest", tmp_path_factory.mktemp("renamed") / "manifest")


def pretraining_model(corpus, position, sets=2, fc=False):
    """A model with heads for several label sets, and speakers that differ, in double precision."""
    changes = {"speaker_position": position, "speaker_fc": fc, "untie_final_proj": True}
    cfg = encoder_config(read_pretrained(checkpoint(corpus)).config, **changes)
    label_sets = [FrameLabelSet(f"km{k}", list(range(k))) for k in (12, 7)[:sets]]
    torch.manual_seed(0)
    model = SpeakerHubertModel(cfg, argparse.Namespace(sample_rate=SAMPLE_RATE), label_sets, ["a", "b"]).double()
    for parameter in model.speaker_conditioning.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("position", "fc"), [*((p, False) for p in POSITIONS), ("output", True)])
def test_loss_and_gradient_are_those_of_the_whole_model(corpus, position, fc):
    model = pretraining_model(corpus, position, fc=fc)
    lengths = [9_000, 16_000, 5_123]
    rng = np.random.default_rng(0)
    waves = [torch.from_numpy(rng.standard_normal(n)) for n in lengths]
    frames = [n_frames(n) for n in lengths]
    targets = [[torch.from_numpy(rng.integers(0, k, n)) for n in frames] for k in (12, 7)]
    targets[1][0][-1] = NO_LABEL

    model.eval().requires_grad_(False)
    items = [{"id": i, "source": wave, "targets": [t[i].numpy() for t in targets]} for i, wave in enumerate(waves)]
    row = model.speaker_conditioning.embedding.weight[2].clone().requires_grad_()
    losses, masked = 0, 0
    for logits, labels in (list(masked_logits(model, item, seed=3))[1] for item in items):
        found = logits(model.speaker_conditioning.vectors_from(row)[None])
        losses = losses + sum(
            F.cross_entropy(z.double(), t, ignore_index=NO_LABEL, reduction="sum") for z, t in zip(found, labels, strict=True)
        )
        masked += len(labels[0])
    gradient = torch.autograd.grad(losses, row)[0]

    model.requires_grad_(True)
    masks = torch.zeros(3, max(frames), dtype=torch.bool)
    for i, n in enumerate(frames):
        masks[i, :n] = torch.from_numpy(Masking.of(model.cfg).frames(n, rng_for(3, 1, i, "fit")))
    padded = [torch.stack([F.pad(t, (0, max(frames) - len(t)), value=NO_LABEL) for t in label_set]) for label_set in targets]
    source = torch.stack([F.pad(w, (0, max(lengths) - len(w))) for w in waves])
    found = model(source, padded, lengths=lengths, mask_indices=masks, speaker=torch.tensor([2, 2, 2]))
    pairs = zip(found["logits"]["masked"], found["targets"]["masked"], strict=True)
    expected = sum(F.cross_entropy(z.double(), t, ignore_index=NO_LABEL, reduction="sum") for z, t in pairs)
    expected.backward()
    table = model.speaker_conditioning.embedding.weight.grad
    assert masked == int(masks.sum()) and float(losses.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)  # float32 logits
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, table[2], rtol=1e-5, atol=1e-5)
    assert not table[:2].any()


@pytest.mark.parametrize(("position", "passes"), [("output", MASKS), ("input", 3 * MASKS)])
def test_at_the_output_the_encoder_runs_once_for_all_embeddings(corpus, position, passes):
    model, calls = pretraining_model(corpus, position, sets=1).float().requires_grad_(False), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    functions = [logits for logits, _ in masked_logits(model, utterances_by_chance(1)[0])]
    found = [sum(float(logits(torch.full((1, 32), value))[0].sum()) for logits in functions) for value in (0.0, 0.5, 1.0)]
    assert len(calls) == passes and len(set(found)) == 3


def utterances_by_chance(n, frames=20, repeated=1):
    """Noise and labels by chance; each label is said for `repeated` frames."""
    rng, samples = np.random.default_rng(0), (frames - 1) * 320 + 400
    found = []
    for i in range(n):
        labels = np.repeat(rng.permutation(np.arange(frames // repeated) % LABELS), repeated)
        found.append({"id": i, "source": torch.from_numpy(rng.standard_normal(samples)), "targets": [labels]})
    return found


def fitted(path, manifest, corpus, chosen=None, seed=1, **options):
    split = read_split(manifest, "test")
    members = members_of(split, NEW.__contains__)
    chosen = chosen or members
    return dict(zip(chosen, adapt(path, split, chosen, corpus / "labels", seed=seed, **options), strict=True))


def test_nothing_changes_but_the_embedding(corpus, spread, manifest):
    task, model = load_trained(spread)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    vector = fit(model.requires_grad_(False), utterances_by_chance(4)).numpy()
    assert np.abs(vector - before["speaker_conditioning.embedding.weight"][1:].mean(0).numpy()).max() > 1e-3
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters()) and not model.training


def test_the_same_seed_gives_the_same_embeddings_whatever_else_is_fitted(corpus, spread, manifest):
    found = fitted(spread, manifest, corpus, workers=2)
    assert sorted(found) == sorted(NEW)
    again = fitted(spread, manifest, corpus, workers=1)
    split = read_split(manifest, "test")
    mine = {"eve": [i for i, s in enumerate(split.speakers) if s == "eve"]}
    alone = fitted(spread, manifest, corpus, chosen=mine)
    other = fitted(spread, manifest, corpus, seed=2)
    for name in NEW:
        np.testing.assert_array_equal(found[name], again[name])
    np.testing.assert_array_equal(found["eve"], alone["eve"])
    assert any((found[name] != other[name]).any() for name in NEW)


def test_the_most_probable_embedding_is_found(spread):
    """The objective by its definition, in the space of embeddings, with scipy's optimiser and the covariance of numpy."""
    _, model = load_trained(spread)
    model.double().requires_grad_(False)
    heard, speaker = utterances_by_chance(2, repeated=2), model.speaker_conditioning
    rows = speaker.embedding.weight[1:].numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    assert (values[:-3] < 1e-9).all(), "four speakers span three dimensions"
    inside, spreads = vectors[:, -3:], values[-3:]
    predicted = [pair for item in heard for pair in masked_logits(model, item)]
    per_frame = 40 / sum(len(labels[0]) for _, labels in predicted) / 2  # 2 × 20 frames, runs of two equal labels

    def objective(at):
        leaf = torch.tensor(at, requires_grad=True)
        e = speaker.vectors_from(torch.from_numpy(rows.mean(0)) + torch.from_numpy(inside) @ leaf)[None]
        loss = sum(F.cross_entropy(logits(e)[0], labels[0], reduction="sum") for logits, labels in predicted) * per_frame
        loss = loss + (leaf**2 / torch.from_numpy(spreads)).sum() / 2
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()

    expected = minimize(objective, np.zeros(3), jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-14, "gtol": 1e-7})
    found = fit(model, heard).numpy() - rows.mean(0)
    assert np.linalg.norm(expected.x) > 0.02
    np.testing.assert_allclose(found, inside @ expected.x, atol=2e-4)
    assert objective(found @ inside)[0] == pytest.approx(expected.fun, abs=1e-4)


def test_eigenvoices_have_the_mean_and_covariance_of_the_table():
    rows = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, voices = eigenvoices(rows)
    np.testing.assert_allclose(mean, rows.numpy().mean(0))
    np.testing.assert_allclose(voices @ voices.T, np.cov(rows.numpy().T), atol=1e-12)


def test_little_audio_stays_near_the_prior_and_none_of_it_has_to_be_masked(spread):
    _, model = load_trained(spread)
    mean = model.requires_grad_(False).speaker_conditioning.embedding.weight[1:].mean(0).numpy()
    moved = [np.linalg.norm(fit(model, utterances_by_chance(n)).numpy() - mean) for n in (1, 16)]
    assert 0 < moved[0] < moved[1]
    single = {"id": 0, "source": torch.randn(400), "targets": [np.zeros(1, dtype=np.int64)]}  # a single frame is never masked
    np.testing.assert_allclose(fit(model, [single]), mean, atol=1e-6)


def test_a_table_that_never_moved_gives_its_row(spread):
    _, model = load_trained(spread)
    torch.nn.init.zeros_(model.requires_grad_(False).speaker_conditioning.embedding.weight)
    assert not fit(model, utterances_by_chance(4)).any()


def test_runs_of_equal_labels():
    assert run_length([np.array([1, 1, 2, 2, 2, 1]), np.array([1, 1])]) == 8 / 4


# --- which utterances -------------------------------------------------------------------------------------------------


def test_utterances_of_the_speakers_outside_the_table(manifest):
    split = read_split(manifest, "test")
    own = {name: [i for i, s in enumerate(split.speakers) if s == name] for name in NEW}
    assert members_of(split, lambda name: name not in ("cleo", "dan")) == own
    split.speakers = ["<unk>", *split.speakers[1:]]
    split.n_samples[own["eve"][-1]] = 399
    assert members_of(split, lambda name: name == "eve") == {"eve": [i for i in own["eve"][:-1] if i]}


# --- the nearest training speakers ------------------------------------------------------------------------------------


def test_the_number_of_neighbours_is_the_one_that_gives_the_training_speakers_embeddings():
    """a's nearest is b, b's is a, c's is b; with two neighbours everybody gets the mean of the others."""
    vectors = from_utterances(["a", "b", "c"], [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    assert best_k(vectors, np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 8.0]])) == 1  # squared distances 8 + 8 + 45; 25.25 + 10.25 + 53
    assert best_k(vectors, np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]])) == 2  # 9 + 9 + 9; 2.25 + 9 + 2.25


def test_similarity_is_of_features_with_the_unknown_speaker(corpus, spread):
    split, model = read_split(corpus / "manifest", "train"), build_encoder(read_pretrained(spread)).eval()
    members = {split.speakers[0]: [3, 0, 7]}
    split.speakers = [split.speakers[0]] * len(split)
    found, means = speaker_vectors(load_encoder(spread), split, members), []
    for index in (3, 0, 7):
        wave = torch.from_numpy(read(split.audio(index)))
        with torch.no_grad():
            features, _ = model.layer_features(wave[None], [len(wave)], [2], speaker=torch.tensor([0]))
        means.append(features[2][0].double().mean(0).numpy())
    np.testing.assert_allclose(found.vectors[0], np.mean(means, axis=0), atol=1e-5)


def test_a_fine_tuned_checkpoint_averages_its_own_table(corpus, manifest, finetuned):
    split, train = read_split(manifest, "test"), read_split(manifest, "train")
    new = make(finetuned, split, "nearest", train)
    task, model = load_trained(finetuned)
    table = dict(zip(task.speakers, model.backbone.speaker_conditioning.embedding.weight[1:].detach().numpy(), strict=True))
    assert new.speakers.ids == list(NEW) and new.method == "nearest" and new.speakers.counts.tolist() == [4, 4]
    encoder = load_encoder(finetuned)
    training = speaker_vectors(encoder, train, members_of(train, table.__contains__))
    own = speaker_vectors(encoder, split, members_of(split, NEW.__contains__))
    rows = np.stack([table[name] for name in training.ids])
    closest = cosine_similarity(own.vectors, training.vectors).argsort(axis=1)[:, ::-1][:, : best_k(training, rows)]
    np.testing.assert_allclose(new.speakers.vectors, rows[closest].mean(axis=1), atol=1e-9)
    train.speakers = ["<unk>" if s != "anna" else s for s in train.speakers]
    with pytest.raises(InputError, match="fewer than 2"):  # the unknown speaker is nobody's neighbour
        nearest(encoder, train, split, members_of(split, NEW.__contains__))


# --- files ------------------------------------------------------------------------------------------------------------


def some_speakers(ids=("x", "y"), width=32, method="adapted"):
    rng = np.random.default_rng(0)
    vectors = SpeakerVectors(list(ids), rng.normal(size=(len(ids), width)), np.arange(1, len(ids) + 1))
    return NewSpeakers(vectors, method, "0" * 64)


def test_file_holds_plain_arrays_and_comes_back(tmp_path):
    new = some_speakers()
    new.write(tmp_path / "a.npz")
    new.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = NewSpeakers.read(tmp_path / "a.npz")
    assert (back.method, back.checkpoint, back.speakers.ids) == ("adapted", "0" * 64, ["x", "y"])
    np.testing.assert_array_equal(back.speakers.vectors, new.speakers.vectors)
    np.testing.assert_array_equal(read_vectors(tmp_path / "a.npz").counts, [1, 2])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert {archive[name].dtype.kind for name in archive.files} <= set("Ufi")


@pytest.mark.parametrize(("name", "value"), [("method", "guessed"), ("checkpoint", None), ("ids", object())])
def test_other_files_are_refused(tmp_path, name, value):
    some_speakers().write(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays[name] = np.array(value)
    if value is None:
        del arrays[name]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InputError, match="b.npz"):
        NewSpeakers.read(tmp_path / "b.npz")


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    finished = finetune(corpus, "regression", "task.target=[arousal]", "optimization.max_epoch=8", f"checkpoint.save_dir={folder}")
    assert finished.returncode == 0, finished.stdout[-3000:]
    return folder / "checkpoint_best.pt"


def columns(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_predictions_change_for_the_new_speakers_and_for_no_other(finetuned, manifest, tmp_path):
    some_speakers(["eve", "dan"]).write(tmp_path / "new.npz")  # dan has an embedding already, and keeps it
    base = ("tools/evaluate.py", finetuned, manifest, "test")
    assert run(*base, tmp_path / "before", "--repeats", "20") == 0
    assert run(*base, tmp_path / "after", "--repeats", "20", "--speaker-vectors", tmp_path / "new.npz") == 0
    before, after = (columns(tmp_path / name / "predictions.tsv") for name in ("before", "after"))
    changed = {a[1] for a, b in zip(before, after, strict=True) if a != b}
    assert changed == {"eve"}
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("before", "after")]
    assert metrics[0]["setting"] == "seen (2 speakers), inductive (2 speakers)"
    assert metrics[1]["setting"] == "seen (2 speakers), adapted (1 speakers), inductive (1 speakers)"
    assert metrics[0]["speaker_embedding"] == metrics[1]["speaker_embedding"] == "speaker embedding at the input"
    assert metrics[1]["speaker_vectors"]["made_with"] == "0" * 64 and "speaker_vectors" not in metrics[0]


def test_a_row_of_the_table_as_a_new_speaker_is_that_speaker(finetuned, manifest, tmp_path):
    """Eve's utterances are Anna's: with Anna's embedding they are predicted as under Anna's name, bit by bit."""
    task, model = load_trained(finetuned)
    row = model.backbone.speaker_conditioning.embedding.weight[1 + task.speakers.index("anna")].detach().numpy()
    NewSpeakers(SpeakerVectors(["eve"], row[None].astype(np.float64), np.array([1])), "adapted", "").write(tmp_path / "anna.npz")
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
    some_speakers(["eve"]).write(tmp_path / "new.npz")
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


def test_what_does_not_fit_is_one_line(finetuned, corpus, spread, manifest, tmp_path, capsys):
    def message():
        return capsys.readouterr().err.strip().splitlines()[-1]

    some_speakers(width=31).write(tmp_path / "narrow.npz")
    assert run("tools/evaluate.py", finetuned, manifest, "test", tmp_path / "o", "--speaker-vectors", tmp_path / "narrow.npz") == 2
    assert message().startswith("error: ") and not (tmp_path / "o" / "metrics.json").exists()
    tool = ("tools/adapt_speaker.py", spread, manifest, "test", tmp_path / "o.npz", "--method")
    assert run(*tool, "adapted") == 2 and "--label-dir" in message()
    assert run(*tool, "adapted", "--label-dir", tmp_path) == 2 and "no such file; make it with tools/make_labels.py" in message()
    other = ("tools/adapt_speaker.py", finetuned, manifest, "test", tmp_path / "o.npz", "--method", "adapted")
    assert run(*other, "--label-dir", corpus / "labels") == 2 and "prediction heads" in message()
    assert run("tools/adapt_speaker.py", tmp_path / "none.pt", manifest, "test", tmp_path / "o.npz", "--method", "nearest") == 2
    assert "no such checkpoint" in message()
    assert run("tools/adapt_speaker.py", spread, corpus / "manifest", "test", tmp_path / "o.npz", "--method", "nearest") == 2
    assert "every speaker has an embedding" in message()
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


def test_no_label_of_a_test_utterance_is_read(finetuned, corpus, spread, manifest, tmp_path):
    """Embeddings, predictions, pooled vectors and calibration are the same, bit by bit, with test labels that are garbage."""
    wrong = garbage(manifest, tmp_path / "garbage")
    options = ("--embeddings", "--repeats", "20")
    assert run("tools/evaluate.py", finetuned, manifest, "train", tmp_path / "train", *options) == 0
    for name, folder in (("right", manifest), ("wrong", wrong)):
        out = tmp_path / name
        labels = ("--label-dir", corpus / "labels")
        assert run("tools/adapt_speaker.py", spread, folder, "test", out / "adapted.npz", "--method", "adapted", *labels) == 0
        assert run("tools/adapt_speaker.py", finetuned, folder, "test", out / "nearest.npz", "--method", "nearest") == 0
        adapted = ("--speaker-vectors", out / "adapted.npz")
        assert run("tools/evaluate.py", finetuned, folder, "test", out / "test", *options, *adapted) == 0
        learnt = ("--train-manifest", folder / "train", "--train-embeddings", tmp_path / "train" / "embeddings.npz")
        test = ("--test-embeddings", out / "test" / "embeddings.npz", "--predictions", out / "test" / "predictions.tsv")
        shown = ("--test-manifest", folder / "test", "--bootstrap", "20")
        for calibrated in (("plain", "--match", "mean", "--always"), ("careful",)):
            assert run("tools/calibrate.py", *learnt, *test, out / calibrated[0], *calibrated[1:], *shown) == 0
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for name in ("adapted.npz", "nearest.npz", "test/embeddings.npz", "plain/calibration.npz", "careful/calibration.npz"):
        assert (right / name).read_bytes() == (wrong / name).read_bytes(), name
    for name in ("test", "plain", "careful"):
        a, b = (columns(folder / name / "predictions.tsv") for folder in (right, wrong))
        at = a[0].index("arousal")
        assert [row[:at] + row[at + 1 :] for row in a] == [row[:at] + row[at + 1 :] for row in b], name
        assert a[1:] != b[1:]  # the references are the garbage


def test_a_second_run_does_nothing(corpus, spread, manifest, tmp_path, capsys):
    command = (
        "tools/adapt_speaker.py",
        spread,
        manifest,
        "test",
        tmp_path / "o.npz",
        "--method",
        "adapted",
        "--label-dir",
        corpus / "labels",
    )
    assert run(*command) == 0
    first, shown = (tmp_path / "o.npz").stat().st_mtime_ns, capsys.readouterr().out
    assert "embeddings of 2 speakers from 8 utterances" in shown
    assert run(*command) == 0
    assert (tmp_path / "o.npz").stat().st_mtime_ns == first and "already there" in capsys.readouterr().err
    content = (tmp_path / "o.npz").read_bytes()
    assert run(*command, "--overwrite") == 0
    assert (tmp_path / "o.npz").stat().st_mtime_ns > first and (tmp_path / "o.npz").read_bytes() == content


# --- what it is for ---------------------------------------------------------------------------------------------------

SMALL = [  # 2 layers × 64
    "model.conv_feature_layers='[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2'",
    "model.encoder_layers=2",
    "model.encoder_embed_dim=64",
    "model.encoder_ffn_embed_dim=128",
    "model.encoder_attention_heads=2",
    "model.final_dim=32",
]


@pytest.mark.slow
def test_adapted_embeddings_predict_other_utterances_better_than_unk_and_the_nearest_average(tmp_path):
    """Twelve voices are trained on, eight are new; nine short utterances of each are heard, three held out."""
    speech = ("--speakers", "20", "--utterances", "12", "--seconds", "0.8", "1.5", "--protocol", "speaker-independent")
    assert run("manifests/synthetic.py", tmp_path / "audio", tmp_path / "m", *speech) == 0
    splits = ("--splits", "train", "valid", "test")
    assert run("tools/make_labels.py", tmp_path / "m", tmp_path / "labels", "--mfcc", "--clusters", "50", *splits) == 0
    data = (f"task.data={tmp_path}/m", f"task.label_dir={tmp_path}/labels/mfcc/km50", f"checkpoint.save_dir={tmp_path}/papt")
    conditioned = ("task.speakers=spk", "model.speaker_position=output", "optimization.max_update=300", "optimization.lr=[0.003]")
    finished = train("hubert_tiny", *SMALL, *data, *conditioned, "dataset.disable_validation=true")
    assert finished.returncode == 0, finished.stdout[-3000:]
    path, labels, losses = tmp_path / "papt/checkpoint_last.pt", tmp_path / "labels/mfcc/km50", []
    task, model = load_trained(path)
    model.requires_grad_(False)
    for name in ("valid", "test"):
        split = read_split(tmp_path / "m", name)
        items = FrameLabelledSpeech(
            split, [read_frame_labels(labels / f"{name}.km", task.label_sets[0].symbols, split.n_samples)], training=False
        )
        members = members_of(split, lambda _: True)
        averages = nearest(load_encoder(path), read_split(tmp_path / "m", "train"), split, {s: own[:9] for s, own in members.items()})
        for own, average in zip(members.values(), averages, strict=True):
            held_out = [pair for i in own[9:] for pair in masked_logits(model, items[i], seed=2)]
            embeddings = (
                fit(model, [items[i] for i in own[:9]]),
                model.speaker_conditioning.embedding.weight[0],
                torch.from_numpy(average),
            )
            e = [model.speaker_conditioning.vectors_from(row.float())[None] for row in embeddings]
            losses.append([np.mean([float(F.cross_entropy(logits(x)[0], t[0])) for logits, t in held_out]) / np.log(2) for x in e])
    adapted, unknown, average = np.array(losses).T
    assert len(losses) == 8 and (adapted < unknown).sum() >= 7 and (adapted < average).sum() >= 6, losses
    assert (adapted - unknown).mean() < -0.2 and (adapted - average).mean() < -0.2, losses
