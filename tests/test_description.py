"""Descriptions of corpora: tables against the manifests and scikit-learn, what is taken for a property of speakers, figures."""

import csv
import logging
from collections import Counter

import numpy as np
import pytest
import soundfile
from corpus import make_corpus
from scripts import run
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from test_figures import drawn  # noqa: F401

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import UNKNOWN_SPEAKER, Utterance, read_split, write_corpus
from emohubert.data import speaker_vectors
from emohubert.evaluation import figures
from emohubert.report import corpus_description, corpus_figures

EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
PEOPLE = {  # actor: age, sex, race, ethnicity
    "1001": ("51", "Male", "Caucasian", "Not Hispanic"),
    "1002": ("21", "Female", "Caucasian", "Not Hispanic"),
    "1003": ("21", "Female", "African American", "Not Hispanic"),
    "1004": ("42", "Female", "Asian", "Hispanic"),
    "1005": ("29", "Male", "African American", "Not Hispanic"),
    "1006": ("58", "Male", "Caucasian", "Not Hispanic"),
}


def make_release(folder, sentences=("IEO", "ITS")):
    """A corpus laid out as CREMA-D is: generated clips of six actors, and tables as the release has them."""
    rng = np.random.default_rng(0)
    (folder / "AudioWAV").mkdir(parents=True)
    clips = [f"{actor}_{sentence}_{emotion}_XX" for actor in PEOPLE for sentence in sentences for emotion in EMOTIONS]
    for clip in clips:
        n = int(rng.uniform(0.4, 0.8) * 16_000)
        pitch = (120 if PEOPLE[clip[:4]][1] == "Male" else 210) * (1 + 0.2 * EMOTIONS.index(clip[9:12]))
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(n) / 16_000) + 0.02 * rng.standard_normal(n)
        soundfile.write(folder / "AudioWAV" / f"{clip}.wav", wave, 16_000)
    tables = {
        "SentenceFilenames.csv": [("Stimulus_Number", "Filename"), *((i, clip) for i, clip in enumerate(clips))],
        "VideoDemographics.csv": [("ActorID", "Age", "Sex", "Race", "Ethnicity"), *((actor, *of) for actor, of in PEOPLE.items())],
        "tabulatedVotes.csv": [
            ("", *"ADFHNS", "fileName", "numResponses", "emoVote", "meanEmoResp", *(f"mean{n}Resp" for n in LEVELS)),
            *((100_001 + i, *votes(clip), clip, 10, clip[9], 60, *(60 if v else -1 for v in votes(clip))) for i, clip in enumerate(clips)),
        ],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="") as f:
            csv.writer(f).writerows(rows)
    return folder


LEVELS = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad")


def votes(clip):
    return [10 * (clip[9:12] == emotion) for emotion in EMOTIONS]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "crema")


@pytest.fixture(scope="module")
def described(release, tmp_path_factory):
    """(manifest directory, description) of the release."""
    folder = tmp_path_factory.mktemp("described")
    assert run("manifests/crema_d.py", release, folder / "manifest", "--protocol", "random") == 0
    assert run("tools/describe.py", folder / "manifest", folder / "out") == 0
    return folder / "manifest", folder / "out"


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def test_the_table_holds_every_column_of_every_split(described):
    manifest, out = described
    rows = {r["id"]: r for r in read_rows(out / "utterances.tsv")}
    assert len(rows) == 72
    for name in ("train", "valid", "test"):
        split = read_split(manifest, name)
        for i, key in enumerate(split.ids):
            row = rows.pop(key)
            assert (row["split"], row["speaker"], row["emotion"]) == (name, split.speakers[i], split.emotions[i])
            assert float(row["seconds"]) == pytest.approx(split.n_samples[i] / 16_000, abs=1e-4)
            assert row["meta_intensity"] == split.meta["intensity"][i] == "unspecified"
            assert float(row["intensity"]) == pytest.approx(split.dimensions["intensity"][i]) == pytest.approx(0.6)
            assert all(row[c] == v[i] for c, v in split.meta.items() if c not in ("id", "intensity"))
    assert not rows


def test_speakers_are_told_as_the_release_tells_them(described):
    manifest, out = described
    speakers = {row["speaker"]: row for row in read_rows(out / "speakers.tsv")}
    stored = speaker_vectors.read(out / "speaker_mfcc.npz")
    assert sorted(speakers) == sorted(PEOPLE) == stored.ids and stored.counts.tolist() == [12] * 6
    audio = read_split(manifest, "train").root / "AudioWAV"
    for actor, (age, sex, race, ethnicity) in PEOPLE.items():
        found = speakers[actor]
        person = {"sex": sex.lower(), "age": age, "race": race, "ethnicity": ethnicity}
        assert {column: found[column] for column in person} == person
        assert not {"sentence", "intended", "crowd"} & set(found)
        assert found["utterances"] == "12" and [n for column, n in found.items() if column.startswith("n_")] == ["2"] * 6
        seconds = sum(soundfile.info(path).duration for path in audio.glob(f"{actor}_*.wav"))
        assert float(found["seconds"]) == pytest.approx(seconds, abs=1e-3)
        splits = [read_split(manifest, name) for name in ("train", "valid", "test")]
        means = np.concatenate([speaker_vectors.mfcc_means(s, 1, np.flatnonzero(np.array(s.speakers) == actor)) for s in splits])
        np.testing.assert_allclose(stored.vectors[stored.ids.index(actor)], means.mean(0), atol=1e-5)
        assert float(found["soft_angry"]) == pytest.approx(1 / 6, abs=1e-6)


