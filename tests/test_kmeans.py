"""k-means: exact nearest centroids, fits as good as scikit-learn's, the same bytes whatever the threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as StockKMeans
from sklearn.cluster import MiniBatchKMeans

from emohubert.core.errors import InputError
from emohubert.pseudo_labels import kmeans
from emohubert.pseudo_labels.kmeans import Assigner, KMeans, fit


def blobs(n=3000, width=16, centres=12, seed=0, spread=0.7, offset=0.0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, width)) * 2 + offset
    return (means[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, width))).astype(np.float32)


def brute_force(frames, centroids):
    distances = ((frames.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(-1)
    return distances.argmin(1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), offset=st.sampled_from([0.0, 10.0, 1000.0]), clusters=st.integers(1, 40))
def test_labels_are_the_exact_nearest_centroids(seed, offset, clusters):
    frames = blobs(300, seed=seed, offset=offset)
    centroids = frames[np.random.default_rng(seed).choice(300, clusters, replace=False)]
    assert np.array_equal(Assigner(centroids).labels(frames).numpy(), brute_force(frames, centroids))


def test_the_labels_are_scikit_learns():
    frames = blobs()
    stock = StockKMeans(20, n_init=1, random_state=0).fit(frames)
    labels = Assigner(stock.cluster_centers_.astype(np.float32)).labels(frames).numpy()
    assert np.array_equal(labels, stock.predict(frames))


def test_ties_go_to_the_first_centroid_in_any_block():
    centroids = np.array([[5.0, 5], [1, 0], [-1, 0], [1, 0], [0, 1]], dtype=np.float32)
    frames = np.tile(np.array([[0, 0], [1, 0], [0, -3]], dtype=np.float32), (kmeans.BLOCK, 1))
    assert np.array_equal(Assigner(centroids).labels(frames).numpy(), np.tile([1, 1, 1], kmeans.BLOCK))


@pytest.mark.parametrize("clusters", [5, 40])
def test_inertia_is_as_low_as_scikit_learns(clusters):
    frames = blobs(6000, 32, centres=60, spread=1.5)
    model = fit(frames, clusters)
    stock = min(StockKMeans(clusters, n_init=3, random_state=s).fit(frames).inertia_ for s in range(2)) / len(frames)
    minibatch = MiniBatchKMeans(clusters, n_init=20, batch_size=10_000, random_state=0).fit(frames)
    assert model.fit["inertia"] <= 1.01 * stock
    assert model.fit["inertia"] <= 1.005 * -minibatch.score(frames) / len(frames)


def test_what_is_recorded_is_true():
    frames = blobs()
    model = fit(frames, 15)
    labels = brute_force(frames, model.centroids)
    assert np.array_equal(model.sizes, np.bincount(labels, minlength=15))
    inertia = ((frames.astype(np.float64) - model.centroids[labels]) ** 2).sum() / len(frames)
    assert model.fit["inertia"] == pytest.approx(inertia, rel=1e-9)
    assert model.fit["frames"] == 3000
    assert 1 < model.fit["iterations"] <= 100


def test_a_fit_ends_at_centroids_that_are_the_means_of_their_frames(monkeypatch):
    monkeypatch.setattr(kmeans, "_CONVERGED", 0.0)
    monkeypatch.setattr(kmeans, "_MOST_ITERATIONS", 500)
    frames = blobs(800, 6)
    model = fit(frames, 9)
    labels = brute_force(frames, model.centroids)
    means = np.stack([frames[labels == k].mean(0, dtype=np.float64) for k in range(9)])
    assert np.abs(means - model.centroids).max() < 1e-5


def test_same_seed_same_bytes_whatever_the_threads():
    frames = blobs(20_000, 24)
    fits = []
    for workers, threads in ((1, 1), (3, 2), (2, 1)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        fits.append(fit(frames, 30, seed=5, workers=workers).centroids.tobytes())
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert len(set(fits)) == 1
    assert fit(frames, 30, seed=6).centroids.tobytes() != fits[0]


def test_an_empty_cluster_moves_to_the_farthest_frame():
    frames = np.concatenate([np.zeros((50, 2)), np.ones((50, 2)), [[100.0, 100.0], [3.0, 3.0]]]).astype(np.float32)
    start = torch.tensor([[0.0, 0], [1, 1], [500, 500], [600, 600]], dtype=torch.float64)  # nothing is nearest to the last two
    data = kmeans._Frames(frames)
    centroids, labels, _ = kmeans._lloyd(data, start)
    assert np.array_equal(centroids.numpy(), [[0, 0], [1, 1], [100, 100], [3, 3]])
    assert np.array_equal(np.bincount(labels), [50, 50, 1, 1])


def test_clusters_are_never_empty_with_repeated_frames():
    frames = np.repeat(np.arange(12, dtype=np.float32)[:, None], 30, axis=0)
    model = fit(frames, 12)
    assert np.array_equal(np.sort(model.centroids[:, 0]), np.arange(12))
    assert (model.sizes == 30).all()


@pytest.mark.parametrize(
    ("frames", "clusters", "reason"),
    [
        (np.zeros((3, 2), np.float32), 4, "3 frames cannot make 4 clusters"),
        (np.zeros((300, 2), np.float32), 4, "distinct frames"),
        (np.full((300, 2), np.nan, np.float32), 4, "not finite"),
    ],
)
def test_audio_that_cannot_be_clustered_is_an_error(frames, clusters, reason):
    with pytest.raises(InputError, match=reason):
        fit(frames, clusters)


def test_the_file_holds_everything_and_is_the_same_bytes(tmp_path):
    model = fit(blobs(), 7)
    model.features = {"kind": "encoder", "layer": 9, "checkpoint": "ab12"}
    model.save(tmp_path / "a.npz")
    KMeans.load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    loaded = KMeans.load(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.array_equal(loaded.centroids, model.centroids)
    assert np.array_equal(loaded.sizes, model.sizes)
    assert (loaded.features, loaded.fit) == (model.features, model.fit)


def test_centroids_are_refused_for_other_features():
    model = KMeans(np.zeros((3, 8), np.float32), features={"kind": "encoder", "layer": 9, "checkpoint": "aa"})
    model.check({"kind": "encoder", "layer": 9, "checkpoint": "aa"}, 8, "k.npz")
    model.check(None, 8, "k.npz")
    for features, found in (
        ({"kind": "encoder", "layer": 6, "checkpoint": "aa"}, "layer = 9.*layer = 6"),
        ({"kind": "encoder", "layer": 9, "checkpoint": "bb"}, "checkpoint = aa.*checkpoint = bb"),
        ({"kind": "mfcc"}, "kind = encoder.*kind = mfcc"),
    ):
        with pytest.raises(InputError, match=found):
            model.check(features, 8, "k.npz")
    with pytest.raises(InputError, match="width 8 cannot label features of width 39"):
        model.check(None, 39, "k.npz")
