"""PLDC: numbers worked out by hand, simulations with known shifts, and properties that always hold."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import chi2
from scripts import run

from emohubert.core.errors import InputError
from emohubert.data.speaker_vectors import SpeakerVectors, from_utterances
from emohubert.evaluation.predictions import (
    DimensionPredictions,
    from_probabilities,
    read_predictions,
    write_embeddings,
    write_predictions,
)
from emohubert.evaluation.scoring import metrics
from emohubert.speakers import calibration as pldc
from emohubert.speakers.calibration import ClassCalibration, DimensionCalibration, Moments, RunningSpeaker, Settings, calibrate
from emohubert.speakers.similar_speakers import Neighbourhood, choose

PUBLISHED = {"shrinkage": "none"}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


def dimension(speakers, values, references=None, name="arousal"):
    values = np.asarray(values, dtype=np.float64)[:, None]
    references = np.zeros_like(values) if references is None else np.asarray(references, dtype=np.float64)[:, None]
    return DimensionPredictions([f"u{i}" for i in range(len(values))], list(speakers), [name], references, values)


# --- by hand ----------------------------------------------------------------------------------------------------------

# Cosines with (1, 0): A 1, B 0.8, C 0.6, D 0. Label means 2, 3, 6, 10; standard deviations 1, √2, 2, and D has one label.
TRAINING = from_utterances(["A", "B", "C", "D"], [[1, 0], [4, 3], [3, 4], [0, 1]])
SPEAKERS = list("AABBBCCD")
LABELS = np.array([1, 3, 2, 2, 5, 4, 8, 10.0])[:, None]
ROOT = math.sqrt(2)
AVERAGE = (1 + ROOT + 2) / 3


def by_hand(match, weighting="hard", k=3):
    """Speaker s (2, 0) with predictions 0, 1, 5 and speaker t (0, 5) with the one prediction 7."""
    fitted = DimensionCalibration.fit(TRAINING, SPEAKERS, LABELS, ["arousal"], Settings(match, k, weighting, **PUBLISHED))
    vectors = from_utterances(["s", "t"], [[2, 0], [0, 5]])
    result, _, _ = calibrate(fitted, vectors, dimension("ssst", [0, 1, 5, 7]))
    return result.predicted[:, 0]


def test_two_speakers_three_neighbours_matching_the_mean():
    # s: A B C → (2 + 3 + 6) / 3, mean prediction 2; t: D C B → (10 + 6 + 3) / 3
    close(by_hand("mean"), [0 - 2 + 11 / 3, 1 - 2 + 11 / 3, 5 - 2 + 11 / 3, 19 / 3])


def test_two_speakers_three_neighbours_matching_mean_and_standard_deviation():
    scale = AVERAGE / math.sqrt((4 + 1 + 9) / 3)
    close(by_hand("mean-std"), [-2 * scale + 11 / 3, -1 * scale + 11 / 3, 3 * scale + 11 / 3, 19 / 3])


def test_similarity_weights():
    # s: 1, 0.8 and 0.6 beyond D's 0 → (2 + 0.8 · 3 + 0.6 · 6) / 2.4; t: D 1, C 0.8, B 0.6 beyond A's 0
    close(by_hand("mean", "similarity"), [-2 + 8 / 2.4, -1 + 8 / 2.4, 3 + 8 / 2.4, (10 + 4.8 + 1.8) / 2.4])


def test_more_neighbours_than_speakers_are_all():
    close(by_hand("mean", k=9), [-2 + 21 / 4, -1 + 21 / 4, 3 + 21 / 4, 21 / 4])


def test_the_standard_deviation_of_one_label_is_the_average():
    fitted = DimensionCalibration.fit(TRAINING, SPEAKERS, LABELS, ["arousal"], Settings("mean-std", 1, **PUBLISHED))
    close(fitted.neighbourhood.values, [[2, 1], [3, ROOT], [6, 2], [10, AVERAGE]])


@pytest.mark.parametrize("match", ["mean", "mean-std"])
def test_constant_predictions_are_moved_and_not_scaled(match):
    fitted = DimensionCalibration.fit(TRAINING, SPEAKERS, LABELS, ["arousal"], Settings(match, 1, **PUBLISHED))
    result, _, _ = calibrate(fitted, from_utterances(["s"], [[1, 0]]), dimension("sss", [1.1, 1.1, 1.1]))
    close(result.predicted[:, 0], [2, 2, 2])  # 1.1 + 1.1 + 1.1 is not 3.3 in floating point


def test_neighbours_whose_labels_are_all_one_value():
    fitted = DimensionCalibration.fit(TRAINING, SPEAKERS, np.full((8, 1), 4.0), ["arousal"], Settings("mean-std", 2, **PUBLISHED))
    result, _, _ = calibrate(fitted, from_utterances(["s"], [[1, 0]]), dimension("sss", [0, 1, 5]))
    close(result.predicted[:, 0], [4, 4, 4])


@pytest.mark.parametrize("shrinkage", ["none", "auto"])
def test_identical_training_speakers(shrinkage):
    vectors = from_utterances(["A", "B", "C"], [[1, 2]] * 3)
    fitted = DimensionCalibration.fit(
        vectors, list("AABBCC"), np.array([1.0, 3.0] * 3)[:, None], ["arousal"], Settings(shrinkage=shrinkage)
    )
    result, estimates, _ = calibrate(fitted, from_utterances(["s"], [[1, 2]]), dimension("ss", [5, 7]))
    close(estimates.expected, [[2.0]])
    # nothing tells the speakers apart, so the neighbours are not believed; the published method moves 6 to 2
    close(result.predicted[:, 0], [5, 7] if shrinkage == "auto" else [1, 3])


def test_one_training_speaker():
    vectors = from_utterances(["A"], [[1, 2]])
    for shrinkage, expected in (("none", [1, 3]), ("auto", [5, 7])):
        fitted = DimensionCalibration.fit(vectors, list("AA"), np.array([[1.0], [3.0]]), ["arousal"], Settings(shrinkage=shrinkage))
        close(calibrate(fitted, from_utterances(["s"], [[3, 1]]), dimension("ss", [5, 7]))[0].predicted[:, 0], expected)


def shrunk(between, heard, error, within, trust=1.0, spread=0.0, kappa=0.0):
    """A calibration whose every parameter is given: training speakers at (1, 0) and (0, 1) with means 0 and 4, k = 2."""
    hood = Neighbourhood(
        SpeakerVectors(["A", "B"], np.eye(2), np.array([2, 2])),
        np.array([[0.0], [4.0]]),
        np.array([1.0]),
        False,
        2,
        "hard",
        np.array([trust]),
        np.array([spread]),
        kappa,
    )
    numbers = [np.array([v], dtype=np.float64) for v in (error, between, heard, within, 1.0)]
    return DimensionCalibration(Settings(), ["arousal"], hood, *numbers)


def correction(calibration, vector, count, predictions):
    estimates = calibration.estimate(SpeakerVectors(["s"], np.array([vector], dtype=np.float64), np.array([count])))
    return estimates, calibration.corrections(estimates, {"s": np.array(predictions, dtype=np.float64)[:, None]})["s"]


def test_shrinkage_by_the_number_of_predictions():
    # λ = (B − h τ²) / (B + ω² / n) = (2 − ½ · 1) / (2 + 3 / 4); the neighbours' mean is 2, that of the predictions 5
    _, shift = correction(shrunk(between=2, heard=0.5, error=1, within=3), [1, 1], 4, [4, 4, 6, 6])
    close(shift.strength, [6 / 11])
    close(shift.shift, [6 / 11 * (2 - 5)])
    strengths = [correction(shrunk(2, 0.5, 1, 3), [1, 1], n, [5.0] * n)[1].strength[0] for n in (1, 2, 8, 1000)]
    close(strengths, [1.5 / (2 + 3 / n) for n in (1, 2, 8, 1000)])


def test_shrinkage_when_neighbours_disagree():
    # D = 4 where 2 is usual: ρ = (1 + 4 / 2) / 2 = 3/2, γ' = ½ / (½ + ½ · 3/2) = 2/5, q = 1 + 2/5 · (2 − 1)
    estimates, shift = correction(shrunk(2, 0.5, 1, 3, trust=0.5, spread=2), [1, 1], 4, [5] * 4)
    close(estimates.disagreement, [[1.5]])
    close(estimates.expected, [[1.4]])
    close(shift.strength, [(2 - 0.5 * 1.5) / (2 + 3 / 4)])


def test_shrinkage_when_the_vector_is_a_mean_of_few_utterances():
    # R(n) = n / (n + 3): ¼ for one utterance, 2/5 for the two of the training speakers
    estimates, _ = correction(shrunk(2, 0.5, 1, 3, kappa=3), [1, 1], 1, [5])
    close(estimates.trust, [[5 / 8]])
    close(estimates.expected, [[1 + 5 / 8]])
    close(correction(shrunk(2, 0.5, 1, 3, kappa=3), [1, 1], 50, [5])[0].trust, [[1.0]])


def test_what_the_model_hears_itself_is_not_corrected():
    _, shift = correction(shrunk(between=0.5, heard=1, error=0.6, within=1), [1, 1], 4, [5] * 4)
    close(shift.strength, [0])
    _, shift = correction(shrunk(between=0.5, heard=0, error=0.6, within=0), [1, 1], 4, [5] * 4)
    close(shift.strength, [1])


def test_excess_variance():
    d = np.array([3.0, -1.0, 2.0, 0.5])
    quantile = chi2.ppf(pldc.CONFIDENCE, 4)
    close(pldc._excess_variance(d, np.full(4, 0.4)), (d @ d) / quantile - 0.4)  # equal chance: solved on paper
    chance = np.array([0.1, 2.0, 0.3, 0.0])
    between = pldc._excess_variance(d, chance)
    close((d**2 / (between + chance)).sum(), quantile)
    assert pldc._excess_variance(d, np.full(4, 5.0)) == 0  # chance explains more
    assert pldc._excess_variance(np.zeros(3), np.zeros(3)) == 0
    close(pldc._excess_variance(np.array([2.0]), np.zeros(1)), 4 / chi2.ppf(pldc.CONFIDENCE, 1))


@pytest.mark.parametrize("heard", [0.0, 0.4, 0.8])
def test_the_strength_is_the_one_with_the_least_squared_error(heard):
    """The formula's λ against the best one found by search, in a large population with every variance known."""
    rng = np.random.default_rng(5)
    count, within, error, model = 200_000, 0.5, 0.3, 0.2
    expected = rng.normal(0, 1, count)
    shift = expected + rng.normal(0, math.sqrt(error), count)
    content = rng.normal(0, math.sqrt(within), count)  # of a speaker's utterances, by chance
    labels = shift + content
    found = heard * shift + content + rng.normal(0, math.sqrt(model), count)
    between = pldc._excess_variance(expected - found, np.full(count, within))
    formula = (between - heard * error) / (between + within)
    best = minimize_scalar(lambda s: ((labels - found - s * (expected - found)) ** 2).mean(), bounds=(-1, 2), method="bounded").x
    assert formula == pytest.approx(best, abs=0.01)