def test_figures_are_those_that_the_corpus_allows_and_done_work_is_skipped(described, capsys):
    manifest, out = described
    expected = {"lengths", "classes", "demographics", "voices_sex", "voices_age", "voices_race", "voices_ethnicity"}
    pictures = {p: p.read_bytes() for p in (out / "figures").iterdir()}
    assert {p.stem for p in pictures} == expected
    capsys.readouterr()
    assert run("tools/describe.py", manifest, out) == 0 and "already there" in capsys.readouterr().out
    (out / "figures" / "voices_old.png").write_bytes(b"")
    assert run("tools/describe.py", manifest, out, "--overwrite") == 0
    assert {p: p.read_bytes() for p in (out / "figures").iterdir()} == pictures, "same corpus, same bytes"


def test_the_map_of_voices_is_the_pca_of_scaled_vectors(described, tmp_path, monkeypatch):
    vectors = speaker_vectors.read(described[1] / "speaker_mfcc.npz")
    shown = []
    monkeypatch.setattr(figures, "embedding_map", lambda path, projected, *_: shown.append(projected[0]) or path)
    corpus_figures.draw(tmp_path, corpus_description.read(described[0]), {"sex": dict(zip(vectors.ids, "fmfmfm", strict=True))}, vectors)
    expected = PCA(2, svd_solver="full").fit_transform(StandardScaler().fit_transform(vectors.vectors))
    np.testing.assert_allclose(np.abs(shown[0]), np.abs(expected), atol=1e-8)


def small(folder, splits, folds=None):
    """A manifest of utterances (name, speaker, metadata), without audio."""
    make = {
        name: [Utterance(f"{u}.wav", 16_000, speaker, "happy", {}, meta) for u, speaker, meta in utterances]
        for name, utterances in splits.items()
    }
    write_corpus(folder, "small", folder, {"": make} if folds is None else {f: {k: make[k] for k in of} for f, of in folds.items()})
    return folder


def test_properties_of_speakers(tmp_path):
    people = [(f"s{i:02}", {"sex": "f", "code": f"{i:02}", "age": str(20 + i), "take": ""}) for i in range(12)]
    utterances = [(f"{s}_{k}", s, {**meta, "text": f"t{k}"}) for s, meta in people for k in range(3)]
    utterances[1][2]["sex"] = ""
    utterances[4][2]["code"] = "99"
    utterances.append(("nobody", UNKNOWN_SPEAKER, {"sex": "m", "code": "7", "age": "3", "take": "", "text": "t0"}))
    corpus = corpus_description.read(small(tmp_path, {"train": utterances[::2], "test": utterances[1::2]}))
    metadata = corpus_description.speaker_metadata(corpus)
    assert list(metadata) == ["sex", "age"], "text differs in everybody, code in one, take is unknown"
    assert metadata["sex"] == dict.fromkeys((s for s, _ in people), "f")
    assert metadata["age"]["s03"] == "23"
    table = corpus_description.speaker_table(corpus, metadata)
    assert table["speaker"].tolist() == [s for s, _ in people] and table["age"].tolist() == list(map(str, range(20, 32)))
    content = corpus_description.summary(corpus, metadata)
    assert (content["utterances"], content["speakers"], content["utterances of unknown speakers"]) == (37, 12, 1)
    assert content["speakers by sex"] == {"f": 12}


def test_an_utterance_of_several_folds_is_one_line(tmp_path):
    def parts(names):
        return [(name, name[0], {}) for name in names.split()]

    splits = {"train": parts("a1 a2 b1"), "test": parts("c1 c2"), "valid": parts("d1")}
    folder = small(tmp_path, splits, {"fold1": ["train", "test"], "fold2": ["test", "valid"]})
    table = corpus_description.read(folder).table
    assert list(table)[:6] == ["id", "path", "seconds", "split", "speaker", "emotion"]
    both, first = "fold1/test+fold2/test", "fold1/train"
    assert dict(zip(table["id"], table["split"], strict=True)) == {
        "a1": first,
        "a2": first,
        "b1": first,
        "c1": both,
        "c2": both,
        "d1": "fold2/valid",
    }


