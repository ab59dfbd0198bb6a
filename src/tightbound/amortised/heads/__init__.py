"""What the network of a conditional family decides: the parameters of a distribution.

The convex tier (`Gaussian`, `VonMises`, `Spline`, and a `Product` of these): minus the log density
is convex in what the network returns, so expected forward KL has no bad optimum in function space.
The non-convex tier (`Mixture`, `VonMisesMixture`, `CircularFlow`, `Flow`) can follow more, without
that promise.
"""

from ...families.head import AbstractHead as AbstractHead
from .circular import VonMises as VonMises
from .circular import VonMisesMixture as VonMisesMixture
from .circular_flow import CircularFlow as CircularFlow
from .flow import Flow as Flow
from .gaussian import Gaussian as Gaussian
from .mixture import Mixture as Mixture
from .product import Product as Product
from .spline import Spline as Spline
