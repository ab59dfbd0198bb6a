"""Latent Dirichlet allocation: topics of documents."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..._numerics import host_rng
from ..._types import Array, Key, PyTree, Scalar, Validated
from ...families.exponential.discrete import Categorical
from ...families.exponential.product import Product
from ...families.exponential.simplex import Dirichlet
from ...results import TargetError
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractConjugateTarget, broadcast, check_categories, check_rows, layout_of


class LatentDirichletAllocation(AbstractConjugateTarget):
    """Words of documents from a mixture of K topics, in proportions of each document's own.

        topics_k ~ Dirichlet(topic_prior) over V words
        proportions_d ~ Dirichlet(proportion_prior) over K topics
        z_dn ~ Categorical(proportions_d),   w_dn ~ Categorical(topics_{z_dn})

    Documents are padded to one length; a place that holds no word has a uniform assignment that
    adds nothing to the ELBO. Not for correlated topics. Its posterior has many optima; compare runs
    by their ELBO.

    Arguments:
        word: index of each token's word in 0, ..., V - 1, `[tokens]`.
        document: index of each token's document in 0, ..., M - 1, `[tokens]`.
        topics: K.
        vocabulary: V; one more than the largest word by default.
        documents: M; one more than the largest document by default.
        topic_prior: concentration of each word; 0.1 by default.
        proportion_prior: concentration of each topic; 1/K by default.

    Source: Blei, Ng & Jordan 2003; Hoffman et al. 2013, section 3.
    """

    words: Int[Array, "documents places"]
    present: Float[Array, "documents places"]
    family: Product
    layout: Layout
    topic_prior: Dirichlet
    proportion_prior: Dirichlet
    topics: int = eqx.field(static=True)

    def __init__(
        self,
        word: Validated[ArrayLike, "check_categories"],
        document: Validated[ArrayLike, "check_categories"],
        topics: Validated[int, "__init__"],
        *,
        vocabulary: int | None = None,
        documents: int | None = None,
        topic_prior: float = 0.1,
        proportion_prior: float | None = None,
    ):
        name = "LatentDirichletAllocation"
        check_rows(name, word=word, document=document)
        vocabulary = int(np.max(word)) + 1 if vocabulary is None else int(vocabulary)
        documents = int(np.max(document)) + 1 if documents is None else int(documents)
        of_token = check_categories(name, "word", word, vocabulary)
        place = check_categories(name, "document", document, documents)
        if not isinstance(topics, (int, np.integer)) or topics < 2:
            raise TargetError(f"{name}: `topics` must be an integer of at least 2, got {topics!r}.")
        self.topics = int(topics)
        self.words, self.present = _padded(of_token, place, documents)
        proportion = 1.0 / topics if proportion_prior is None else float(proportion_prior)
        self.topic_prior = Dirichlet(np.full(vocabulary, float(topic_prior)))
        self.proportion_prior = Dirichlet(np.full(self.topics, proportion))
        self.family = self._factors(broadcast(self.topic_prior, (self.topics,)))
        self.layout = layout_of(self.family)

    @staticmethod
    def from_documents(
        documents: Sequence[Sequence[int]],
        topics: int,
        *,
        vocabulary: int | None = None,
        topic_prior: float = 0.1,
        proportion_prior: float | None = None,
    ) -> "LatentDirichletAllocation":
        """From documents that are sequences of word indices; an empty one keeps its prior."""
        lengths = [len(document) for document in documents]
        word = (
            np.concatenate([np.asarray(document, np.int64) for document in documents])
            if documents
            else np.empty(0, int)
        )
        index = np.repeat(np.arange(len(documents)), lengths)
        return LatentDirichletAllocation(
            word,
            index,
            topics,
            vocabulary=vocabulary,
            documents=len(documents),
            topic_prior=topic_prior,
            proportion_prior=proportion_prior,
        )

    @property
    def data_rows(self) -> PyTree:
        return {"words": self.words, "present": self.present}

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        data = self.data_rows if rows is None else rows
        topics, proportions, z = moments["topics"], moments["proportions"], moments["z"]
        present = data["present"][..., None]
        of_word = jnp.moveaxis(topics.log[:, data["words"]], 0, -1)
        # A place without a word counts -log K for a uniform assignment, whose entropy is log K: it
        # adds nothing to the ELBO, and leaves every row the same length.
        log_joint = present * (of_word + proportions.log[:, None, :]) - (1.0 - present) * math.log(
            self.topics
        )
        of_documents = jnp.sum(z.probs * log_joint) + self.proportion_prior.expected_log_prob(
            proportions
        )
        return self.topic_prior.expected_log_prob(topics) + scale * of_documents

    def start(self, key: Key) -> Product:
        """Topics that are the words' frequencies with random weights, and assignments from them."""
        rng = host_rng(key, "topics")
        vocabulary = self.topic_prior.concentration.shape[0]
        frequency = (
            np.bincount(self.words.ravel(), self.present.ravel(), vocabulary) / self.present.sum()
        )
        weights = rng.gamma(1.0, 1.0, (self.topics, vocabulary)) * (frequency + 1e-3 / vocabulary)
        # Each topic starts with an equal share of all words, as counts beside its prior
        weights *= self.present.sum() / self.topics / weights.sum(axis=1, keepdims=True)
        concentration = np.asarray(self.topic_prior.concentration) + weights
        log_mean = np.log(concentration / concentration.sum(axis=1, keepdims=True))
        return self._factors(Dirichlet(concentration), np.moveaxis(log_mean[:, self.words], 0, -1))

    def _factors(
        self, topics: Dirichlet, logits: Float[np.ndarray, "documents places K"] | None = None
    ) -> Product:
        documents, length = self.words.shape
        logits = (
            np.zeros((documents, length, self.topics))
            if logits is None
            else logits * self.present[..., None]
        )
        return Product(
            topics=topics,
            proportions=broadcast(self.proportion_prior, (documents,)),
            z=Categorical(logits),
            local=("proportions", "z"),
        )


def _padded(
    word: Int[np.ndarray, "tokens"], document: Int[np.ndarray, "tokens"], documents: int
) -> tuple[Int[np.ndarray, "documents places"], Float[np.ndarray, "documents places"]]:
    """The words of each document in a row of their own, and which places hold a word."""
    order = np.argsort(document, kind="stable")
    lengths = np.bincount(document, minlength=documents)
    # The place of each token within its own document
    place = np.arange(len(order)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words, present = (
        np.zeros((documents, max(int(lengths.max()), 1)), kind) for kind in (np.int64, np.float64)
    )
    words[document[order], place], present[document[order], place] = word[order], 1.0
    return words, present