def test_welford_equals_numpy():
    values = np.random.default_rng(0).normal(3, 2, (9, 2))
    running = Moments.of(values[:0])
    for n, row in enumerate(values, 1):
        running.add(row)
        for moments in (running, Moments.of(values[:n])):
            close(moments.mean, values[:n].mean(0))
            close(moments.std, values[:n].std(0))


# --- the choice of k and of the trust ---------------------------------------------------------------------------------


def test_leave_one_speaker_out_by_loops():
    """The losses that are compared, against plain loops over speakers."""
    rng = np.random.default_rng(2)
    vectors = from_utterances([f"s{i:02}" for i in range(9)], rng.normal(size=(9, 3)))
    values = vectors.vectors[:, :1] + 0.3 * rng.normal(size=(9, 1))
    centres = (values.sum(0) - values) / 8
    hood, tried, _ = choose(vectors, values, values.mean(0), centres, lambda e, order: (values[order] - e) ** 2)
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    for entry in tried:
        k = entry["k"]
        nearest, spread = np.zeros(9), np.zeros(9)
        for i in range(9):
            others = sorted((j for j in range(9) if j != i), key=lambda j: -unit[i] @ unit[j])[:k]
            nearest[i], spread[i] = values[others, 0].mean(), values[others, 0].var()
        rho = (1 + (spread / spread.mean() if spread.mean() > 0 else 1)) / 2
        losses = []
        for trust in np.linspace(0, 1, 11):
            local = trust / (trust + (1 - trust) * rho)
            q = centres[:, 0] + local * (nearest - centres[:, 0])
            losses.append(((values[:, 0] - q) ** 2).mean())
        close(entry["loss"], min(losses) / losses[0])
        close(entry["trust"], [np.linspace(0, 1, 11)[int(np.argmin(np.round(losses, 12)))]])
    assert hood.k == min(tried, key=lambda entry: entry["loss"])["k"]


