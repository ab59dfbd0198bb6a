"""Every threshold of a verdict, and every number of draws and searches, said once.

`Standards` is what a verdict is held to, `Effort` is what is spent on reaching it. Findings read
both from the case that they are given; their sentences are formatted from the same fields.
"""

import dataclasses

from ..search.chain_statistics import ESS_PER_CHAIN, RHAT


@dataclasses.dataclass(frozen=True)
class Standards:
    """The thresholds of all verdicts; docs/certificate.md says what each one measures.

    A field named after a finding is where that finding stops to pass; one that ends in `_fail` is
    where it fails. Make stricter ones by `Standards(mean=0.03)`, and pass them to `tb.check`.
    """

    # -- what a user reads: means, sds, evidence
    # Posterior sds by which the importance weights may move a mean of q. An error of .1 sd is half
    # of what 400 independent draws leave at two standard errors.
    mean: float = 0.1
    # Relative, by which they may change an sd of q.
    sd: float = 0.1
    # Posterior sds of Monte Carlo error in a corrected mean: that of 600 independent draws.
    noise: float = 0.04
    # Nats between the bounds on the log evidence, two standard errors added at each end.
    width: float = 1.0
    # Standard errors that are taken off a number before it is held against its threshold: a good
    # fit is not blamed for noise (beyond two errors in one direction is one number in forty).
    errors: float = 2.0

    # -- importance weights
    # Pareto shape from which S draws are too few for a reliable mean, whatever S is (Vehtari et
    # al. 2024, section 3.2.4). Below S = 2,200 the limit is 1 - 1 / log10(S): `khat_threshold`.
    khat: float = 0.7
    # Pareto shape from which weights have no mean that more draws would find (the same, 3.2.3).
    khat_fail: float = 1.0
    # Effective draws: means then carry a Monte Carlo error of at most .05 sd.
    effective: float = 400.0
    # Effective draws below which corrected summaries are noise (.13 sd), and the weights fail.
    effective_fail: float = 60.0
    # Share of effective draws from which on a bad tail is a caution and no failure: no weight that
    # was drawn decides anything then.
    mostly_effective: float = 0.5
    # Share from which on the shape of the tail does not matter, for there is none; and the same for
    # a k-hat above `khat_fail`, where a sample does not show what the tail holds (a Student-t with
    # three degrees of freedom, seen from a Gaussian).
    nearly_equal: float = 0.95
    nearly_equal_unseen: float = 0.99
    # Effective draws that a corrected summary needs: fewer are a handful of points.
    correctable: float = 20.0
    # Posterior sds of standard error of a corrected mean from which its own k-hat is looked at: of
    # rounding-sized products the shape of the tail says nothing that matters.
    matters: float = 0.02
    # Kurtosis from which the tail of a value is looked at: 3 is a Gaussian, 9 the t with five
    # degrees of freedom, whose sd can still be had from draws.
    kurtosis: float = 10.0
    # Sds, or relative in the sd, below which no correction is made, however certain it is.
    negligible: float = 1e-3

    # -- whether the search has arrived
    # Posterior sds by which q may still have to move (`tol` of a fit is .02).
    shift: float = 0.05
    shift_fail: float = 1.0
    # Nats per log sd that the ELBO may still gain: .15 is an sd of a Gaussian posterior that is 7 %
    # too narrow or wide.
    stretch: float = 0.15
    stretch_fail: float = 0.75
    # Standard errors taken off a stretch: its error grows with the correlation of its coordinate
    # with others (to units at condition 1e6), and the worst of many coordinates is looked at.
    stretch_errors: float = 4.0
    # Finite draws without which convergence cannot be judged, and fails.
    finite_least: int = 10
    # Share of draws without a finite log density or score that fails; any at all is a caution.
    finite_fail: float = 0.01

    # -- mass where q has none
    # p / (q Z) from which on q has next to no density at a point.
    uncovered: float = 20.0
    # Share of the posterior that a wider law may find there.
    coverage: float = 0.02
    # Effective draws of the wider law below which it says nothing.
    coverage_least: float = 30.0
    # Nats of ELBO below q's at which another optimum still counts: it holds e^-4 of q's mass.
    rival: float = 4.0
    # Nats by which another optimum must be better, three standard errors besides, to say that q
    # sits on the wrong one.
    optima_fail: float = 2.0
    optima_errors: float = 3.0
    # Nats of KL(rival || draws) where q has no density of its own: two unit Gaussians 4 sds apart.
    far: float = 8.0
    # Nats per dimension that sampling error in the whitening and unfinished searches add to both.
    per_dimension: float = 0.05
    # Share of a rival's mass outside q from which on q misses it.
    rival_outside: float = 0.5
    # Whitened distance within which two ends of searches are one optimum.
    same_end: float = 1.0
    # Nats that a rival's evidence may lie above the ELBO of its local Gaussian.
    rival_slack: float = 0.5
    # Share of the visits that a mode's evidence asks for from which on chains know of it.
    visited: float = 0.1

    # -- scores
    # Kernelised Stein discrepancy: about that of a mean that is .4 sd off.
    stein: float = 0.3
    # p-value below which a departure is no accident: of every test that gives one.
    significant: float = 0.01

    # -- whether the posterior is one
    # d log p / d log distance from which on a density cannot be integrated is -1, less a margin.
    proper_slope: float = -1.02
    # Nats: a density that has fallen by so much is as good as proper, whatever rounding does to it
    # farther out.
    proper_fall: float = 50.0
    # Relative distance of a variance from the noise's that says a loop has cut it there.
    width_cap: float = 1e-6

    # -- a sampler's chains: where they count as mixed, as samplers themselves stop (Vehtari et al.
    # 2021, section 4), and beyond what R-hat they are of no use
    rhat: float = RHAT
    rhat_fail: float = 1.1
    ess_per_chain: float = ESS_PER_CHAIN
    # Effective draws in all below which they are of no use.
    ess_fail: float = 100.0

    # -- amortised fits
    # Largest deviation of an ECDF from the uniform: of little consequence below the first, a
    # failure above the second where it is significant.
    deviation: float = 0.06
    deviation_fail: float = 0.15
    # Nats that the data must be worth to q, and those that a linear regression must find in them
    # to call it a failure that they are not.
    learns: float = 0.02
    learns_fail: float = 0.05
    # Nats of expected loss that a better function may still gain.
    gap: float = 0.03
    gap_fail: float = 0.5
    # Nats of symmetrised KL between networks from several starts.
    seeds: float = 0.05
    seeds_fail: float = 0.5
    # p-value of the data's distance to simulated data, and the ratio of distances that fails.
    simulable: float = 0.02
    simulable_fail: float = 3.0
    # Score of a classifier over that of chance.
    c2st_fail: float = 20.0
    # Share of simulations that are not finite.
    invalid_fail: float = 0.3
    # Stored simulations for each coordinate below which they are few.
    stored_per_coordinate: int = 1000
    # Eigenvalue of a tangent kernel, over its largest, that counts as zero.
    singular: float = 1e-9


