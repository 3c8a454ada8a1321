"""Figures: nothing cut off, nothing overlapping, colours told apart, same bytes; curves read from fairseq's own logs."""

import itertools
import logging

import numpy as np
import pytest
from fairseq.logging.progress_bar import JsonProgressBar
from matplotlib.text import Text

from emohubert.core.errors import InputError
from emohubert.core.plotting import COLOURS, save_figure
from emohubert.evaluation import figures, metrics
from emohubert.report import corpus_figures
from emohubert.training.curves import chosen_update, read_training_log

LONG = ["anger", "boredom", "a very long class name indeed", "$x_1$", "happiness", "neutral", "sadness", "ärger_ü"]

# Simulated dichromacy, Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    t = xyz / np.array([0.9505, 1, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_by_every_reader(vision):
    seen = [_lab(np.asarray(VISION[vision]) @ _linear(c)) for c in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12  # ΔE; 2.3 is just noticeable


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that draws a figure and checks that each of its texts lies inside the picture and that no labels of one kind overlap."""
    kept = []

    def keep(figure, path, **options):
        kept.append((figure, options))
        return save_figure(figure, path, **options)

    for module in (figures, corpus_figures):
        monkeypatch.setattr(module, "save_figure", keep)

    def draw(function, *args, **kwargs):
        path = function(tmp_path / "figure.png", *args, **kwargs)
        assert path.read_bytes().startswith(b"\x89PNG")
        figure, options = kept.pop()
        renderer = figure.canvas.get_renderer()
        picture = figure.bbox if not options else figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
        axis_list = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        outside = {t.label1 for axis in axis_list for t in set(axis.get_major_ticks()) - set(axis._update_ticks())}  # not drawn
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in outside]
        assert texts
        for text in texts:
            box = text.get_window_extent(renderer)
            inside = box.x0 >= picture.x0 - 1 and box.y0 >= picture.y0 - 1 and box.x1 <= picture.x1 + 1 and box.y1 <= picture.y1 + 1
            assert inside, f"“{text.get_text()}” is cut off"
        for axes in figure.axes:
            for axis, side in ((axes.xaxis, 0), (axes.yaxis, 1)):
                labels = [t for t in axis.get_ticklabels() if t in texts and t.get_rotation() == 0]
                boxes = sorted(np.array(t.get_window_extent(renderer))[:, side].tolist() for t in labels)
                assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(boxes)), f"{[t.get_text() for t in labels]} overlap"
        return figure

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 4, 8, 12])
def test_confusion(drawn, k):
    names = [f"{LONG[i % 8]}{i // 8 or ''}" for i in range(k)]
    counts = np.random.default_rng(0).integers(0, 40, (k, k))
    counts[0] = 0  # a class without any reference
    figure = drawn(figures.confusion, counts, names)
    assert [t.get_text() for t in figure.axes[0].texts][:k] == ["–"] * k


def test_confusion_cells_are_readable(drawn):
    counts = [[i, 20 - i] for i in range(20)]
    figure = drawn(figures.confusion, np.array(counts)[:2], ["a", "b"])
    image = figure.axes[0].images[0]
    for share in np.linspace(0, 1, 51):
        luminance = np.dot([0.2126, 0.7152, 0.0722], _linear("#" + "".join(f"{int(255 * v):02x}" for v in image.cmap(share)[:3])))
        text = 0.0 if share > 0.6 else 1.0
        high, low = max(luminance, text), min(luminance, text)
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG's contrast for large text and graphics


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 12, 40, 400])
@pytest.mark.parametrize("label", ["UA", "CCC of arousal"])
def test_bars(drawn, n, label):
    values = dict(zip([f"speaker {i:03d} with a long name" for i in range(n)], np.random.default_rng(0).normal(0.3, 0.4, n), strict=True))
    values["nobody"] = float("nan")
    figure = drawn(figures.bars, values, 0.5, label)
    assert "(1 without one)" in figure.axes[0].get_title("left")


def test_bars_without_any_defined_score(drawn):
    drawn(figures.bars, {"s": float("nan")}, float("nan"), "CCC of arousal")


@pytest.mark.parametrize("n", [1, 2, 3000])
def test_scatter(drawn, n):
    reference = np.random.default_rng(0).uniform(1, 7, n)
    drawn(figures.scatter, reference, np.full(n, 4.0), "arousal", 0.0, 1.0)


@pytest.mark.parametrize("n", [1, 300])
def test_coverage(drawn, n):
    rng = np.random.default_rng(0)
    selected = metrics.risk_coverage(rng.uniform(0.3, 1, n), *rng.integers(0, 4, (2, n)), 4)
    ua, wa = drawn(figures.coverage, selected).axes[0].lines
    np.testing.assert_array_equal([ua.get_ydata(), wa.get_ydata()], [selected["UA"], selected["WA"]])
    np.testing.assert_allclose(ua.get_xdata()[-1], 100)


@pytest.mark.parametrize("groups", [1, 2, 8, 60])
def test_embedding_map_of_groups(drawn, groups):
    rng = np.random.default_rng(0)
    values = [f"speaker {i % groups:02d}" for i in range(150)]
    figure = drawn(figures.embedding_map, (rng.normal(size=(150, 2)), ["component 1", "component 2"]), values, "speaker")
    entries = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(entries) == min(groups, 17)
    assert groups < 17 or entries[-1] == "44 others"
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in figure.axes[0].collections if c.get_label() in entries
    }
    assert len(looks) == len(entries)  # no two groups share colour and marker


def test_embedding_map_of_numbers(drawn):
    values = np.linspace(0, 1, 30)
    values[3] = np.nan
    projected = np.random.default_rng(0).normal(size=(30, 2)), ["component 1", "component 2"]
    drawn(figures.embedding_map, projected, values, "arousal")


def test_the_projection_is_by_eigenvectors():
    points = np.random.default_rng(0).normal(size=(60, 10)) * np.arange(1, 11)
    places, names = figures.project(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-8)
    assert names[0] == f"component 1 ({100 * values[-1] / values.sum():.0f}% of variance)"


@pytest.mark.parametrize("shape", [(3, 1), (3, 8), (5, 2), (4, 300)])
def test_projection_of_few_or_flat_points(shape):
    for points in (np.random.default_rng(0).normal(size=shape), np.ones(shape)):
        places, names = figures.project(points)
        assert places.shape == (shape[0], 2)
        assert len(names) == 2
        assert np.isfinite(places).all()


def test_same_bytes(tmp_path):
    for name in "ab":
        figures.confusion(tmp_path / f"{name}.png", [[3, 1], [0, 2]], ["a", "b"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# --- training logs ----------------------------------------------------------------------------------------------------


def fairseq_log(path, bar, epochs=4, start=1, scale=1, form="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"):
    """What fairseq's own progress bars write for a run of 10 updates an epoch, with losses `scale` · 10 / update."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(form))
    logger = logging.getLogger("fairseq.logging.progress_bar")
    level, logger.level = logger.level, logging.INFO
    logger.addHandler(handler)
    try:
        for epoch in range(start, epochs + 1):
            progress = bar([None] * 10, epoch=epoch, log_interval=5)
            for i, _ in enumerate(progress, 1):
                update = 10 * (epoch - 1) + i
                progress.log({"loss": scale * 10 / update, "num_updates": update, "lr": 0.1}, tag="train_inner", step=update)
            progress.print({"loss": scale * 10 / update, "num_updates": update, "wall": 3}, tag="train", step=update)
            valid = bar([None], epoch=epoch, prefix="valid on 'valid' subset", log_interval=5)
            ua = [0.3, 0.6, 0.5, 0.4][epoch - 1]
            valid.print(
                {"loss": 20 / update, "ua": ua, "num_updates": update, "best_ua": 0.3 if epoch == 1 else 0.6}, tag="valid", step=update
            )
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.level = level
    return path


def test_json_log(tmp_path):
    path = fairseq_log(tmp_path / "hydra_train.log", JsonProgressBar)
    curves = read_training_log(path)
    updates, losses = curves["loss"]["train"]
    assert updates.tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
    np.testing.assert_allclose(losses, 10 / updates, atol=1e-3)
    assert curves["ua"]["valid"][0].tolist() == [10, 20, 30, 40]
    assert curves["ua"]["valid"][1].tolist() == [0.3, 0.6, 0.5, 0.4]
    assert chosen_update(curves) == ("ua", 20)


def test_log_of_a_killed_and_resumed_run(tmp_path):
    path = fairseq_log(tmp_path / "hydra_train.log", JsonProgressBar, epochs=3)
    whole = path.read_text()
    path.write_text(whole[:-40])  # killed while it wrote
    fairseq_log(path, JsonProgressBar, start=3, scale=2)  # FileHandler appends
    curves = read_training_log(path)
    assert curves["ua"]["valid"][0].tolist() == [10, 20, 30, 40]
    updates, losses = curves["loss"]["train"]
    assert updates.tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
    np.testing.assert_allclose(losses, np.where(updates > 20, 20, 10) / updates, atol=1e-3)  # epoch 3 was made again: the later lines count


def test_no_curves_and_no_file(tmp_path):
    (tmp_path / "x.log").write_text('nothing\n{"epoch": broken\n{"epoch": 1}\n')
    assert read_training_log(tmp_path / "x.log") == {}
    with pytest.raises(InputError, match="cannot be read"):
        read_training_log(tmp_path / "absent.log")


def test_training_figure_shows_scores_before_other_measures(drawn):
    points = (np.array([10, 20]), np.array([1.0, 2.0]))
    names = ["features_pen", "a_loss", "loss", "accuracy_masked_0", "ccc_arousal", "ua", "lr", "only_train"]
    curves = {name: {"train": points} if name == "only_train" else {"train": points, "valid": points} for name in names}
    figure = drawn(figures.training, curves)
    assert [a.get_ylabel() for a in figure.axes] == ["loss", "accuracy_masked_0", "ccc_arousal", "ua"]


def test_training_figure(drawn, tmp_path):
    figure = drawn(figures.training, read_training_log(fairseq_log(tmp_path / "l.log", JsonProgressBar)))
    assert [a.get_ylabel() for a in figure.axes] == ["loss", "ua"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["train", "valid", "best ua"]
    in_legend = figure.legends[0].legend_handles[1].get_color()
    assert figure.axes[0].lines[1].get_color() == figure.axes[1].lines[0].get_color() == in_legend  # valid looks the same everywhere
    assert figures.training(tmp_path / "none.png", {"lr": {"train": (np.array([1]), np.array([0.1]))}}) is None