def test_neighbours_that_say_nothing_are_rarely_believed():
    believed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        vectors = from_utterances([f"s{i:02}" for i in range(20)], rng.normal(size=(20, 4)))
        labels = np.repeat(rng.normal(size=20), 4) + 0.1 * rng.normal(size=80)
        fitted = DimensionCalibration.fit(vectors, np.repeat(vectors.ids, 4), labels[:, None], ["arousal"])
        believed += fitted.neighbourhood.trust[0] > 0
    assert believed <= 13  # a tenth is expected; 14 of 60 would have a chance of 1 in 500


def test_fixed_k_is_kept_and_trust_is_still_chosen():
    rng = np.random.default_rng(0)
    vectors = from_utterances([f"s{i:02}" for i in range(15)], rng.normal(size=(15, 3)))
    labels = np.repeat(vectors.vectors[:, :1], 5, axis=0) + 0.1 * rng.normal(size=(75, 1))
    fitted = DimensionCalibration.fit(vectors, np.repeat(vectors.ids, 5), labels, ["arousal"], Settings(top_k=3))
    assert fitted.neighbourhood.k == 3 and [t["k"] for t in fitted.tried] == [3]
    assert fitted.neighbourhood.trust[0] > 0.5 and fitted.p_values == [0.01]


# --- simulations ------------------------------------------------------------------------------------------------------


def simulate(seed, shift, training=30, unseen=10, utterances=20, heard=0.0, latent=2, width=16):
    """Speakers with a latent voice (latent); their labels are shifted by its first coordinate, their embeddings show it noisily.

    Returns two (speakers, embeddings, labels, predictions); predictions follow the content, and the shift as far as `heard`.
    """
    rng = np.random.default_rng(seed)
    mix, common = rng.normal(size=(latent, width)), 3 * rng.normal(size=width)

    def group(count, name):
        voices = rng.normal(size=(count, latent))
        speakers = np.repeat([f"{name}{i:03}" for i in range(count)], utterances)
        embeddings = common + np.repeat(voices @ mix, utterances, axis=0) + rng.normal(size=(len(speakers), width))
        shifts = shift * np.repeat(voices[:, 0], utterances)
        content = rng.normal(size=len(speakers))
        return speakers.tolist(), embeddings, shifts + content, content + 0.5 * rng.normal(size=len(speakers)) + heard * shifts

    return group(training, "train"), group(unseen, "test")


