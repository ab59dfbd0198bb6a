"""Every constant of the recipe and of the climb, with the reason or the benchmark it comes from.

Verdicts have their thresholds in `certify/standards.py`. Benchmarks are those of
docs/benchmarks.md: nineteen development posteriors with reference draws, five seeds each, and the
fooling targets of `benchmarks/fooled.py`.
"""

from ..certify.standards import STANDARDS

# -- the recipe

# Rows from which a fit starts on a sample of them: below, a gradient of all rows costs less than
# what the sample saves (benchmarks/scaling.py).
MANY_ROWS = 300_000
# Dimensions; above, the d x d algebra of a full-rank Gaussian costs more than the gradients.
FULL_RANK_UP_TO = 300
# L-BFGS paths of a start: one in four ends in the wrong basin on the development posteriors with
# several, none on all four.
STARTS = 4
# Pairs of draws that rank the local Gaussians of a start: errors of a tenth of a nat are enough.
START_PAIRS = 32
RANK = 20  # of a low-rank Gaussian
# A product of factors needs a few short runs: coordinate ascent stops at the nearest optimum.
FACTOR_STARTS = 4

# -- contaminated data

# Share of the noise variance; below it a posterior with one mode has one optimum.
NARROW = 0.5
# Posterior sds: enough to rank the ends of several starts.
ROUGH_TOL = 0.1
ROUGH_STEPS = 40
# Quadrature nodes per axis to start with, by dimension. Nodes must not step over kernels:
# 5 + 14 sqrt(v / vg) of them resolve q's of that width.
LEAST_NODES, MOST_NODES = 15, {1: 161, 2: 41}
NODES_AT_LEAST, NODES_PER_WIDTH = 5.0, 14.0

# -- the climb

# Evaluations after which no further rung is tried, and that one rung may use, where no budget says
# otherwise: the most that any of the development posteriors needed to pass is 35,000.
PATIENCE = 40_000
# Evaluations that judging one more family takes where its first draws do not do.
TO_JUDGE = 10_000
# A budget leaves a third for the certificate, or what one of an ordinary fit takes.
CERTIFICATE_SHARE, CERTIFICATE_MOST = 1 / 3, 10_000
# k-hat above which a Gaussian may sit on the wrong optimum, so that other starts are tried; more
# draws would not mend its weights either.
LOST = STANDARDS.khat
# Share of effective draws from which on q is the posterior, up to details.
WELL_FITTED = 0.7
# The same, for a Gaussian that need not be compared with a t: with less it can pass on the draws of
# a t by luck.
NEARLY_EQUAL = 0.9
# Significant gains are those beyond so many standard errors of the ELBO on fresh draws.
SIGNIFICANT = 2.0

# -- nested rungs: shares of the variance of log weights that coordinates explain

PROMISING = 0.5  # from which on a nested family comes before more draws
HOPELESS = 0.2  # below which no nested family comes near
# By how much two coordinates must explain more to be tried after one, or before it.
LITTLE_MORE, MUCH_MORE = 0.05, 0.2
NESTED_COST = 100  # evaluations per dimension, about
# Dimensions in which one coordinate costs next to nothing: either is tried before both.
SMALL = 8
# Dimensions above which two coordinates take all the patience, and one is tried first.
LARGE = 30
# Dimensions above which the fits at some 60 knots cost more than a pair brings.
PAIR_UP_TO = 64

# -- the Student-t rung

# Share of the variance of log weights by which mirror images may differ: more is skewness, which
# no t has.
MOST_ODD = 0.1
# Share of it that the distance from the centre must explain.
LEAST_RADIAL = 0.5
# Degrees of freedom from which on the t's tails cannot be told from the Gaussian's in thousands of
# draws.
ALMOST_GAUSSIAN = 50.0

# -- restarts and mixtures

# Other ends of the start, best ELBO first, that are climbed from: each may cost as much as the
# first Gaussian and its nested rungs.
MOST_RESTARTS = 2
MOST_MIXTURES = 2  # rounds of searching for rivals, and adding them
MOST_RIVALS = 4  # in one round
# Nats of log density (median) by which two components of a mixture differ: below, they are one.
APART = 4.0
