"""What the training speakers most like a speaker say about that speaker, and how far to believe them.

A speaker's statistics (label means, standard deviations, class frequencies: the columns) are estimated from those of the k
training speakers with the highest cosine similarity, μ_k, shrunk towards those of all training speakers, c:

    q = c + γ' (μ_k − c),   γ' = γ / (γ + (1 − γ) ρ) · min(1, R(n) / R̄)

- k and γ are the values whose q is nearest to the statistics of *training* speakers left out one at a time (squared error, or
  log-loss for class frequencies). No other speaker takes part in the choice.
- Among so many k and γ, some look good by chance. The same search is run with the vectors dealt out to other speakers at
  random; unless the real result is among the best tenth, γ = 0: speakers who sound alike do not have like labels here. So it
  is unless a test of homogeneity says that the training speakers differ at all (Cochran's Q for means, χ² for frequencies).
- ρ = (1 + D / D̄) / 2 rises where the neighbours disagree: D is the weighted variance of their values, D̄ its mean over the
  training speakers left out.
- R(n) = n / (n + κ) is the reliability of a vector that is the mean of n utterances; κ is the variance of the utterances'
  embeddings within a speaker over that between speakers, R̄ the mean over the training speakers. The vector of a few
  utterances is near anyone.

Without shrinkage γ' = 1: the published method.
"""

from dataclasses import dataclass

import numpy as np

from ..data.speaker_vectors import SpeakerVectors, cosine, neighbour_weights

TRUSTS = np.linspace(0, 1, 11)
"""γ to try."""
PERMUTATIONS = 99
SIGNIFICANCE = 0.1
"""p-value up to which neighbours are believed."""
_KAPPA_LIMIT = 1e6
_TIE = 1e-9


@dataclass
class Estimates:
    """What the neighbours say about some speakers.

    Attributes:
        ids: of the speakers.
        weights: (speakers, training speakers).
        similarities: (speakers, training speakers).
        nearest: (speakers, columns) weighted averages of the neighbours' values: μ_k.
        expected: (speakers, columns) shrunk: q.
        trust: γ', (speakers, columns), or (speakers, 1) if the columns are one quantity.
        disagreement: ρ, likewise.
    """

    ids: list
    weights: np.ndarray
    similarities: np.ndarray
    nearest: np.ndarray
    expected: np.ndarray
    trust: np.ndarray
    disagreement: np.ndarray


@dataclass
class Neighbourhood:
    """Training speakers, a row of values each, and how far to trust the average of a few of them. `choose` makes one.

    Attributes:
        speakers: SpeakerVectors of the training speakers.
        values: (speakers, columns).
        centre: (columns) c.
        joint: the columns are one quantity (class frequencies) and share γ and D.
        k, weighting: of the neighbours.
        trust: γ, (columns), or (1) if joint.
        spread: D̄, likewise.
        kappa: utterances at which a vector has reliability ½.
    """

    speakers: SpeakerVectors
    values: np.ndarray
    centre: np.ndarray
    joint: bool
    k: int
    weighting: str
    trust: np.ndarray
    spread: np.ndarray
    kappa: float

    def estimate(self, vectors, centre=None, leave_one_out=False):
        """Estimates for speakers with `vectors` (SpeakerVectors).

        Args:
            vectors: of the speakers; with `leave_one_out`, exactly the training speakers.
            centre: (speakers, columns) to shrink towards, in place of c.
            leave_one_out: nobody is their own neighbour.
        """
        similarities, weights = self.weights(vectors, leave_one_out)
        nearest, spread = _average(weights, self.values, self.joint)
        disagreement = _disagreement(spread, self.spread)
        trust = _trust(self.trust, disagreement, self.reliability(vectors.counts))
        centre = self.centre if centre is None else centre
        return Estimates(list(vectors.ids), weights, similarities, nearest, centre + trust * (nearest - centre), trust, disagreement)

    def weights(self, vectors, leave_one_out=False):
        """(similarities, weights) of the training speakers for each of `vectors`: (speakers, training speakers) both."""
        similarities = cosine(vectors.vectors, self.speakers.vectors)
        ranking = similarities.copy()
        if leave_one_out:
            np.fill_diagonal(ranking, -np.inf)
        return similarities, neighbour_weights(ranking, self.k, self.weighting)

    def reliability(self, counts):
        """min(1, R(n) / R̄) of vectors that are means over `counts` utterances."""
        counts, known = np.asarray(counts, dtype=np.float64), self.speakers.counts
        return np.minimum(1.0, counts / (counts + self.kappa) / np.mean(known / (known + self.kappa)))


def _average(weights, values, joint):
    """Weighted average and weighted variance of values (…, speakers, columns): (…, n, columns) each, the variance (…, n, 1) if joint."""
    origin = values.mean(-2, keepdims=True)
    centred = values - origin
    mean, square = (np.moveaxis(np.tensordot(weights, x, axes=(1, -2)), 0, -2) for x in (centred, centred**2))
    spread = np.maximum(square - mean**2, 0.0)
    spread[spread < 1e-12 * np.abs(values).max(initial=0.0) ** 2] = 0.0  # what is left of rounding
    mean = np.clip(mean + origin, values.min(-2, keepdims=True), values.max(-2, keepdims=True))  # rounding leaves no average outside
    return mean, spread.sum(-1, keepdims=True) if joint else spread