def calibrated(seed, settings=None, **kwargs):
    """(overall CCC, mean CCC over speakers) before and after."""
    (speakers, embeddings, labels, _), (unseen, new, references, predicted) = simulate(seed, **kwargs)
    fitted = DimensionCalibration.fit(from_utterances(speakers, embeddings), speakers, labels[:, None], ["arousal"], settings or Settings())
    predictions = dimension(unseen, predicted, references)
    result, _, _ = calibrate(fitted, from_utterances(unseen, new), predictions)

    def scores(values):
        members = [np.array(unseen) == name for name in sorted(set(unseen))]
        return metrics.ccc(references, values), np.mean([metrics.ccc(references[m], values[m]) for m in members])

    return *scores(predicted), *scores(result.predicted[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [Settings(), Settings("mean-std"), Settings(top_k=5, weighting="similarity")], ids=str)
def test_a_known_shift_is_recovered_in_every_seed(settings):
    results = np.array([calibrated(seed, settings, shift=1.0) for seed in range(20)])
    overall, speakers = (results[:, 2:] - results[:, :2]).T
    assert (speakers > 0).all() and (overall > 0).all()
    assert speakers.mean() > 0.1 and overall.mean() > 0.18


@pytest.mark.slow
@pytest.mark.parametrize("settings", [Settings(), Settings("mean-std"), Settings(top_k=5, weighting="similarity")], ids=str)
def test_without_a_shift_next_to_nothing_changes(settings):
    results = np.array([calibrated(seed, settings, shift=0.0) for seed in range(20)])
    assert np.abs(results[:, 2] - results[:, 0]).max() < 0.01
    assert np.abs(results[:, 3] - results[:, 1]).max() < 0.01


def test_the_published_form_does_change_much_without_a_shift():
    results = np.array([calibrated(seed, Settings(shrinkage="none"), shift=0.0) for seed in range(10)])
    assert (results[:, 2] - results[:, 0]).min() < -0.02


@pytest.mark.slow
def test_a_shift_that_the_model_hears_itself_is_mostly_left_alone():
    results = np.array([calibrated(seed, shift=1.0, heard=1.0) for seed in range(15)])
    published = np.array([calibrated(seed, Settings(shrinkage="none"), shift=1.0, heard=1.0) for seed in range(15)])
    assert (results[:, 2] - results[:, 0]).mean() > -0.01
    assert (published[:, 2] - published[:, 0]).mean() < -0.03


@pytest.mark.parametrize("seed", range(3))
def test_training_predictions_choose_how_far_to_go(seed):
    """The published formulas, on a model that hears nothing of the speakers and on one that hears everything."""
    gains = {}
    for heard in (0.0, 1.0):
        (speakers, embeddings, labels, predicted), _ = simulate(seed, shift=1.0, heard=heard)
        predictions = dimension(speakers, predicted, labels)
        vectors = from_utterances(speakers, embeddings)
        fitted = pldc.choose_by_metric(vectors, speakers, labels[:, None], ["arousal"], Settings(shrinkage="none"), predictions)
        scores = {entry["strength"]: 0.0 for entry in fitted.tried}
        for entry in fitted.tried:
            scores[entry["strength"]] = max(scores[entry["strength"]], entry["score"])
        assert scores[fitted.strength] == pytest.approx(max(scores.values()), abs=1e-9)
        gains[heard] = fitted.strength, scores[fitted.strength] - scores[0.0]
    assert gains[0.0][0] >= 0.75 and gains[0.0][1] > 0.15
    assert gains[1.0][0] <= 0.25 and gains[1.0][1] < 0.01


# --- classes ----------------------------------------------------------------------------------------------------------

CLASSES = ["angry", "happy", "sad"]


def test_prior_ratio_by_hand():
    # A: 3 angry, 1 happy; B: 1 sad, 1 happy; C: 2 sad. π₀ = 3/8, 2/8, 3/8; α = 1
    vectors = from_utterances(["A", "B", "C"], [[1, 0], [4, 3], [0, 1]])
    emotions = ["angry", "angry", "angry", "happy", "sad", "happy", "sad", "sad"]
    fitted = ClassCalibration.fit(vectors, list("AAAABBCC"), emotions, CLASSES, Settings("prior", 2, **PUBLISHED))
    base = np.array([3, 2, 3]) / 8
    a, b = (np.array([3, 1, 0]) + base) / 5, (np.array([0, 1, 1]) + base) / 3
    close(fitted.neighbourhood.values[:2], [a, b])
    posteriors = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    predictions = from_probabilities(["1", "2"], ["s", "s"], ["-", "-"], CLASSES, posteriors)
    result, _, _ = calibrate(fitted, from_utterances(["s"], [[2, 0]]), predictions)
    expected = posteriors[0] * ((a + b) / 2) / base
    close(result.probabilities, [expected / expected.sum(), [1, 0, 0]])
    assert result.predicted == ["happy", "angry"]


def test_classes_that_no_training_speaker_has_keep_their_ratio():
    vectors = from_utterances(["A", "B"], np.eye(2))
    fitted = ClassCalibration.fit(vectors, list("AB"), ["angry", "happy"], CLASSES, Settings("prior", 1, smoothing=0.0, **PUBLISHED))
    # A has no happy label at all, and no smoothing: happy becomes impossible, sad is unknown and stays
    posteriors = np.array([[0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])
    predictions = from_probabilities(["1", "2"], ["s", "s"], ["-", "-"], CLASSES, posteriors)
    result, _, _ = calibrate(fitted, from_utterances(["s"], [[1, 0.1]]), predictions)
    close(result.probabilities, [[0.4, 0, 0.6], [0, 1, 0]])


def test_expectation_maximisation_one_step_by_hand():
    base, posteriors = np.array([0.5, 0.5]), np.array([[0.8, 0.2], [0.6, 0.4]])
    close(pldc.expectation_maximisation(posteriors, base, base, most=1), [0.7, 0.3])
    second = [0.8 * 1.4 / (0.8 * 1.4 + 0.2 * 0.6), 0.6 * 1.4 / (0.6 * 1.4 + 0.4 * 0.6)]
    close(pldc.expectation_maximisation(posteriors, base, base, most=2)[0], np.mean(second))
    close(pldc.expectation_maximisation(posteriors, base, np.array([0.25, 0.75]), 2.0, most=1), [(1.4 + 0.5) / 4, (0.6 + 1.5) / 4])


def test_expectation_maximisation_finds_the_likeliest_frequencies():
    """Against a search over all frequencies of two classes, and against the truth in a large sample."""
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.15
    x = np.where(truth, 1.0, -1.0) + rng.normal(size=len(truth))
    first = 1 / (1 + np.exp(-2 * x))  # exact posterior under equal frequencies
    posteriors = np.stack([first, 1 - first], axis=1)
    prior = pldc.expectation_maximisation(posteriors, np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert prior[0] == pytest.approx(truth.mean(), abs=0.01)
    search = minimize_scalar(
        lambda a: -np.log(a * first + (1 - a) * (1 - first)).sum(), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    )
    assert prior[0] == pytest.approx(search.x, abs=1e-6)


def simulate_classes(seed, shift, training=30, unseen=10, utterances=20, width=12):
    """Speakers whose class frequencies follow their voice; posteriors are exact for equal frequencies."""
    rng = np.random.default_rng(seed)
    mix, common = rng.normal(size=(3, width)), 3 * rng.normal(size=width)

    def group(count, name):
        voices = rng.normal(size=(count, 3))
        frequencies = np.exp(shift * voices) / np.exp(shift * voices).sum(1, keepdims=True)
        speakers = np.repeat([f"{name}{i:03}" for i in range(count)], utterances).tolist()
        embeddings = common + np.repeat(voices @ mix, utterances, axis=0) + rng.normal(size=(len(speakers), width))
        truth = np.concatenate([rng.choice(3, utterances, p=p) for p in frequencies])
        logits = rng.normal(size=(len(speakers), 3)) + np.eye(3)[truth]
        posteriors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return speakers, embeddings, [CLASSES[i] for i in truth], posteriors

    return group(training, "train"), group(unseen, "test")


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["neighbours", "em"])
def test_class_frequencies_that_follow_the_voice_are_recovered(prior):
    gains, losses = [], []
    for seed in range(10):
        (speakers, embeddings, emotions, _), (unseen, new, references, posteriors) = simulate_classes(seed, shift=1.5)
        fitted = ClassCalibration.fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, Settings("prior", prior=prior))
        before = from_probabilities(range(len(unseen)), unseen, references, CLASSES, posteriors)
        after, _, _ = calibrate(fitted, from_utterances(unseen, new), before)
        gains.append(metrics.weighted_accuracy(references, after.predicted) - metrics.weighted_accuracy(references, before.predicted))
        truth = [CLASSES.index(e) for e in references], np.arange(len(references))
        losses.append(np.log(before.probabilities[truth[::-1]]).mean() - np.log(after.probabilities[truth[::-1]]).mean())
    assert min(gains) > 0 and np.mean(gains) > 0.05
    assert max(losses) < 0.05 and np.mean(losses) < -0.1


@pytest.mark.parametrize("prior", ["neighbours", "em"])
def test_equal_class_frequencies_stay(prior):
    for seed in range(10):
        (speakers, embeddings, emotions, _), (unseen, new, references, posteriors) = simulate_classes(seed, shift=0.0)
        fitted = ClassCalibration.fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, Settings("prior", prior=prior))
        before = from_probabilities(range(len(unseen)), unseen, references, CLASSES, posteriors)
        after, _, _ = calibrate(fitted, from_utterances(unseen, new), before)
        assert abs(pldc.mean_score(after) - pldc.mean_score(before)) < (0.01 if prior == "neighbours" else 0.03)


