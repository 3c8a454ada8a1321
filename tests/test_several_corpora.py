"""Several corpora in one training: whose people are whose, what an epoch holds, what is recorded, and resuming."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from corpus import make_corpus
from training import train

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import Split, read_split
from emohubert.corpus.union import as_in, qualified, union
from emohubert.data.utterance_labelled import UtteranceLabelledSpeech
from emohubert.evaluation.inference import speaker_setting
from emohubert.pretrained.safe_files import load_state
from emohubert.provenance import records
from emohubert.tasks.manifests import Manifests
from emohubert.tasks.trained import load_trained


def rename(manifest, name):
    facts = json.loads((manifest / "corpus.json").read_text())
    (manifest / "corpus.json").write_text(json.dumps(facts | {"corpus": name}))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Two corpora with the same speaker ids, the second smaller, of other names for its classes, and without .dim."""
    folder = tmp_path_factory.mktemp("corpora")
    first, second = make_corpus(folder / "a", seconds=(0.3, 0.8)), make_corpus(folder / "b", seconds=(0.3, 0.8), train=8, seed=3)
    rename(second, "other")
    for path in [*second.glob("*.emo"), second / "dict.emo.txt"]:
        path.write_text(path.read_text().replace("happy", "EXC").replace("sad", "bored"))
    for path in second.glob("*.dim"):
        path.unlink()
    return [first, second]


def test_the_union_of_two_manifests(manifests):
    read = Manifests(list(map(str, manifests)), "spk", "usual")
    whole, (a, b) = read.read("train"), (read_split(m, "train") for m in manifests)
    assert len(whole) == len(a) + len(b) == 32 and read.classes() == ["angry", "happy", "neutral", "sad"]
    assert list(whole.speakers) == [f"noise/{s}" for s in a.speakers] + [f"other/{s}" for s in b.speakers]
    assert [whole.audio(i) for i in (0, 24)] == [a.audio(0), b.audio(0)]
    assert set(b.emotions) == {"angry", "EXC"} and list(whole.emotions)[24:] == [{"EXC": "happy"}.get(e, e) for e in b.emotions]
    assert np.isnan(whole.dimensions["arousal"][24:]).all() and not np.isnan(whole.dimensions["arousal"][:24]).any()
    assert whole.where(24, "emo") == f"{manifests[1]}/train.emo:1" and whole.where(23) == f"{manifests[0]}/train.tsv:25"
    assert [(s.directory, list(own)) for s, own in whole.of_directories([1, 30])] == [(manifests[0], [1]), (manifests[1], [6])]
    assert whole.corpora.sum(axis=0).tolist() == [24, 8] and read.corpora == ["noise", "other"]
    assert read.known_speakers() == [f"{c}/{s}" for c in ("noise", "other") for s in ("anna", "ben", "cleo", "dan")]


def test_whose_people_are_whose(manifests, tmp_path):
    ids = [*qualified(["1", "<unk>"], "a"), *qualified(["1"], "b"), *qualified(["2"], "table")]
    assert ids == ["a/1", "<unk>", "b/1", "2"]
    trained = ["a", "b", "table"]
    assert as_in("a", ids, trained) == ["1", "<unk>", None, "2"], "in a corpus without a name, anybody may speak"
    assert as_in(None, ids, trained) == ["1", "<unk>", "1", "2"] and as_in("c", ids, trained) == [None, "<unk>", None, "2"]
    assert as_in("a", ["1"], "a") == as_in("a", ["1"], None) == ["1"] and as_in("a", ["1"], "b") == [None]
    for name, manifest in zip("ab", manifests, strict=True):
        shutil.copytree(manifest, tmp_path / name)
        rename(tmp_path / name, None)
    with pytest.raises(InputError, match="has the speaker id “.*” of .*/a, and neither corpus has a name"):
        union([read_split(tmp_path / name, "train") for name in "ab"])


def test_scales_must_agree(manifests, tmp_path):
    shutil.copytree(manifests[0], tmp_path / "c")
    facts = json.loads((tmp_path / "c" / "corpus.json").read_text()) | {"label_scales": {"arousal": {"min": 1, "max": 5}}}
    (tmp_path / "c" / "corpus.json").write_text(json.dumps(facts))
    both = Manifests([str(manifests[0]), str(tmp_path / "c")], "spk", None)
    assert both.scales(["valence"]) == {"arousal": {"min": 0, "max": 1}}
    with pytest.raises(InputError, match="the scale of arousal is"):
        both.scales(["arousal"])


