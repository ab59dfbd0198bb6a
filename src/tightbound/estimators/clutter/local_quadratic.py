"""The clutter paper's estimator.

Expectations of the score through a Gaussian for each site's tilted distribution.
"""

from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from ...objectives.base import AbstractObjective
from ...targets.base import require
from ...targets.sites import Contaminated, Kernels
from ..base import AbstractEstimator, Moments
from .local_gaussians import local_gaussians, refuse_surrogate, white_moments


class LocalQuadratic(AbstractEstimator):
    """The analytic approximation of the ELBO gradient for contaminated data: closed form, one
    sigmoid and one exp a point.

    The denominator of each site's responsibility is replaced by the exponential of its second-order
    Taylor polynomial at the mode of q times the kernel. The error of the variance gradient is of
    relative order v / vg: q ends up overconfident by about .35 v / vg, as Laplace's does; `cubic`
    mends most of that. It has no ELBO value, so NaturalGradient takes its steps unchecked. The
    honest alternatives: GaussHermite in one or two dimensions (5 exponentials a point, all digits,
    monotone), EP. Use this one for starts, and where each microsecond counts.

    Source: Popov 2024 (arXiv 2404.10550), section 4; full covariance and cubic term: clutter spec,
    sections 2.3 and 2.5.

    Attributes:
        cubic: put the third derivative of each site back to first order, for v / vg up to about 2.
    """

    cubic: bool = eqx.field(default=False, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = ()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        refuse_surrogate(self)

    def prepare(self, target: Any, q: Any, key: Any) -> Kernels:
        """The kernels of the target.

        Raises:
            PairingError: the target is not contaminated data.
        """
        require(self, target, Contaminated)
        return target.kernels()

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: Any, key: Any
    ) -> tuple[Any, Any]:
        refuse_surrogate(self)

    def moments(self, target: Any, mean: np.ndarray, root: np.ndarray, design: Kernels) -> Moments:
        """Whitened moments of log p under N(mean, root root'), prior included; the ELBO is NaN."""

        def sites(centre: np.ndarray, cov: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            found = local_gaussians(design, centre, cov, cubic=self.cubic)
            return np.nan, found.gradient, found.curvature

        return white_moments(target, design, mean, root, sites, np.nan)


__all__ = ["LocalQuadratic"]