# --- what always holds ------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-5, 5, allow_nan=False))


@st.composite
def situations(draw):
    """Few speakers, with zero vectors, equal vectors, constant labels and single utterances among them."""
    training, unseen, dims = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 2))

    def group(count, name, most):
        speakers = [f"{name}{i}" for i in range(count) for _ in range(draw(st.integers(1, most)))]
        vectors = np.array([[draw(NUMBERS) for _ in range(2)] for _ in speakers])
        values = np.array([[draw(NUMBERS) for _ in range(dims)] for _ in speakers])
        return speakers, vectors, values

    return group(training, "a", 3), group(unseen, "b", 4), draw(st.randoms(use_true_random=False))


CHOICES = st.builds(
    dict,
    top_k=st.sampled_from([None, 1, 2, 9]),
    weighting=st.sampled_from(["hard", "similarity"]),
    shrinkage=st.sampled_from(["auto", "none"]),
)


@pytest.mark.slow
@given(situations(), CHOICES, st.sampled_from(["mean", "mean-std"]))
@settings(max_examples=60, deadline=None)
def test_dimensions_are_always_numbers_and_order_does_not_matter(situation, choices, match):
    (speakers, embeddings, labels), (unseen, new, predicted), random = situation
    names = [f"d{i}" for i in range(labels.shape[1])]

    def result(order, new_order):
        fitted = DimensionCalibration.fit(
            from_utterances([speakers[i] for i in order], embeddings[order]),
            [speakers[i] for i in order],
            labels[order],
            names,
            Settings(match, **choices),
        )
        predictions = DimensionPredictions(
            list(new_order), [unseen[i] for i in new_order], names, 0 * predicted[new_order], predicted[new_order]
        )
        out, estimates, _ = calibrate(fitted, from_utterances(predictions.speakers, new[new_order]), predictions)
        assert np.isfinite(estimates.expected).all() and np.isfinite(estimates.disagreement).all()
        return out.predicted[np.argsort(new_order)]

    straight = result(np.arange(len(speakers)), np.arange(len(unseen)))
    assert np.isfinite(straight).all()
    order, new_order = list(range(len(speakers))), list(range(len(unseen)))
    random.shuffle(order)
    random.shuffle(new_order)
    np.testing.assert_allclose(result(np.array(order), np.array(new_order)), straight, rtol=1e-6, atol=1e-6)


@given(situations(), CHOICES, st.sampled_from(["neighbours", "em"]), st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_probabilities_always_sum_to_one(situation, choices, prior, smoothing):
    (speakers, embeddings, labels), (unseen, new, predicted), _ = situation
    emotions = [CLASSES[int(abs(v) * 7) % 3] for v in labels[:, 0]]
    posteriors = np.stack([np.abs(predicted[:, 0]), np.ones(len(unseen)), np.abs(predicted[:, -1])], axis=1)
    posteriors /= posteriors.sum(1, keepdims=True)
    fitted = ClassCalibration.fit(
        from_utterances(speakers, embeddings), speakers, emotions, CLASSES, Settings("prior", prior=prior, smoothing=smoothing, **choices)
    )
    predictions = from_probabilities(range(len(unseen)), unseen, ["-"] * len(unseen), CLASSES, posteriors)
    out, _, _ = calibrate(fitted, from_utterances(unseen, new), predictions)
    assert (out.probabilities >= 0).all()
    close(out.probabilities.sum(1), 1)


def test_rounding_makes_no_negative_frequency():
    """A class that no neighbour has has the frequency 0; it once came out as −8e-17."""
    speakers, emotions = ["a0", "a1", "a1", "a2", "a2", "a2"], [CLASSES[i] for i in (0, 0, 1, 0, 0, 0)]
    embeddings = np.array([[0, 0], [0, 0], [1, 1], [0, 0], [0, 1], [1, 1]], dtype=float)
    settings = Settings("prior", weighting="similarity", shrinkage="none", smoothing=0.0)
    fitted = ClassCalibration.fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, settings)
    assert (fitted.estimate(from_utterances(["b"], np.array([[-0.5, 0.0]]))).expected >= 0).all()


def test_speakers_without_labels_are_named_and_left_out():
    labels = np.array([[1.0, 2.0], [3.0, np.nan], [2.0, 1.0], [0.0, 1.0]])
    vectors = from_utterances(["a", "b", "c", "x"], np.eye(4))
    fitted = DimensionCalibration.fit(vectors, ["a", "b", "c", "y"], labels, ["arousal", "valence"])
    assert fitted.neighbourhood.speakers.ids == ["a", "c"]
    assert fitted.left_out == {"b": "no label in arousal or valence", "x": "no training utterance", "y": "no vector"}
    with pytest.raises(InputError, match="no training speaker can be used"):
        DimensionCalibration.fit(vectors, ["b"], labels[1:2], ["arousal", "valence"])


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="for classes"):
        DimensionCalibration.fit(TRAINING, SPEAKERS, LABELS, ["arousal"], Settings("prior"))
    with pytest.raises(InputError, match="for dimensions"):
        ClassCalibration.fit(TRAINING, SPEAKERS, ["sad"] * 8, CLASSES, Settings("mean"))
    for wrong in (
        {"match": "median"},
        {"top_k": 0},
        {"smoothing": -1.0},
        {"smoothing": math.nan},
        {"shrinkage": "some"},
        {"weighting": "no"},
    ):
        with pytest.raises(InputError):
            Settings(**wrong)