def dataset(temperature, balanced=False, targets=None):
    """100 utterances of a corpus, 20 of another, 3 of a third."""
    n, whose = 123, np.repeat(np.eye(3, dtype=bool), [100, 20, 3], axis=0)
    split = Split(None, "train", None, [f"{i}.wav" for i in range(n)], np.full(n, 1000))
    targets = np.zeros(n, dtype=np.int64) if targets is None else targets
    options = {"balanced": balanced, "corpora": whose, "temperature": temperature, "seed": 4}
    return UtteranceLabelledSpeech(split, targets, **options), whose


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1, [100, 20, 3]), (np.inf, [41, 41, 41]), (2, 123 * np.sqrt([100, 20, 3]) / np.sqrt([100, 20, 3]).sum())]
)
def test_shares_of_corpora(temperature, shares):
    data, whose = dataset(temperature)
    epochs = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        epochs.append(data.ordered_indices())
    counts = whose[epochs[0]].sum(axis=0)
    assert counts.tolist() == np.ceil(np.array(shares) - 1e-9).tolist()
    uses = np.bincount(epochs[0], minlength=123)
    assert all(np.ptp(uses[rows]) <= 1 for rows in whose.T), "each utterance of a corpus as often as the others, but for one"
    assert (epochs[0] == epochs[2]).all() and (temperature == 1 or (epochs[0] != epochs[1]).any())
    valid = UtteranceLabelledSpeech(data.split, data.targets, corpora=whose, temperature=temperature, training=False)
    assert valid.ordered_indices().tolist() == list(range(123))


def test_classes_and_corpora_are_balanced_together():
    targets = np.arange(123) % 2
    targets[100:] = 1  # only in the first corpus are there others
    data, whose = dataset(np.inf, balanced=True, targets=targets)
    own = data.ordered_indices()
    assert np.bincount(targets[own]).tolist() == [62, 63] and whose[own[targets[own] == 1]].sum(axis=0).tolist() == [21, 21, 21]


@pytest.fixture(scope="module")
def settings(corpus, manifests):
    init = f"model.init_from={corpus}/hubert/checkpoint_last.pt"
    data = f"task.data=[{manifests[0]},{manifests[1]}]"
    return [data, init, "model.speaker_position=none", "model.mask_channel_length=4", "optimization.lr=[0.003]", "task.label_map=usual"]


def trained(name, settings, *more):
    finished = train(name, *settings, "task.corpus_temperature=inf", *more)
    assert finished.returncode == 0, finished.stdout[-3000:]
    return finished.stdout


@pytest.mark.slow
def test_training_records_and_resuming(manifests, settings, tmp_path):
    """Going on after the first of two epochs gives what both at once give, to the bit."""
    options = ["model.head_speaker=embedding", "task.sampling=balanced"]
    printed = trained("ser_classification_tiny", settings, *options, "optimization.max_epoch=2", f"checkpoint.save_dir={tmp_path}/two")
    assert re.search(r'"valid_ua_in_noise": "[\d.]+".*"valid_ua_in_other": "[\d.]+"', printed)
    for epochs in (1, 2):
        trained("ser_classification_tiny", settings, *options, f"optimization.max_epoch={epochs}", f"checkpoint.save_dir={tmp_path}/one")
    one, two = (load_state(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two"))
    assert all(torch.equal(x, two["model"][key]) for key, x in one["model"].items())
    found = [records.read(path) for path in (tmp_path / "one").glob("train-*.seen")]
    assert {(r.facts["manifest"], r.facts["corpus"], len(r.utterances)) for r in found} == {
        (f"{manifests[0]}/train.tsv", "noise", 24),
        (f"{manifests[1]}/train.tsv", "other", 8),
    }
    task, _ = load_trained(tmp_path / "one" / "checkpoint_best.pt")
    assert task.state.corpus == ["noise", "other"] and task.speakers[:2] == ["noise/anna", "noise/ben"]
    split = read_split(manifests[1], "test")
    assert speaker_setting(task, split)["setting"] == "seen (4 speakers)"
    assert task.speakers_for(split) == [None] * 4 + ["anna", "ben", "cleo", "dan"]
    shutil.copytree(manifests[1], tmp_path / "third")
    rename(tmp_path / "third", "third")
    assert speaker_setting(task, read_split(tmp_path / "third", "test"))["setting"] == "inductive (4 speakers)"
    less = [f"task.data={manifests[0]}", *settings[1:], *options, f"checkpoint.save_dir={tmp_path}/one"]
    refused = train("ser_classification_tiny", *less, "task.corpus_temperature=inf")
    assert refused.returncode == 2 and "error: " in refused.stdout


@pytest.mark.slow
def test_targets_that_one_corpus_lacks(manifests, settings, tmp_path):
    options = ["task.target=[emo,arousal]", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path}"]
    printed = trained("ser_multitask_tiny", settings, *options)
    assert "8 of 32 utterances have no arousal" in printed and '"valid_ccc_arousal_in_other": "nan"' in printed.lower()
    assert re.search(r'"valid_score_in_other": "[\d.]+"', printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task.corpus_temperature=0"], "task.corpus_temperature=0.0: give a number above 0, or inf"),
        (["task.label_map=/none.json"], "/none.json"),
        (["model.speaker_position=inherit"], "model.init_from knows speakers of no certain corpus"),
        (["task.data=[/nowhere,/neither]"], "/nowhere"),
    ],
)
def test_what_cannot_be(settings, tmp_path, overrides, expected):
    refused = train("ser_classification_tiny", *settings, f"checkpoint.save_dir={tmp_path}", *overrides)
    errors = [line for line in refused.stdout.splitlines() if line.startswith("error: ")]
    assert refused.returncode == 2 and len(errors) == 1 and expected in errors[0], refused.stdout[-3000:]
