"""Speaker vectors, whatever they come from, and the neighbours of a speaker."""

import numpy as np
import pytest
import soundfile
import torch
from corpus import make_corpus
from sklearn.preprocessing import StandardScaler
from torchaudio.compliance import kaldi

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import Split, read_split
from emohubert.data import speaker_vectors
from emohubert.data.speaker_vectors import SpeakerVectors, from_utterances, mfcc_means, standardise
from emohubert.speakers.pldc import cosine


def test_mean_over_utterances():
    vectors = from_utterances(["b", "a", "b", "b"], [[1, 0], [5, 5], [3, 0], [2, 6]])
    assert vectors.ids == ["a", "b"]
    np.testing.assert_allclose(vectors.vectors, [[5, 5], [2, 2]], atol=1e-12)
    assert vectors.counts.tolist() == [1, 3]


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="“b”"):
        from_utterances(["a", "b"], [[1.0, 2.0], [np.nan, 1.0]])
    with pytest.raises(InputError, match="0 speakers"):
        from_utterances([], np.zeros((0, 3)))


def test_standardise_equals_scikit_learns_on_the_training_speakers():
    rng = np.random.default_rng(0)
    training = from_utterances([f"s{i}" for i in range(6)], rng.normal(3, [1, 100, 0.01], (6, 3)))
    others = rng.normal(3, [1, 100, 0.01], (4, 3))
    np.testing.assert_allclose(standardise(others, training), StandardScaler().fit(training.vectors).transform(others), atol=1e-12)


def test_standardise_only_centres_a_constant_dimension():
    training = from_utterances(["a", "b"], [[1.0, 7.0], [3.0, 7.0]])
    np.testing.assert_allclose(standardise([[2.0, 9.0]], training), [[0.0, 2.0]], atol=1e-12)


def test_written_and_read_again(tmp_path):
    vectors = from_utterances(["ä", "b", "b"], np.random.default_rng(0).normal(size=(3, 4)))
    speaker_vectors.write(tmp_path / "v.npz", vectors)
    again = speaker_vectors.read(tmp_path / "v.npz")
    assert again.ids == vectors.ids
    np.testing.assert_array_equal(again.vectors, vectors.vectors)
    np.testing.assert_array_equal(again.counts, vectors.counts)


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("code from a file has run",))


def test_nothing_in_a_file_runs(tmp_path):
    objects = np.empty(1, dtype=object)
    objects[0] = Hostile()
    np.savez(tmp_path / "v.npz", ids=objects, vectors=np.ones((1, 2)), counts=np.ones(1, int))
    with pytest.raises(InputError, match="v.npz: does not hold speaker vectors"):
        speaker_vectors.read(tmp_path / "v.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no more", b"text"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "v.npz").write_bytes(content)
    with pytest.raises(InputError, match="v.npz"):
        speaker_vectors.read(tmp_path / "v.npz")
    with pytest.raises(InputError, match="no such file"):
        speaker_vectors.read(tmp_path / "w.npz")


def test_arrays_that_do_not_belong_together_are_refused(tmp_path):
    speaker_vectors.write(tmp_path / "v.npz", SpeakerVectors(["a", "b"], np.ones((1, 2)), np.ones(2, int)))
    with pytest.raises(InputError, match="belong together"):
        speaker_vectors.read(tmp_path / "v.npz")


def test_take_keeps_the_order_of_ids():
    taken = from_utterances(["a", "b", "b", "c"], np.eye(4)).take(["c", "b"])
    assert taken.ids == ["b", "c"] and taken.counts.tolist() == [2, 1]
    np.testing.assert_array_equal(taken.vectors, [[0, 0.5, 0.5, 0], [0, 0, 0, 1]])


def test_mfcc_means_are_kaldis(tmp_path):
    split = read_split(make_corpus(tmp_path, train=8), "train")
    means = mfcc_means(split, workers=1)
    assert means.shape == (8, 13)
    for i in range(8):
        wave, rate = soundfile.read(split.audio(i), dtype="float32")
        frames = kaldi.mfcc(torch.from_numpy(wave)[None], num_ceps=13, sample_frequency=rate, use_energy=False)
        np.testing.assert_allclose(means[i], frames.double().mean(0).numpy(), rtol=1e-6, atol=1e-5)


def test_audio_shorter_than_a_frame_is_named(tmp_path):
    manifest = make_corpus(tmp_path, train=4)
    soundfile.write(tmp_path / "audio" / "train001.wav", np.zeros(300), 16_000)
    lines = (manifest / "train.tsv").read_text().splitlines()
    lines[2] = "train001.wav\t300"
    (manifest / "train.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="train.tsv:3: 300 samples"):
        mfcc_means(read_split(manifest, "train"), workers=1)


@pytest.mark.slow
def test_scaled_mfcc_vectors_of_real_speakers_tell_the_sexes_apart(emodb):
    files = sorted(emodb.glob("**/*.flac"))
    speakers = [path.name[:2] for path in files]
    samples = np.array([soundfile.info(path).frames for path in files])
    split = Split(emodb, "all", emodb, [str(path.relative_to(emodb)) for path in files], samples, speakers)
    means = mfcc_means(split)
    vectors = from_utterances(speakers, standardise(means, from_utterances(speakers, means)))
    similarities = cosine(vectors.vectors, vectors.vectors)
    np.fill_diagonal(similarities, -np.inf)
    men = {"03", "10", "11", "12", "15"}
    assert len(vectors) == 10
    assert all((vectors.ids[i] in men) == (vectors.ids[j] in men) for i, j in enumerate(similarities.argmax(1)))