# --- one utterance at a time ------------------------------------------------------------------------------------------


def fitted_on(seed, **kwargs):
    (speakers, embeddings, labels, _), (unseen, new, references, predicted) = simulate(seed, shift=1.0, **kwargs)
    fitted = DimensionCalibration.fit(from_utterances(speakers, embeddings), speakers, labels[:, None], ["arousal"], Settings("mean-std"))
    result, _, corrections = calibrate(fitted, from_utterances(unseen, new), dimension(unseen, predicted, references))
    return fitted, unseen, new, predicted, result, corrections


def test_a_running_speaker_ends_where_the_whole_file_does():
    fitted, unseen, new, predicted, result, corrections = fitted_on(0)
    members = [i for i, name in enumerate(unseen) if name == "test004"]
    running = RunningSpeaker(fitted)
    outputs = [running.add(new[i], predicted[i : i + 1]) for i in members]
    close(running.correction()(predicted[members, None]), result.predicted[members])
    close(outputs[-1], result.predicted[members[-1]])
    close(running.correction().shift, corrections["test004"].shift)


def test_before_and_after_the_first_utterance_next_to_nothing_changes():
    fitted, _, new, predicted, _, _ = fitted_on(0)
    running = RunningSpeaker(fitted)
    close(running.correction()(np.array([[0.3]])), [[0.3]])
    lone = running.add(new[0], predicted[:1])
    assert fitted.within[0] > fitted.between[0]
    assert running.correction().strength[0] <= 0.5
    assert abs(lone[0] - predicted[0]) <= 0.5 * abs(fitted.estimate(from_utterances(["s"], new[:1])).expected[0, 0] - predicted[0]) + 1e-12


def test_without_any_predictions_a_model_that_hears_no_speaker_is_assumed():
    (speakers, embeddings, labels, _), _ = simulate(0, shift=1.0)
    fitted = DimensionCalibration.fit(from_utterances(speakers, embeddings), speakers, labels[:, None], ["arousal"])
    close(fitted.heard, [0])
    assert fitted.within[0] == pytest.approx(1.0, abs=0.1)  # of the simulated labels within a speaker
    assert fitted.between[0] > 0.5


def test_a_running_speaker_of_classes():
    (speakers, embeddings, emotions, _), (unseen, new, _, posteriors) = simulate_classes(0, shift=1.5)
    for prior in ("neighbours", "em"):
        fitted = ClassCalibration.fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, Settings("prior", prior=prior))
        predictions = from_probabilities(range(len(unseen)), unseen, ["-"] * len(unseen), CLASSES, posteriors)
        result, _, _ = calibrate(fitted, from_utterances(unseen, new), predictions)
        running = RunningSpeaker(fitted)
        close(running.correction()(posteriors[:1]), posteriors[:1])
        for i in range(20):
            out = running.add(new[i], posteriors[i])
        close(out, result.probabilities[19])


def test_a_running_speaker_refuses_what_does_not_fit():
    running = RunningSpeaker(fitted_on(0)[0])
    with pytest.raises(InputError, match="checkpoint"):
        running.add(np.zeros(3), np.zeros(1))
    with pytest.raises(InputError, match="not finite"):
        running.add(np.full(16, np.nan), np.zeros(1))


# --- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_again(tmp_path):
    fitted, unseen, new, predicted, result, _ = fitted_on(0)
    (speakers, embeddings, emotions, _), (others, fresh, _, posteriors) = simulate_classes(0, shift=1.5)
    classes = ClassCalibration.fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, Settings("prior", prior="em"))
    for calibration, vectors, values in (
        (fitted, from_utterances(unseen, new), predicted[:, None]),
        (classes, from_utterances(others, fresh), posteriors),
    ):
        pldc.save(tmp_path / "c.npz", calibration)
        again = pldc.load(tmp_path / "c.npz")
        seen = dict(zip(vectors.ids, pldc.by_speaker(vectors.ids, unseen, values), strict=True))
        assert again.settings == calibration.settings and again.names == calibration.names
        before, after = (c.corrections(c.estimate(vectors), seen) for c in (calibration, again))
        for name in vectors.ids:
            np.testing.assert_array_equal(before[name](values[:3]), after[name](values[:3]))


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("code from a file has run",))


@pytest.mark.parametrize("name", ["ids", "values", "description"])
def test_nothing_in_a_calibration_file_runs(tmp_path, name):
    pldc.save(tmp_path / "c.npz", fitted_on(0)[0])
    arrays = dict(np.load(tmp_path / "c.npz"))
    arrays[name] = np.array([Hostile()], dtype=object)
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(InputError, match="c.npz: does not hold a calibration"):
        pldc.load(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("values", np.zeros((2, 2))),
        ("trust", np.zeros(1)),
        ("shift_within", np.zeros(5)),
        ("vectors", np.full((30, 16), np.nan)),
        ("counts", np.zeros(30, int)),
        ("description", np.array("no JSON")),
        ("description", np.array("{}")),
        ("description", np.array(json.dumps({"kind": "dimensions", "settings": {"match": "__import__"}}))),
    ],
)
def test_calibration_files_that_are_not_whole_are_refused(tmp_path, name, value):
    pldc.save(tmp_path / "c.npz", fitted_on(0)[0])
    arrays = dict(np.load(tmp_path / "c.npz"))
    arrays[name] = value
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(InputError, match="c.npz"):
        pldc.load(tmp_path / "c.npz")


# --- the program ------------------------------------------------------------------------------------------------------


