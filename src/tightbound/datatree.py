"""A fit as an ArviZ DataTree: what arviz-stats, arviz-plots and all that reads xarray take."""

import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Shaped

from ._types import PyTree, Validated
from .families.empirical import Empirical
from .summary import Reported, sample
from .targets.base import Observed, Predictive
from .targets.batched import constrain_batch
from .targets.layout import path_name

if TYPE_CHECKING:
    import xarray  # a second that `import tightbound` does without

Group: TypeAlias = dict[str, np.ndarray]
"""Variables by name, with the axes of their kind: draws first, or (chain, draw)."""

_MOST_NUMBERS = 50_000_000  # in a group with one number for each draw and observation: 400 MB
_RESERVED = ("chain", "draw")  # dimensions of the ArviZ schema


def to_datatree(fit: Reported, n: Validated[int, "sample"] = 1000) -> "xarray.DataTree":
    """An xarray.DataTree with those groups of the ArviZ schema that the target can fill.

    - `posterior`: `n` draws in one chain, corrected by the importance weights where these can be
      trusted. A value in a nested structure is called `outer.inner`. Of a sampler: all its draws,
      chain by chain, whatever `n` is, and what it noted of them as `sample_stats`.
    - `fit`: `loss`, `change` and `evaluations` by `step`; the findings by `finding`, as `value`,
      `stderr`, `threshold`, `verdict` and `why`.
    - `observed_data`, `posterior_predictive`, `log_likelihood`: where the target has them. Those of
      `tb.from_numpyro` have all three, those of `tb.from_rows` the first and the last.

    The attributes of the tree say which version, verdict, k-hat, ELBO, bounds on the evidence, and
    how the run ended.

    Arguments:
        fit: what `tb.fit` returned.
        n: number of draws.

    Raises:
        ValueError: when `n` is not a positive integer, or a value is called `chain` or `draw`.
    """
    import arviz_base
    import xarray as xr

    statistics, chains = {}, 1
    if fit.q.has_density:
        values = sample(fit, fit.seed, n, corrected=True)
    else:
        drawn = cast(Empirical, fit.q)  # the one family without a density
        values = constrain_batch(fit.target, np.asarray(drawn.flat))
        statistics, chains = drawn.statistics, drawn.chains
    groups = {"posterior": _by_name(values), **_of_target(fit, values)}
    for name in _RESERVED:
        if name in groups["posterior"]:
            raise ValueError(
                f"to_datatree: a value is called {name!r}, which is a dimension of every ArviZ"
                " tree. Rename it in the model; fit.sample(key, n) has the draws under any name."
            )
    groups = _with_chain(groups, chains)
    if statistics:
        groups["sample_stats"] = {name: np.asarray(value) for name, value in statistics.items()}
    tree = arviz_base.from_dict(groups, attrs={"/": _attributes(fit)})
    tree["fit"] = xr.DataTree(_fit_group(fit))
    return tree


def _of_target(fit: Reported, values: PyTree) -> dict[str, Group]:
    """The groups that only the target can fill; those without a variable are left out."""
    target = fit.target
    groups: dict[str, Group] = {}
    observed = _by_name(target.observed()) if isinstance(target, Observed) else {}
    fits = _fits_memory(
        len(jax.tree.leaves(values)[0]), sum(value.size for value in observed.values())
    )
    if isinstance(target, Predictive) and fits:
        groups["posterior_predictive"] = _by_name(target.posterior_predictive(values, fit.seed))
    if isinstance(target, Observed) and fits:
        groups["log_likelihood"] = _by_name(target.pointwise_log_likelihood(values))
    groups["observed_data"] = observed
    return {name: group for name, group in groups.items() if group}


def _fits_memory(draws: int, observations: int) -> bool:
    """Whether a number per draw and observation is few enough.

    A warning names the number of draws that would be.
    """
    size = draws * observations
    if size <= _MOST_NUMBERS:
        return True
    # stacklevel: the line of the user's code that called `Fit.to_datatree`
    warnings.warn(
        "to_datatree: the groups with a number for each draw and observation are left out, because"
        f" they would hold {size:,} numbers. Ask for fewer draws:"
        f" fit.to_datatree({max(1, _MOST_NUMBERS // observations)}).",
        stacklevel=5,
    )
    return False


def _by_name(values: PyTree) -> Group:
    """The leaves of a pytree under dotted names."""
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(values)
    }


def _with_chain(groups: Mapping[str, Group], chains: int) -> dict[str, Group]:
    """A leading axis `chain` in the groups that hold draws; all chains made equally many."""

    def split(value: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "chains draws ..."]:
        return value.reshape(chains, len(value) // chains, *value.shape[1:])

    return {
        group: (
            values
            if group == "observed_data"
            else {name: split(value) for name, value in values.items()}
        )
        for group, values in groups.items()
    }


def _fit_group(fit: Reported) -> "xarray.Dataset":
    """The search by step, and the certificate by finding."""
    import xarray as xr

    # Text as NumPy strings, NaN for no threshold: NetCDF files keep neither objects nor None
    findings, trace = fit.certificate.findings, fit.trace
    columns = {
        name: ("step", np.asarray(getattr(trace, name)))
        for name in ("loss", "change", "evaluations")
    }
    columns |= {
        name: ("finding", np.array([getattr(f, name) for f in findings], float))
        for name in ("value", "stderr")
    }
    columns["threshold"] = (
        "finding",
        np.array([np.nan if f.threshold is None else f.threshold for f in findings], float),
    )
    columns["verdict"] = ("finding", np.array([str(f.verdict) for f in findings]))
    columns["why"] = ("finding", np.array([f.why for f in findings]))
    steps = np.arange(1, len(trace.loss) + 1)
    return xr.Dataset(
        columns,
        coords={"step": steps, "finding": [f.name for f in findings]},
        attrs=_attributes(fit),
    )


def _attributes(fit: Reported) -> dict[str, str | int | float]:
    """Plain numbers and strings, which every file format of xarray can keep."""
    certificate = fit.certificate
    return {
        "inference_library": "tightbound",
        "inference_library_version": _version(),
        "verdict": str(certificate.verdict),
        "khat": float(certificate.khat),
        "result": fit.result.name,
        "result_sentence": str(fit.result),
        "elbo": float(certificate.elbo.value),
        "elbo_stderr": float(certificate.elbo.stderr),
        "log_evidence_lower": float(certificate.log_evidence[0]),
        "log_evidence_upper": float(certificate.log_evidence[1]),
        "steps": int(fit.steps),
        "evaluations": int(fit.evaluations),
        "seconds": float(fit.seconds),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("tightbound")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__all__ = ["to_datatree"]
