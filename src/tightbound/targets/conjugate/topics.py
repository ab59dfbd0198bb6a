"""Latent Dirichlet allocation: topics of documents."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._numerics import host_rng
from ..._types import Array, PyTree
from ...families.exponential.discrete import Categorical
from ...families.exponential.product import Product
from ...families.exponential.simplex import Dirichlet
from ...results import TargetError
from ..layout import Layout
from .base import AbstractConjugateTarget, broadcast, check_categories, check_rows, layout_of


class LatentDirichletAllocation(AbstractConjugateTarget):
    """Words of documents from a mixture of K topics, in proportions of each document's own.

        topics_k ~ Dirichlet(topic_prior) over V words,   proportions_d ~
        Dirichlet(proportion_prior) over K topics z_dn ~ Categorical(proportions_d),   w_dn ~
        Categorical(topics_{z_dn})

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

    words: Array
    present: Array
    family: Product
    layout: Layout
    topic_prior: Dirichlet
    proportion_prior: Dirichlet
    topics: int = eqx.field(static=True)

    def __init__(
        self,
        word: Any,
        document: Any,
        topics: int,
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
        word = check_categories(name, "word", word, vocabulary)
        document = check_categories(name, "document", document, documents)
        if not isinstance(topics, (int, np.integer)) or topics < 2:
            raise TargetError(f"{name}: `topics` must be an integer of at least 2, got {topics!r}.")
        self.topics = int(topics)
        self.words, self.present = _padded(word, document, documents)
        proportion = 1.0 / topics if proportion_prior is None else float(proportion_prior)
        self.topic_prior = Dirichlet(np.full(vocabulary, float(topic_prior)))
        self.proportion_prior = Dirichlet(np.full(self.topics, proportion))
        self.family = self._factors(broadcast(self.topic_prior, (self.topics,)))
        self.layout = layout_of(self.family)

    @staticmethod
    def from_documents(documents: Any, topics: int, **kwargs: Any) -> "LatentDirichletAllocation":
        """From a list of documents, each a sequence of word indices, of any lengths (an empty one
        keeps its prior).
        """
        lengths = [len(document) for document in documents]
        word = (
            np.concatenate([np.asarray(document, np.int64) for document in documents])
            if documents
            else np.empty(0, int)
        )
        index = np.repeat(np.arange(len(documents)), lengths)
        return LatentDirichletAllocation(word, index, topics, documents=len(documents), **kwargs)

    @property
    def data_rows(self) -> PyTree:
        return {"words": self.words, "present": self.present}

    def expected_log_joint(self, moments: PyTree, rows: Any = None, scale: Any = 1.0) -> jax.Array:
        data = self.data_rows if rows is None else rows
        topics, proportions, z = moments["topics"], moments["proportions"], moments["z"]
        present, of_word = (
            data["present"][..., None],
            jnp.moveaxis(topics.log[:, data["words"]], 0, -1),
        )
        log_joint = present * (of_word + proportions.log[:, None, :]) - (1.0 - present) * math.log(
            self.topics
        )
        of_documents = jnp.sum(z.probs * log_joint) + self.proportion_prior.expected_log_prob(
            proportions
        )
        return self.topic_prior.expected_log_prob(topics) + scale * of_documents

    def start(self, key: Any) -> Product:
        """Topics that are the words' frequencies with random weights, and assignments that follow
        from them.
        """
        rng = host_rng(key, "topics")
        vocabulary = self.topic_prior.concentration.shape[0]
        frequency = (
            np.bincount(self.words.ravel(), self.present.ravel(), vocabulary) / self.present.sum()
        )
        weights = rng.gamma(1.0, 1.0, (self.topics, vocabulary)) * (frequency + 1e-3 / vocabulary)
        weights *= self.present.sum() / self.topics / weights.sum(axis=1, keepdims=True)
        concentration = np.asarray(self.topic_prior.concentration) + weights
        log_mean = np.log(concentration / concentration.sum(axis=1, keepdims=True))
        return self._factors(Dirichlet(concentration), np.moveaxis(log_mean[:, self.words], 0, -1))

    def _factors(self, topics: Dirichlet, logits: np.ndarray | None = None) -> Product:
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
    word: np.ndarray, document: np.ndarray, documents: int
) -> tuple[np.ndarray, np.ndarray]:
    """The words of each document in a row of their own `[M, L]`, and which places are words rather
    than padding.
    """
    order = np.argsort(document, kind="stable")
    lengths = np.bincount(document, minlength=documents)
    place = np.arange(len(order)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words, present = (
        np.zeros((documents, max(int(lengths.max()), 1)), kind) for kind in (np.int64, np.float64)
    )
    words[document[order], place], present[document[order], place] = word[order], 1.0
    return words, present