def write_split(folder, name, speakers, emotions=None, dimensions=None):
    """A manifest split without audio; returns the utterances' ids."""
    folder.mkdir(exist_ok=True)
    ids = [f"{speaker}/{name}{i:04}" for i, speaker in enumerate(speakers)]
    (folder / f"{name}.tsv").write_text("/nowhere\n" + "".join(f"{i}.wav\t16000\n" for i in ids))
    (folder / f"{name}.spk").write_text("".join(f"{s}\n" for s in speakers))
    if emotions is not None:
        (folder / f"{name}.emo").write_text("".join(f"{e}\n" for e in emotions))
    if dimensions is not None:
        (folder / f"{name}.dim").write_text("arousal\n" + "".join(f"{v:.9g}\n" for v in dimensions))
    return ids


@pytest.fixture
def files(tmp_path):
    """Simulated files of both kinds: {"dimensions": arguments, "classes": arguments}."""
    arguments = {}
    (speakers, embeddings, labels, own), (unseen, new, references, predicted) = simulate(4, shift=1.0, training=20, unseen=6, utterances=8)
    ids = write_split(tmp_path / "d", "train", speakers, dimensions=labels)
    new_ids = write_split(tmp_path / "d", "test", unseen, dimensions=references)
    write_embeddings(tmp_path / "d" / "train.npz", ids, speakers, embeddings)
    write_embeddings(tmp_path / "d" / "test.npz", new_ids, unseen, new)
    columns = [x[:, None] for x in (references, predicted)]
    write_predictions(tmp_path / "d" / "test_predictions.tsv", DimensionPredictions(new_ids, unseen, ["arousal"], *columns))
    columns = [x[:, None] for x in (labels, own)]
    write_predictions(tmp_path / "d" / "train_predictions.tsv", DimensionPredictions(ids, speakers, ["arousal"], *columns))
    (speakers, embeddings, emotions, _), (unseen, new, references, posteriors) = simulate_classes(
        3, 1.5, training=14, unseen=6, utterances=8
    )
    ids, new_ids = write_split(tmp_path / "c", "train", speakers, emotions), write_split(tmp_path / "c", "test", unseen, references)
    write_embeddings(tmp_path / "c" / "train.npz", ids, speakers, embeddings)
    write_embeddings(tmp_path / "c" / "test.npz", new_ids, unseen, new)
    write_predictions(tmp_path / "c" / "test_predictions.tsv", from_probabilities(new_ids, unseen, references, CLASSES, posteriors))
    for kind in "dc":
        folder = tmp_path / kind
        arguments[kind] = {
            "--train-manifest": folder / "train",
            "--train-embeddings": folder / "train.npz",
            "--test-embeddings": folder / "test.npz",
            "--predictions": folder / "test_predictions.tsv",
            "--bootstrap": 50,
        }
    return arguments


def run_calibrate(arguments, *more):
    return run("tools/calibrate.py", *(x for pair in arguments.items() for x in pair), *more)


