"""A hidden Markov model with unknown probabilities."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..._numerics import host_rng
from ..._types import Array, Key, PyTree, Scalar, Validated
from ...families.exponential.chain import DiscreteMarkovChain
from ...families.exponential.product import Product
from ...families.exponential.simplex import Dirichlet
from ...results import TargetError
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, check_categories, check_rows, layout_of


class HiddenMarkovModel(AbstractCollapsedTarget):
    """Symbols emitted by a hidden chain of K states; all rows of probabilities are Dirichlet.

        initial ~ Dirichlet,  transition_i ~ Dirichlet,  emission_i ~ Dirichlet over V symbols
        z_1 ~ initial,  z_t+1 ~ transition_{z_t},  symbol_t ~ emission_{z_t}

    The chain is one factor, updated by forward-backward. Sequences may differ in length: pad them
    with -1, which is a time at which nothing was seen (at the end or anywhere else). Its posterior
    has K! modes, equal but for the names of states.

    Arguments:
        symbols: whole numbers in 0, ..., V - 1, or -1; one sequence `[T]`, or S of them `[S, T]`.
        states: K.
        vocabulary: V; one more than the largest symbol by default.
        initial_prior: concentration; 1 by default.
        transition_prior: concentration of each entry, a number or `[K, K]`; 1 by default.
        emission_prior: concentration of each entry, a number or `[K, V]`; 1 by default.

    Source: MacKay 1997, "Ensemble learning for hidden Markov models"; Beal 2003, chapter 3.
    """

    symbols: Int[Array, "sequences steps"]
    family: Product
    layout: Layout
    initial_prior: Dirichlet
    transition_prior: Dirichlet
    emission_prior: Dirichlet
    states: int = eqx.field(static=True)

    def __init__(
        self,
        symbols: Validated[ArrayLike, "check_rows"],
        states: Validated[int, "__init__"],
        *,
        vocabulary: int | None = None,
        initial_prior: Validated[ArrayLike, "Dirichlet"] = 1.0,
        transition_prior: Validated[ArrayLike, "Dirichlet"] = 1.0,
        emission_prior: Validated[ArrayLike, "Dirichlet"] = 1.0,
    ):
        name = "HiddenMarkovModel"
        padded = _padded(symbols)
        check_rows(name, symbols=padded)
        table = np.atleast_2d(np.asarray(padded))
        vocabulary = int(np.max(table)) + 1 if vocabulary is None else int(vocabulary)
        self.symbols = check_categories(name, "symbols", table, vocabulary, lowest=-1)
        if not isinstance(states, (int, np.integer)) or states < 1:
            raise TargetError(f"{name}: `states` must be an integer of at least 1, got {states!r}.")
        self.states = count = int(states)
        self.initial_prior = Dirichlet(
            np.broadcast_to(np.asarray(initial_prior, float), (count,)).copy()
        )
        self.transition_prior = Dirichlet(
            np.broadcast_to(np.asarray(transition_prior, float), (count, count)).copy()
        )
        self.emission_prior = Dirichlet(
            np.broadcast_to(np.asarray(emission_prior, float), (count, vocabulary)).copy()
        )
        self.family = Product(
            initial=self.initial_prior,
            transition=self.transition_prior,
            emission=self.emission_prior,
            chain=DiscreteMarkovChain.uniform(self.symbols.shape[1], count, (len(self.symbols),)),
            local=("chain",),
        )
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> Int[Array, "sequences steps"]:
        return self.symbols

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        symbols, chain = self.symbols if rows is None else rows, moments["chain"]
        # A last column of zeros, which the index -1 of a time without a symbol reads
        emission = jnp.concatenate([moments["emission"].log, jnp.zeros((self.states, 1))], axis=1)
        of_symbols = jnp.sum(chain.marginals * jnp.moveaxis(emission[:, symbols], 0, -1))
        of_chain = jnp.sum(chain.marginals[:, 0].sum(axis=0) * moments["initial"].log)
        of_chain += jnp.sum(chain.pairs.sum(axis=(0, 1)) * moments["transition"].log)
        priors = (
            self.initial_prior.expected_log_prob(moments["initial"])
            + self.transition_prior.expected_log_prob(moments["transition"])
            + self.emission_prior.expected_log_prob(moments["emission"])
        )
        return priors + scale * (of_symbols + of_chain)

    def start(self, key: Key) -> Product:
        """Emissions that differ from state to state at random, and chains that tend to stay."""
        rng, count = host_rng(key, "emissions"), self.states
        steps, vocabulary = self.symbols.shape[1], self.emission_prior.concentration.shape[1]
        # A tenth of a uniform law added: a symbol that a state cannot emit would stay impossible
        emission = np.log(rng.dirichlet(np.ones(vocabulary), count) + 0.1 / vocabulary)
        unary = np.concatenate([emission, np.zeros((count, 1))], axis=1)[:, self.symbols]
        stay = np.where(np.eye(count, dtype=bool), 1.0, 0.0)
        pair = broadcast_pair(stay, (len(self.symbols), steps - 1))
        return self.family.with_factor(
            "chain", DiscreteMarkovChain(np.moveaxis(unary, 0, -1), pair)
        )


def _padded(symbols: ArrayLike) -> ArrayLike:
    """Sequences of different lengths as one array, with -1 behind the shorter ones."""
    if not (isinstance(symbols, (list, tuple)) and symbols and np.ndim(symbols[0])):
        return symbols
    rows = [np.asarray(row).tolist() for row in symbols]
    longest = max(map(len, rows))
    return np.array([row + [-1] * (longest - len(row)) for row in rows])


def broadcast_pair(
    table: Float[np.ndarray, "K K"], lead: tuple[int, int]
) -> Float[np.ndarray, "sequences transitions K K"]:
    """One table of log potentials for every transition."""
    return np.broadcast_to(table, lead + table.shape).copy()
