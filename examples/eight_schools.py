"""Eight schools (Rubin 1981) as a NumPyro model for the command line.

tightbound fit examples/eight_schools.py --out build/schools
tightbound fit examples/eight_schools.py --data examples/eight_schools.json --json
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

# of coaching, in points of a test
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # their standard errors


def model(y=EFFECTS, sigma=ERRORS):
    """Effects theta of the schools around a common mean.

    Non-centred, so that the posterior is no funnel.
    """
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