def test_program_writes_what_the_contract_names(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_calibrate(files["d"], "--test-manifest", tmp_path / "d" / "test", out) == 0
    printed = capsys.readouterr().out
    before, after = (json.loads((out / name).read_text()) for name in ("metrics_before.json", "metrics.json"))
    assert after["dims"]["arousal"]["speaker_ccc_mean"] > before["dims"]["arousal"]["speaker_ccc_mean"]
    result, original = read_predictions(out / "predictions.tsv"), read_predictions(files["d"]["--predictions"])
    assert result.ids == original.ids and metrics.ccc(result.references[:, 0], result.predicted[:, 0]) == pytest.approx(
        after["dims"]["arousal"]["ccc"], abs=1e-7
    )
    assert {p.name for p in (out / "figures").glob("*.png")} == {
        "before_after_CCC_of_arousal.png",
        "gain.png",
        "nearest_speakers_arousal.png",
    }
    report = json.loads((out / "calibration.json").read_text())
    rows = (out / "speakers.tsv").read_text().splitlines()
    assert len(rows) == 7
    worse = [line.split("\t") for line in (out / "worse_speakers.tsv").read_text().splitlines()[1:]]
    expected = sorted(s for s in before["per_speaker"] if ccc_of(after, s) < ccc_of(before, s) - 1e-9)
    assert sorted(row[0] for row in worse) == expected == sorted(row["speaker"] for row in report["worse"])
    assert "no speaker was made worse" in printed if not expected else all(name in printed for name in expected)
    curve = report["gain"]["curve"]
    assert [point["utterances"] for point in curve] == [1, 2, 4, 8]
    assert curve[-1]["scores"][0] == pytest.approx(report["scores"]["CCC of arousal"]["after"], abs=1e-9)


def ccc_of(scores, speaker):
    return scores["per_speaker"][speaker]["dims"]["arousal"]["ccc"]


@pytest.mark.parametrize("more", [[], ["--prior", "em"], ["--shrinkage", "none", "--top-k", "3", "--weighting", "similarity"]], ids=str)
def test_program_with_classes(files, tmp_path, more):
    out = tmp_path / "out"
    assert run_calibrate(files["c"], *more, out) == 0
    result = read_predictions(out / "predictions.tsv")
    np.testing.assert_allclose(result.probabilities.sum(1), 1, atol=1e-7)
    before, after = (json.loads((out / name).read_text()) for name in ("metrics_before.json", "metrics.json"))
    assert after["WA"] > before["WA"]
    assert (out / "figures" / "nearest_speakers.png").is_file() and (out / "figures" / "before_after_UA.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["d", "c"])
def test_test_labels_never_matter(files, tmp_path, kind):
    """References replaced by garbage: the same predictions and the same calibration, byte for byte."""
    path = files[kind]["--predictions"]
    assert run_calibrate(files[kind], tmp_path / "clean") == 0
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    rng = np.random.default_rng(0)
    for row in rows[1:]:
        row[2] = rng.choice([*CLASSES, "-"]) if kind == "c" else rng.choice(["nan", "1e9", "-123"])
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    assert run_calibrate(files[kind], tmp_path / "garbage") == 0
    clean, garbage = (read_predictions(tmp_path / name / "predictions.tsv") for name in ("clean", "garbage"))
    np.testing.assert_array_equal(pldc.values_of(clean), pldc.values_of(garbage))
    assert np.mean(pldc.values_of(clean) != pldc.values_of(read_predictions(path))) > 0.5  # it was calibrated at all
    assert (tmp_path / "clean" / "calibration.npz").read_bytes() == (tmp_path / "garbage" / "calibration.npz").read_bytes()


def test_predictions_without_any_reference(files, tmp_path):
    path = files["d"]["--predictions"]
    predictions = read_predictions(path)
    predictions.references[:] = np.nan
    write_predictions(path, predictions)
    assert run_calibrate(files["d"], tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == 0
    assert len((tmp_path / "out" / "worse_speakers.tsv").read_text().splitlines()) == 1


@pytest.mark.slow
def test_second_run_skips_and_other_settings_do_not(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_calibrate(files["d"], out) == 0
    first, contents = capsys.readouterr().out, {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    times = {p: p.stat().st_mtime_ns for p in contents}
    assert run_calibrate(files["d"], out) == 0
    assert times == {p: p.stat().st_mtime_ns for p in contents}
    assert capsys.readouterr().out.splitlines()[:3] == first.splitlines()[:3]
    assert run_calibrate(files["d"], "--overwrite", out) == 0
    assert contents == {p: p.read_bytes() for p in contents}  # same settings, same bytes
    assert run_calibrate(files["d"], "--match", "mean-std", out) == 0
    assert contents[out / "calibration.json"] != (out / "calibration.json").read_bytes()


def test_program_with_training_predictions(files, tmp_path):
    train = ["--train-predictions", tmp_path / "d" / "train_predictions.tsv"]
    assert run_calibrate(files["d"], *train, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert report["strength"] == max(report["tried"], key=lambda t: t["score"])["strength"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train-manifest": "nowhere/train"}, "no such manifest directory"),
        ({"--train-embeddings": "missing.npz"}, "missing.npz: no such file"),
        ({"--match": "prior"}, "is for classes"),
        ({"--top-k": "0"}, "neither auto nor"),
        ({"--smoothing": "-1"}, "smoothing"),
        ({"--train-embeddings": "OTHER"}, "holds none of the"),
        ({"--test-embeddings": "OTHER"}, "holds none of the"),
        ({"--test-embeddings": "WIDE"}, "width 3"),
        ({"--test-embeddings": "PART"}, "no embedding of the speaker “test004” (2 such speakers)"),
        ({"--test-embeddings": "SWAPPED"}, "is of the speaker"),
        ({"--train-manifest": "CLASSES"}, "has no dimension arousal"),
        ({"--train-predictions": "CLASSES"}, "not of arousal"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(files, tmp_path, capsys, change, message):
    predictions = read_predictions(files["d"]["--predictions"])
    ids, speakers = predictions.ids, predictions.speakers
    write_embeddings(tmp_path / "other.npz", ["x"], ["y"], np.zeros((1, 16)))
    write_embeddings(tmp_path / "wide.npz", ids, speakers, np.ones((len(ids), 3)))
    write_embeddings(tmp_path / "swapped.npz", ids, speakers[::-1], np.ones((len(ids), 16)))
    part = [i for i, name in enumerate(speakers) if name < "test004"]
    part = [[x[i] for i in part] for x in (ids, speakers)]
    write_embeddings(tmp_path / "part.npz", *part, np.ones((len(part[0]), 16)))
    places = {
        "PART": tmp_path / "part.npz",
        "OTHER": tmp_path / "other.npz",
        "WIDE": tmp_path / "wide.npz",
        "SWAPPED": tmp_path / "swapped.npz",
    }
    for option, value in change.items():
        where = {"--train-manifest": tmp_path / "c" / "train", "--train-predictions": tmp_path / "c" / "test_predictions.tsv"}
        files["d"][option] = where[option] if value == "CLASSES" else places.get(value, value)
    assert run_calibrate(files["d"], tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out" / "predictions.tsv").exists()


@pytest.mark.slow
def test_only_the_training_splits_embeddings_are_used(files, tmp_path):
    """A file with every utterance of the corpus, test speakers included, gives what the training split's own file gives."""
    assert run_calibrate(files["d"], tmp_path / "own") == 0
    arrays = [dict(np.load(files["d"][name])) for name in ("--train-embeddings", "--test-embeddings")]
    both = {name: np.concatenate([a[name] for a in arrays]) for name in ("ids", "speakers", "embeddings")}
    write_embeddings(tmp_path / "all.npz", both["ids"], both["speakers"], both["embeddings"])
    files["d"]["--train-embeddings"] = files["d"]["--test-embeddings"] = tmp_path / "all.npz"
    assert run_calibrate(files["d"], tmp_path / "all") == 0
    assert (tmp_path / "own" / "predictions.tsv").read_bytes() == (tmp_path / "all" / "predictions.tsv").read_bytes()


@pytest.mark.slow
def test_ids_that_are_not_the_manifests_are_taken_by_speaker(files, tmp_path):
    assert run_calibrate(files["d"], tmp_path / "own") == 0
    arrays = dict(np.load(files["d"]["--train-embeddings"]))
    write_embeddings(tmp_path / "renamed.npz", [f"x{i}" for i in range(len(arrays["ids"]))], arrays["speakers"], arrays["embeddings"])
    files["d"]["--train-embeddings"] = tmp_path / "renamed.npz"
    assert run_calibrate(files["d"], tmp_path / "renamed") == 0
    assert (tmp_path / "own" / "predictions.tsv").read_bytes() == (tmp_path / "renamed" / "predictions.tsv").read_bytes()


@pytest.mark.slow
def test_the_size_of_msp_podcast():
    """1 409 training speakers: chosen, permutations and all, in well under a minute."""
    import time

    (speakers, embeddings, labels, _), _ = simulate(0, shift=1.0, training=1409, unseen=1, utterances=10)
    start = time.monotonic()
    fitted = DimensionCalibration.fit(from_utterances(speakers, embeddings), speakers, np.repeat(labels[:, None], 3, axis=1), list("avd"))
    assert time.monotonic() - start < 60
    assert (fitted.neighbourhood.trust > 0.5).all()
