"""A search along the natural-gradient rule: what is proposed, taken, shortened, enlarged and ended.

A search is a value, `NaturalSearch`, and two pure functions. It holds a proposal (mean, root);
whoever runs it computes the moments of the target there and passes them to `tell`, which takes or
refuses the proposal and decides whether the search goes on; `propose` then makes the next one. The
host solver, the compiled lanes of `fit_batch` and the conditional refits of the nested families run
the same functions: with `xp=numpy` on the host, with `xp=jax.numpy` inside compiled code.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import pytree
from .._types import Array, Flag, Scalar
from ..estimators.base import Moments
from .natural_rule import (
    NONFINITE,
    OUTGROWN,
    RUNNING,
    SETTLED,
    STALLED,
    UNBOUNDED,
    Conduct,
    NewtonModel,
    arrived,
    design_error,
    distances,
    newton_model,
)  # fmt: skip

_SHORTER, _LONGER = 0.4, 1.8  # factors on the step size after a refused, and after a taken step
_LEAP = 0.7  # largest relative change of the root that an extrapolation may make
# An extrapolated root with a larger condition number has lost its smallest direction to rounding.
_SINGULAR = 1e12
_FIRST_STRETCH, _LONGEST_STRETCH = 4.0, 64.0  # in strides
_FULL = 1.99  # of the longest step of `natural_step`, which is 2; a little less, for rounding
_HALVINGS = 40  # of a start that reaches beyond where the density is finite
# A posterior sd this many times its start's (or larger than this, where the start's is below 1)
# is an improper direction: no prior that anybody states is so wide.
FLAT = 1e8

START, AGAIN, STEP, LEAP = range(4)  # up to AGAIN starts, taken wherever they are finite
"""What a proposal is: a start, the same q on a new design, a step of the rule, an extrapolation."""

T = TypeVar("T")


@pytree
@dataclasses.dataclass(frozen=True)
class NaturalSearch:
    """Where a search along the rule stands on its design, and what it proposes to evaluate next.

    Attributes:
        mean, root, log_det: q = N(mean, root root'), and log|root|.
        model: the quadratic model of the ELBO there.
        elbo: on the design, nats; -inf while nothing was evaluated.
        spread: sd of log p - log q over the pairs of the design, nats; `pairs`: their number.
        error: the design's own error, in posterior sds (`design_error`).
        proposed_mean, proposed_root, proposed_log_det: the proposal.
        kind: what the proposal is, one of the four codes above.
        sensible: whether the proposal is worth an evaluation; `rho`: the step size.
        reach: of the mean's steps; doubled while steps of full length climb, so that a far start
            costs few.
        stretch: how far the next extrapolation goes.
        anchor_mean, anchor_root: q some steps ago, to extrapolate from.
        before: the ELBO at the beginning of the step.
        first_sd: marginal sds of the start.
        tried: proposals in this step so far, this one included.
        steps_on_design: taken steps; `steps` and `tries` count all, on all designs.
        status: a code of `natural_rule`, RUNNING ... OUTGROWN.
    """

    mean: Float[Array, "*batch dim"]
    root: Float[Array, "*batch dim dim"]
    log_det: Float[Array, "*batch"]
    model: NewtonModel
    elbo: Float[Array, "*batch"]
    spread: Float[Array, "*batch"]
    pairs: Int[Array, "*batch"]
    error: Float[Array, "*batch"]
    proposed_mean: Float[Array, "*batch dim"]
    proposed_root: Float[Array, "*batch dim dim"]
    proposed_log_det: Float[Array, "*batch"]
    kind: Int[Array, "*batch"]
    sensible: Bool[Array, "*batch"]
    rho: Float[Array, "*batch"]
    reach: Float[Array, "*batch"]
    stretch: Float[Array, "*batch"]
    anchor_mean: Float[Array, "*batch dim"]
    anchor_root: Float[Array, "*batch dim dim"]
    before: Float[Array, "*batch"]
    first_sd: Float[Array, "*batch dim"]
    tried: Int[Array, "*batch"]
    steps_on_design: Int[Array, "*batch"]
    steps: Int[Array, "*batch"]
    tries: Int[Array, "*batch"]
    status: Int[Array, "*batch"]


def begun(
    mean: Float[Array, "*batch dim"],
    root: Float[Array, "*batch dim dim"],
    log_det: Float[Array, "*batch"],
    kind: int = START,
) -> NaturalSearch:
    """A search, or many along leading axes, whose first proposal is the start; on the host."""
    lanes = mean.shape[:-1]
    # `[()]` makes numbers of 0-d arrays: the host's search is of plain numbers.
    one, count = np.ones(lanes)[()], np.zeros(lanes, np.int64)[()]
    zero, same = np.zeros_like(mean), np.broadcast_to(np.eye(mean.shape[-1]), root.shape).copy()
    return NaturalSearch(
        mean=mean,
        root=root,
        log_det=log_det,
        model=NewtonModel(zero + 1.0, same, zero + 1.0, zero + 1.0, zero),
        elbo=-np.inf * one,
        spread=np.inf * one,
        pairs=count,
        error=np.inf * one,
        proposed_mean=mean,
        proposed_root=root,
        proposed_log_det=log_det,
        kind=count + kind,
        sensible=np.ones(lanes, bool)[()],
        rho=one,
        reach=one,
        stretch=_FIRST_STRETCH * one,
        anchor_mean=mean,
        anchor_root=root,
        before=-np.inf * one,
        first_sd=np.sqrt(np.sum(root**2, axis=-1)),
        tried=count + 1,
        steps_on_design=count,
        steps=count,
        tries=count,
        status=count + RUNNING,
    )


def on_new_design(search: NaturalSearch) -> NaturalSearch:
    """The search that has ended on one design, to go on from its q on another; on the host."""
    again = begun(search.mean, search.root, search.log_det, AGAIN)
    kept = ("first_sd", "steps", "tries", "stretch", "reach")
    # What the smaller design found stays, for where the density is not finite on the larger one.
    kept += ("model", "elbo", "spread", "pairs", "error")
    return dataclasses.replace(again, **{name: getattr(search, name) for name in kept})


def propose(search: NaturalSearch, conduct: Conduct, xp: ModuleType = np) -> NaturalSearch:
    """The search with its next proposal; on the host. Lanes call the two parts themselves."""
    if search.status != RUNNING or search.kind in (START, AGAIN):
        return search
    return leapt(search, xp) if search.kind == LEAP else stepped(search, conduct, xp)


def stepped(search: NaturalSearch, conduct: Conduct, xp: ModuleType = np) -> NaturalSearch:
    """Proposes a step of the rule."""
    mean, root, change = conduct.rule(
        search.mean, search.root, search.model, search.rho, xp, search.reach
    )
    return _proposing(search, mean, root, search.log_det + change, xp.isfinite(search.rho))


def leapt(search: NaturalSearch, xp: ModuleType = np) -> NaturalSearch:
    """Proposes to extrapolate the last few steps.

    Hierarchical models make the rule creep along a curved valley, each step a little further the
    same way. Not sensible where the root would change by more than the model is good for, or become
    singular.
    """
    one = xp.eye(search.mean.shape[0])
    turn = xp.linalg.solve(search.anchor_root, search.root) - one
    mean = search.mean + search.stretch * (search.mean - search.anchor_mean)
    root = search.root @ (one + search.stretch * turn)
    sensible = (xp.linalg.norm(search.stretch * turn, ord=2) <= _LEAP) & (
        xp.linalg.cond(root) <= _SINGULAR
    )
    return _proposing(search, mean, root, xp.linalg.slogdet(root)[1], sensible)


def _proposing(
    search: NaturalSearch,
    mean: Float[Array, "dim"],
    root: Float[Array, "dim dim"],
    log_det: Scalar,
    sensible: Flag,
) -> NaturalSearch:
    proposal = {"proposed_mean": mean, "proposed_root": root, "proposed_log_det": log_det}
    return dataclasses.replace(search, sensible=sensible, **proposal)


def tell(
    search: NaturalSearch,
    moments: Moments | None,
    conduct: Conduct,
    tol: Scalar,
    xp: ModuleType = np,
) -> NaturalSearch:
    """The search after its proposal was evaluated: taken or refused, ended or to be gone on with.

    `moments`: at the proposal; None where it was not sensible, and not evaluated (on the host).
    `tol`: accuracy asked of the means, in posterior sds.
    """
    if moments is None:
        taken, moved = False, search
    else:
        taken = _is_taken(search, moments, conduct, xp)
        search = dataclasses.replace(search, tries=search.tries + 1)
        moved = _choose(
            taken, lambda: _moved(search, moments, conduct.floor, xp), lambda: search, xp
        )
    after = (_after_start, _after_start, _after_step, _after_leap)  # START, AGAIN, STEP, LEAP
    if xp is np:
        return after[int(search.kind)](search, moved, taken, conduct, tol, xp)
    start, step, leap = (told(search, moved, taken, conduct, tol, xp) for told in after[1:])
    later = _choose(search.kind == LEAP, lambda: leap, lambda: step, xp)
    return _choose(search.kind <= AGAIN, lambda: start, lambda: later, xp)


def whole_step(
    search: NaturalSearch,
    moments_at: Callable[[Float[Array, "dim"], Float[Array, "dim dim"]], Moments],
    conduct: Conduct,
    tol: float,
) -> tuple[NaturalSearch, int]:
    """The search after one step (or its start), refused proposals and extrapolation included.

    On the host; also returns the evaluations used.
    """
    used = 0
    while search.status == RUNNING:
        search, moments = propose(search, conduct), None
        if search.sensible:
            moments = moments_at(search.proposed_mean, search.proposed_root)
            used += moments.evaluations
        search = tell(search, moments, conduct, tol)
        if search.kind == STEP and search.tried == 1:
            break
    return search, used


def _is_taken(search: NaturalSearch, moments: Moments, conduct: Conduct, xp: ModuleType) -> Flag:
    """Finite, and for a step: not lower than a share of what the model promises; NaN is unchecked.

    An extrapolation must climb: it has no model that promises anything.
    """
    here, slope = search.elbo, xp.sum(search.model.gradient**2 / search.model.stiff)
    least = conduct.sufficient * search.rho * slope - conduct.rounding * xp.abs(here)
    climbs = xp.isnan(here) | (moments.elbo >= here + least)
    leaps = search.sensible & (moments.elbo > here)
    free = search.kind <= AGAIN
    return moments.finite & xp.where(free, True, xp.where(search.kind == LEAP, leaps, climbs))


def _moved(search: NaturalSearch, moments: Moments, floor: float, xp: ModuleType) -> NaturalSearch:
    """The search at its proposal."""
    model = newton_model(moments.gradient, moments.curvature, xp, floor)
    pairs = moments.gradient_spread.shape[0]
    return dataclasses.replace(
        search,
        mean=search.proposed_mean,
        root=search.proposed_root,
        log_det=search.proposed_log_det,
        model=model,
        elbo=moments.elbo,
        spread=moments.elbo_stderr * np.sqrt(pairs),
        pairs=_integer_like(search.pairs, pairs),
        error=design_error(moments, model, xp),
    )


def _after_start(
    old: NaturalSearch, moved: NaturalSearch, taken: Flag, conduct: Conduct, tol: Scalar,
    xp: ModuleType,
) -> NaturalSearch:  # fmt: skip
    """Begins to step; a start that reaches beyond where the density is finite is halved."""
    fresh = old.kind == START
    dim = old.mean.shape[0]
    sd = xp.sqrt(xp.sum(moved.root**2, axis=1))
    ready = dataclasses.replace(
        moved,
        kind=_integer_like(old.kind, STEP),
        first_sd=xp.where(fresh, sd, old.first_sd),
        anchor_mean=moved.mean,
        anchor_root=moved.root,
        before=moved.elbo,
        tried=_integer_like(old.tried, 1),
    )
    if conduct.looks_first:
        done = _has_arrived(ready, conduct, tol, xp)
        ready = dataclasses.replace(ready, status=xp.where(done, SETTLED, RUNNING))
    lost = xp.where(fresh, xp.where(old.tried > _HALVINGS, NONFINITE, RUNNING), OUTGROWN)
    # The root itself is halved with its proposal: a search without an end keeps where it stood.
    half = xp.where(fresh & (old.tried <= _HALVINGS), 0.5, 1.0)
    log_det = old.log_det + dim * xp.log(half)
    halved = dataclasses.replace(
        _proposing(old, old.mean, half * old.root, log_det, old.sensible),
        root=half * old.root, log_det=log_det, tried=old.tried + 1, status=lost,
    )  # fmt: skip
    return _choose(taken, lambda: ready, lambda: halved, xp)


def _after_step(
    old: NaturalSearch, moved: NaturalSearch, taken: Flag, conduct: Conduct, tol: Scalar,
    xp: ModuleType,
) -> NaturalSearch:  # fmt: skip
    """A taken step makes the next one longer, a refused one is tried again, shorter."""
    on_design = old.steps_on_design + 1
    further = dataclasses.replace(
        moved,
        rho=xp.minimum(1.0, _LONGER * old.rho),
        reach=_next_reach(old, xp) if conduct.lengthens else old.reach,
        steps_on_design=on_design,
        steps=old.steps + 1,
    )
    shorter = dataclasses.replace(
        old,
        rho=_SHORTER * old.rho,
        tried=old.tried + 1,
        status=xp.where(
            old.tried < conduct.most_tries,
            RUNNING,
            xp.where(_has_arrived(old, conduct, tol, xp), SETTLED, STALLED),
        ),
    )

    def leaping_or_ended() -> NaturalSearch:
        ended = _complete(further, conduct, tol, xp)
        if conduct.stride is None:
            return ended
        leaping = dataclasses.replace(further, kind=_integer_like(old.kind, LEAP))
        return _choose(on_design % conduct.stride == 0, lambda: leaping, lambda: ended, xp)

    return _choose(taken, leaping_or_ended, lambda: shorter, xp)


def _after_leap(
    old: NaturalSearch, moved: NaturalSearch, taken: Flag, conduct: Conduct, tol: Scalar,
    xp: ModuleType,
) -> NaturalSearch:  # fmt: skip
    """Kept where it climbs, and then the next one goes further."""
    longer = xp.minimum(_LONGEST_STRETCH, 2.0 * old.stretch)
    stretch = xp.where(taken, longer, xp.maximum(1.0, 0.5 * old.stretch))
    anchored = dataclasses.replace(
        moved, stretch=stretch, anchor_mean=old.mean, anchor_root=old.root
    )
    return _complete(anchored, conduct, tol, xp)


def _complete(
    search: NaturalSearch, conduct: Conduct, tol: Scalar, xp: ModuleType
) -> NaturalSearch:
    """The end of a step: settled, improper, out of steps, or the beginning of the next."""
    sd = xp.sqrt(xp.sum(search.root**2, axis=1))
    flat = xp.any(sd > FLAT * xp.maximum(search.first_sd, 1.0))
    small = search.elbo - search.before < conduct.least_gain
    settled = small | _has_arrived(search, conduct, tol, xp)
    late = search.steps_on_design >= conduct.most_steps
    unsettled = xp.where(flat, UNBOUNDED, xp.where(late, STALLED, RUNNING))
    return dataclasses.replace(
        search,
        kind=_integer_like(search.kind, STEP),
        before=search.elbo,
        tried=_integer_like(search.tried, 1),
        status=xp.where(settled, SETTLED, unsettled),
    )


def _has_arrived(search: NaturalSearch, conduct: Conduct, tol: Scalar, xp: ModuleType) -> Flag:
    curvature = conduct.curvature(search.model, xp)
    if conduct.move is None or conduct.wrong is None:
        return arrived(search.model, curvature, search.error, tol, xp)
    move, wrong = distances(search.model, curvature, xp)
    return (move < conduct.move) & (wrong < conduct.wrong)


def _next_reach(search: NaturalSearch, xp: ModuleType) -> Scalar:
    """Twice the reach after a first try that went as far as it may; else halved, down to 1."""
    length = search.rho * xp.linalg.norm(search.model.gradient / search.model.stiff)
    full = (search.tried == 1) & (length > _FULL * search.reach * np.sqrt(search.mean.shape[0]))
    return xp.where(full, 2.0 * search.reach, xp.maximum(1.0, 0.5 * search.reach))


def _integer_like(like: Int[Array, ""], value: int) -> Int[Array, ""]:
    """`value` as an integer like `like`: in compiled code what a loop carries keeps its type."""
    return 0 * like + value


def _choose(which: Flag, yes: Callable[[], T], no: Callable[[], T], xp: ModuleType) -> T:
    """One of two states: on the host only that one is computed, in compiled code both are."""
    if xp is np:
        return yes() if which else no()
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), yes(), no())