def test_short_utterances_and_unknown_speakers_have_no_voice(tmp_path, caplog):
    make_corpus(tmp_path, train=8, valid=2, test=2)
    manifest = tmp_path / "manifest"
    (manifest / "test.spk").write_text(f"{UNKNOWN_SPEAKER}\nben\n")
    lines = (manifest / "train.tsv").read_text().splitlines()
    soundfile.write(tmp_path / "audio" / lines[1].split("\t")[0], np.zeros(300), 16_000)
    lines[1] = lines[1].split("\t")[0] + "\t300"
    (manifest / "train.tsv").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        vectors = corpus_description.voices(corpus_description.read(manifest))
    assert vectors.ids == ["anna", "ben", "cleo", "dan"] and vectors.counts.tolist() == [2, 4, 2, 2]
    assert caplog.messages == ["1 utterances are shorter than one frame and not in the means of MFCCs"]


def test_a_corpus_that_knows_nothing_of_its_speakers(tmp_path, capsys):
    make_corpus(tmp_path, train=4, valid=2, test=2)
    for name in ("train", "valid", "test"):
        for suffix in ("spk", "emo", "dim", "meta.tsv"):
            (tmp_path / "manifest" / f"{name}.{suffix}").unlink()
    assert run("tools/describe.py", tmp_path / "manifest", tmp_path / "out") == 0
    assert read_rows(tmp_path / "out" / "speakers.tsv") == []
    assert {p.stem for p in (tmp_path / "out" / "figures").iterdir()} == {"lengths", "classes"}
    assert not (tmp_path / "out" / "speaker_mfcc.npz").exists()
    assert read_rows(tmp_path / "out" / "utterances.tsv")[0].keys() == {"id", "path", "seconds", "split", "speaker", "emotion"}


def test_bad_input_is_one_line(tmp_path, capsys):
    assert run("tools/describe.py", tmp_path / "nothing", tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    make_corpus(tmp_path, train=4, valid=2, test=2)
    (tmp_path / "audio" / "train001.wav").unlink()
    with pytest.raises(InputError, match="train001"):
        corpus_description.write(tmp_path / "manifest", tmp_path / "out")
    assert not (tmp_path / "out" / "speakers.tsv").exists()


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 3000])
def test_lengths(drawn, n):  # noqa: F811
    seconds = np.random.default_rng(0).gamma(4, 0.7, n)
    figure = drawn(corpus_figures.lengths, seconds)
    bars = sum(p.get_height() for p in figure.axes[0].patches if p.get_height() == int(p.get_height()) and p.get_width() > 0)
    assert figure.axes[0].get_title(loc="left") == f"Length of {n} clips, {seconds.sum() / 3600:.2f} hours"
    told = [t.get_text() for t in figure.legends[0].get_texts()]
    assert f"median {np.median(seconds):.2f} s" in told
    hidden = sum(int(t.split()[2]) for t in told if t.startswith("not shown"))
    assert hidden == (seconds > np.percentile(seconds, 99.5)).sum() and bars >= n - hidden


@pytest.mark.parametrize("splits", [["train"], ["train", "valid", "test"], [f"a long name of part {i}" for i in range(11)]])
def test_classes(drawn, splits):  # noqa: F811
    rng = np.random.default_rng(1)
    names = ["-", "anger", "a very long class name indeed", "$x_1$"]
    labelled = [(names[rng.integers(4)], splits[rng.integers(len(splits))]) for _ in range(400)]
    figure = drawn(corpus_figures.classes, labelled)
    widths = np.array([[p.get_width() for p in bars] for bars in figure.axes[0].containers])
    counts = Counter(c for c, _ in labelled)
    assert widths.sum(0).tolist() == [counts["-"], *sorted(n for c, n in counts.items() if c != "-")]


def test_demographics(drawn):  # noqa: F811
    rng = np.random.default_rng(2)
    columns = {
        "sex": ["female", "male", ""] * 20,
        "age": [str(a) for a in rng.integers(18, 80, 60)],
        "native language and dialect of it": [f"language number {i}, dialect {i}" for i in rng.integers(0, 30, 60)],
    }
    figure = drawn(corpus_figures.demographics, columns, 60)
    sex, age, language = figure.axes
    assert [p.get_width() for p in sex.patches] == [20, 20, 20] and sum(p.get_width() for p in age.patches) == 60
    assert len(language.patches) == corpus_figures.MOST_BARS and sum(p.get_width() for p in language.patches) == 60


@pytest.mark.parametrize("values", [["African American", "Asian", "Caucasian", "unknown"] * 10, np.arange(40.0)])
def test_voices(drawn, values):  # noqa: F811
    projected = figures.project(np.random.default_rng(3).normal(size=(40, 13)))
    figure = drawn(figures.embedding_map, projected, values, "race", "Voices (mean MFCCs)")
    assert figure.axes[0].get_title(loc="left") == "Voices (mean MFCCs) by race"
    if isinstance(values, list):
        assert {t.get_text() for t in figure.legends[0].get_texts()} == set(values), "names are not cut"