def _disagreement(spread, usual):
    """ρ = (1 + D / D̄) / 2; 1 where nobody ever disagrees."""
    usual = np.broadcast_to(usual, spread.shape)
    return (1 + np.divide(spread, usual, out=np.ones_like(spread), where=usual > 0)) / 2


def _trust(trust, disagreement, reliability):
    """γ' from γ (…, columns), ρ (…, speakers, columns) and min(1, R / R̄) (speakers)."""
    odds = trust + (1 - trust) * disagreement
    return np.divide(trust, odds, out=np.zeros_like(odds), where=odds > 0) * reliability[:, None]


def _kappa(speakers):
    """Within- over between-speaker variance of the utterance embeddings (one-way random effects, by moments)."""
    if speakers.within == 0 or len(speakers) < 2:
        return 0.0
    between = speakers.vectors.var(0, ddof=1).sum() - speakers.within * np.mean(1 / speakers.counts)
    return min(speakers.within / between, _KAPPA_LIMIT) if between > 0 else _KAPPA_LIMIT


def numbers_of_neighbours(others):
    """Numbers of neighbours to try: 1, 2, 3, 4, then each half as many again, up to all others; the largest first."""
    ks, k = [], 1
    while k < others:
        ks.append(k)
        k = max(k + 1, int(k * 1.5))
    return [others, *reversed(ks)]


def choose(speakers, values, centre, centres, loss, k=None, weighting="hard", shrink=True, joint=False, homogeneity=0.0):
    """The neighbourhood whose estimates are best for training speakers left out in turn, trusted if that is not chance.

    Args:
        speakers: SpeakerVectors of the training speakers.
        values: (speakers, columns).
        centre: (columns) c.
        centres: (speakers, columns) c without the speaker.
        loss: function of (estimates (…, speakers, columns), order (…, speakers)) → losses (…, speakers, columns), or
            (…, speakers, 1) if joint, NaN where unknown; `order` says whose values each row is to be compared with.
        k: number of neighbours; None chooses it. More than there are means all.
        weighting: of the neighbours, see `neighbour_weights`.
        shrink: False keeps γ = 1.
        joint: see `Neighbourhood`.
        homogeneity: (columns) p-values of the training speakers' values being so different by the chance of their labels.

    Returns:
        (Neighbourhood, list of {"k", "trust", "loss"} that were compared, p-values of the columns). The loss is relative to
        that of γ = 0, averaged over columns. With a single training speaker nothing can be compared and the p-values are 1.
    """
    columns = 1 if joint else values.shape[1]
    others = len(speakers) - 1
    full = np.full(columns, 0.0 if shrink else 1.0)
    hood = Neighbourhood(speakers, values, centre, joint, k or 1, weighting, full, np.zeros(columns), _kappa(speakers) if shrink else 0.0)
    if not others:
        return hood, [], np.ones(columns)
    rng = np.random.default_rng(0)
    order = np.stack([np.arange(len(speakers)), *(rng.permutation(len(speakers)) for _ in range(PERMUTATIONS if shrink else 0))])
    worlds, world_centres = values[order], centres[order]  # (1 + permutations, speakers, columns), the real world first
    reliability = hood.reliability(speakers.counts)
    unshrunk = speaker_means(loss(world_centres, order))
    tried, best = [], None
    for hood.k in numbers_of_neighbours(others) if k is None else [min(k, others)]:
        nearest, spread = _average(hood.weights(speakers, leave_one_out=True)[1], worlds, joint)
        usual = spread.mean(-2)
        disagreement = _disagreement(spread, usual[:, None])
        losses = []
        for trust in TRUSTS if shrink else [1.0]:
            expected = world_centres + _trust(trust, disagreement, reliability) * (nearest - world_centres)
            losses.append(speaker_means(loss(expected, order)))
        losses = np.stack(losses)  # (trusts, worlds, columns)
        choice = np.argmax(_at_most(losses, losses.min(0)), axis=0)  # the least trust among equals
        reached = np.take_along_axis(losses, choice[None], axis=0)[0]
        score = np.divide(reached, unshrunk, out=np.ones_like(unshrunk), where=unshrunk > 0).mean(1)
        trusts = TRUSTS[choice] if shrink else np.ones_like(reached)
        tried.append({"k": hood.k, "trust": trusts[0].tolist(), "loss": float(score[0])})
        found = {"score": score, "k": np.full(len(score), hood.k), "trust": trusts, "spread": usual, "reached": reached}
        if best is None:
            best = found
            continue
        better = ~_at_most(best["score"], score)  # the most neighbours among equals
        best = {name: np.where(better.reshape(-1, *[1] * (old.ndim - 1)), found[name], old) for name, old in best.items()}
    hood.k = int(best["k"][0]) if k is None else k
    hood.spread = best["spread"][0]
    p = _at_most(best["reached"], best["reached"][0]).mean(0)
    p = np.maximum(p, homogeneity)
    if shrink:
        hood.trust = np.where(p <= SIGNIFICANCE, best["trust"][0], 0.0)
    return hood, tried, p


def _at_most(losses, limit):
    """losses ≤ limit, but for rounding."""
    return losses <= limit + _TIE * np.abs(limit)


def speaker_means(losses):
    """Means over speakers of losses (…, speakers, columns), NaN left out."""
    known = ~np.isnan(losses)
    return np.where(known, losses, 0.0).sum(-2) / np.maximum(known.sum(-2), 1)
