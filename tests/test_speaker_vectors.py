"""Speaker vectors, whatever they come from, and the neighbours of a speaker."""

import numpy as np
import pytest
import soundfile
import torch
from corpus import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler
from torchaudio.compliance import kaldi

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import Split, read_split
from emohubert.data import speaker_vectors
from emohubert.data.speaker_vectors import (
    SpeakerVectors,
    cosine,
    from_table,
    from_utterances,
    mfcc_means,
    nearest_speaker_weights,
    neighbour_weights,
    standardise,
)


def test_mean_over_utterances():
    vectors = from_utterances(["b", "a", "b", "b"], [[1, 0], [5, 5], [3, 0], [2, 6]])
    assert vectors.ids == ["a", "b"]
    np.testing.assert_allclose(vectors.vectors, [[5, 5], [2, 2]], atol=1e-12)
    assert vectors.counts.tolist() == [1, 3]
    # squared distances within b: (1 + 4) + (1 + 4) + 16; 4 utterances − 2 speakers
    assert vectors.within == pytest.approx(26 / 2, abs=1e-12)


def test_learned_table_is_sorted_and_counts_one_each():
    vectors = from_table({"z": [1.0, 2.0], "a": [3.0, 4.0]})
    assert vectors.ids == ["a", "z"] and vectors.counts.tolist() == [1, 1] and vectors.within == 0
    np.testing.assert_array_equal(vectors.vectors, [[3, 4], [1, 2]])


@pytest.mark.parametrize("table", [{}, {"a": [1.0], "b": [1.0, 2.0]}])
def test_a_table_of_unequal_widths_or_nothing_is_refused(table):
    with pytest.raises(InputError, match="width"):
        from_table(table)


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


THOUSANDTHS = st.integers(-100_000, 100_000).map(lambda n: n / 1000)  # scikit-learn's is wrong for denormal numbers


@given(hnp.arrays(float, (4, 5), elements=THOUSANDTHS), hnp.arrays(float, (3, 5), elements=THOUSANDTHS))
@settings(max_examples=60, deadline=None)
def test_cosine_equals_scikit_learns(a, b):
    np.testing.assert_allclose(cosine(a, b), cosine_similarity(a, b), atol=1e-9)


def test_cosine_with_extreme_and_zero_vectors():
    a = np.array([[0.0, 0.0], [1e-200, 1e-200], [1e200, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(cosine(a, a[2:]), [[0, 0], [0.5**0.5, 1.4 * 0.5**0.5], [1, 0.6], [0.6, 1]], atol=1e-12)


def test_hard_weights():
    np.testing.assert_allclose(neighbour_weights([[0.2, 0.9, -0.5, 0.8]], 2), [[0, 0.5, 0, 0.5]], atol=1e-12)


def test_similarity_weights_are_measured_from_the_first_speaker_left_out():
    # beyond 0.2, the first left out: 0.7 and 0.6
    np.testing.assert_allclose(neighbour_weights([[0.2, 0.9, -0.5, 0.8]], 2, "similarity"), [[0, 7 / 13, 0, 6 / 13]], atol=1e-12)
    # nobody is left out: beyond −1
    np.testing.assert_allclose(neighbour_weights([[0.5, -0.5]], 5, "similarity"), [[0.75, 0.25]], atol=1e-12)


@pytest.mark.parametrize("weighting", ["hard", "similarity"])
def test_equal_speakers_weigh_the_same_and_are_taken_in_order(weighting):
    np.testing.assert_allclose(neighbour_weights([[0.3, 0.3, 0.3]], 2, weighting), [[0.5, 0.5, 0]], atol=1e-12)
    rounding = [[0.3, 0.3 + 1e-15, 0.3 - 1e-15]]
    np.testing.assert_allclose(neighbour_weights(rounding, 2, weighting), [[0.5, 0.5, 0]], atol=1e-12)


@given(
    hnp.arrays(float, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1, 1)),
    st.integers(1, 8),
    st.sampled_from(["hard", "similarity"]),
)
@settings(max_examples=100, deadline=None)
def test_weights_sum_to_one_and_never_favour_the_less_similar(similarities, k, weighting):
    weights = neighbour_weights(similarities, k, weighting)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    assert (weights >= 0).all() and ((weights > 0).sum(1) <= k).all()
    for row, w in zip(np.round(similarities, 12), weights, strict=True):
        order = np.argsort(-row, kind="stable")
        assert (np.diff(w[order]) <= 1e-12).all()


def test_the_similar_weigh_more_however_close_to_one_all_similarities_are():
    rng = np.random.default_rng(1)
    training = 50 + rng.normal(size=(8, 12))  # a common direction, as encoder features have: all cosines above 0.999
    vector = training[3] + 0.1 * rng.normal(size=12)
    weights = nearest_speaker_weights(vector, training, 4)
    assert cosine(vector[None], training).min() > 0.999
    assert weights.argmax() == 3 and weights[3] > 0.4


def test_nearest_speaker_weights_of_a_training_speaker_alone():
    training = from_utterances(["a", "b", "c"], np.eye(3))
    np.testing.assert_allclose(nearest_speaker_weights([0.0, 2.0, 0.0], training, 1), [0, 1, 0], atol=1e-12)
    with pytest.raises(InputError, match="k is 0"):
        nearest_speaker_weights([0.0, 2.0, 0.0], training, 0)


def test_written_and_read_again(tmp_path):
    vectors = from_utterances(["ä", "b", "b"], np.random.default_rng(0).normal(size=(3, 4)))
    speaker_vectors.write(tmp_path / "v.npz", vectors)
    again = speaker_vectors.read(tmp_path / "v.npz")
    assert again.ids == vectors.ids and again.within == vectors.within
    np.testing.assert_array_equal(again.vectors, vectors.vectors)
    np.testing.assert_array_equal(again.counts, vectors.counts)


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("code from a file has run",))


def test_nothing_in_a_file_runs(tmp_path):
    objects = np.empty(1, dtype=object)
    objects[0] = Hostile()
    np.savez(tmp_path / "v.npz", ids=objects, vectors=np.ones((1, 2)), counts=np.ones(1, int), within=0.0)
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


def test_take_keeps_the_order_of_ids_and_names_who_is_missing():
    vectors = from_utterances(["a", "b", "c"], np.eye(3))
    assert vectors.take(["c", "a"]).ids == ["a", "c"]
    with pytest.raises(InputError, match="“x”"):
        vectors.take(["a", "x"])


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
