"""The clutter paper's estimator: a Gaussian for the tilted distribution of each site."""

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..._types import Key, Validated
from ...families.base import AbstractFamily
from ...targets.base import require
from ...targets.sites import Contaminated, Kernels
from ..base import Moments
from .local_gaussians import AbstractSiteMoments, SiteSums, local_gaussians, white_moments


class LocalQuadratic(AbstractSiteMoments):
    """The analytic approximation of the ELBO gradient for contaminated data.

    A closed form, with one sigmoid and one exponential a point. The denominator of each site's
    responsibility is replaced by the exponential of its second-order Taylor polynomial at the mode
    of q times the kernel. The error of the variance gradient is of relative order v / vg: q ends up
    overconfident by about .35 v / vg, as Laplace's does; `cubic` mends most of that. It has no ELBO
    value, so NaturalGradient takes its steps unchecked. The honest alternatives: GaussHermite in
    one or two dimensions (5 exponentials a point, all digits, monotone), EP. Use this one for
    starts, and where each microsecond counts.

    Source: Popov 2024 (arXiv 2404.10550), section 4; for the full covariance and the cubic term see
    `local_gaussians`.

    Attributes:
        cubic: put the third derivative of each site back to first order, for v / vg up to about 2.
    """

    cubic: bool = eqx.field(default=False, static=True)

    def prepare(
        self, target: Validated[Contaminated, "require"], q: AbstractFamily | None, key: Key | None
    ) -> Kernels:
        """The kernels of the target.

        Raises:
            PairingError: the target is not contaminated data.
        """
        return require(self, target, Contaminated).kernels()

    def moments(
        self,
        target: Contaminated,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: Kernels,
    ) -> Moments:
        """Whitened moments of log p under N(mean, root root'), prior included; the ELBO is NaN."""

        def sites(centre: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"]) -> SiteSums:
            found = local_gaussians(design, centre, cov, cubic=self.cubic)
            return np.nan, found.gradient, found.curvature

        return white_moments(target, design, mean, root, sites, np.nan)


__all__ = ["LocalQuadratic"]