@dataclasses.dataclass(frozen=True)
class Effort:
    """How many draws, searches and evaluations a certificate takes."""

    # Fresh draws of q: k-hat has a standard error of .1 then (`psis` fits 190 of them).
    draws: int = 4000
    # As many where few of the first are effective, but more than `hopeless`.
    most_draws: int = 16_000
    enough_effective: float = 1000.0
    hopeless: float = 50.0
    # Draws asked for below which no more are added: who asks for few wants few.
    extended_from: int = 2000
    # The fewest that are drawn, in any dimension and whatever is left of a budget.
    least_draws: int = 200
    # The fewest that may be asked for.
    least_asked: int = 100
    # Draws below which a budget is not cut down to make room for the searches.
    worthwhile_draws: int = 1000
    # Draws x dimensions: 64 MB an array; fewer draws above 2,000 dimensions.
    most_numbers: int = 8_000_000
    # Dispersed searches, and the fewest: fewer miss one of two equal basins too often.
    starts: int = 32
    least_starts: int = 16
    # L-BFGS iterations of each search: an end that is off by little is still the same optimum.
    iterations: int = 60
    # Ends that are given a Gaussian, the highest first.
    rivals: int = 4
    # Mirrored pairs of draws at each rival that tell whether q covers it.
    looks: int = 32
    # Draws of the wider law, and more where the first ones hint at something.
    wide_draws: int = 1800
    more_wide_draws: int = 7200
    # Draws of the Stein discrepancy, whose pairs cost n^2 d, and signs of its bootstrap.
    stein_draws: int = 500
    stein_replicates: int = 500


STANDARDS = Standards()
"""The standards of every verdict that is not asked for with others."""

EFFORT = Effort()
"""The effort of every certificate that is not asked for with another."""

__all__ = ["EFFORT", "STANDARDS", "Effort", "Standards"]
