"""Codebooks of kernels by sensitivity-weighted, entropy-constrained k-means (Chou, Lookabaugh, Gray, "Entropy-
constrained vector quantization", 1989, with the metric of the layer's outputs).

A kernel w_ij (row i, input channel j) costs g_i |(w_ij - gain c) R_j|^2 + lambda * (bits of index and gain); a centre
is the minimum over its members, c = (sum g gain^2 R R^T)^-1 sum g gain w R R^T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .kernel_blocks import Blocks
from .kernel_choice import Book, Chosen, Variant, choose
from .metric import Matrix

SAMPLE = 1 << 15
"""Kernels that an iteration looks at; larger layers are sampled anew each time (minibatches)."""
SEEDS = 1 << 13
"""Kernels among which k-means++ draws."""


@dataclass(frozen=True)
class Trained:
    """A codebook and what training thinks of it, for the whole layer: `distortion`, bits of indexes and gains."""

    book: Book
    distortion: float
    bits: float


def start(variant: Variant, words: Matrix, counts: Matrix | None = None) -> Book:
    """A codebook before anything has been coded with it."""
    k = len(words)
    bits = np.full(k, np.log2(max(k, 1))) if counts is None else lengths(counts)
    low, high = {"plain": (1, 1), "signs": (-1, 1), "gains": (-24, 24)}[variant]
    gain_bits = 1.0 + np.abs(np.arange(low, high + 1, dtype=np.float64))
    if variant == "signs":
        gain_bits = np.array([1.0, np.inf, 1.0])
    return Book(words, variant, bits, gain_bits)


def learnt(book: Book, chosen: Chosen) -> tuple[Book, float]:
    """The codebook with code lengths as they follow from its use, and the bits of indexes and gains."""
    counts = chosen.counts(book.size)
    spent = ideal_bits(counts)
    gain_bits = book.gain_bits
    if book.variant != "plain":
        gains = chosen.gain_counts(book.low, book.high)
        spent += ideal_bits(gains)
        if book.variant == "gains":
            gain_bits = lengths(gains + gains[::-1], 0.1)
    return replace(book, bits=lengths(counts), gain_bits=gain_bits), spent


def lengths(counts: Matrix, smoothing: float = 0.3) -> Matrix:
    """Code lengths in bits for symbols that occur so often."""
    share = counts + smoothing
    return np.asarray(-np.log2(share / share.sum()))


def ideal_bits(counts: Matrix) -> float:
    used = counts[counts > 0]
    return float(used @ np.log2(used.sum() / used)) if used.size else 0.0


def seed(blocks: Blocks, variant: Variant, k: int, known: Matrix, norm: float | None,
         rng: np.random.Generator) -> Matrix:
    """k-means++ (Arthur and Vassilvitskii 2007): `known` words [j, t] and more, to k in all (or fewer, if there are
    no more distinct kernels), each drawn with probability ~ its distance. With signs or gains a kernel's distance
    is that to the nearest line; with gains new words get the length `norm` in the metric (None: that of the known)."""
    some = blocks.sample(SEEDS, rng)
    # One metric for all: the mean of what errors cost in the rows and channels.
    costs = [group.metric.mean(axis=0) * group.weight.mean() for group in some.groups]
    metric = np.average(costs, axis=0, weights=[group.weight.size * len(group.y) for group in some.groups])
    trace = max(float(np.trace(metric)), 1e-300)
    factor = np.linalg.cholesky(metric + 1e-9 * trace * np.eye(len(metric)))
    words = np.concatenate([group.y.reshape(-1, blocks.taps) for group in some.groups])
    weight = np.concatenate([np.tile(group.weight * (np.trace(cost) / (trace * group.weight.mean())), len(group.y))
                             for group, cost in zip(some.groups, costs, strict=True)])
    if norm is None:
        norm = float(np.median(np.linalg.norm(known @ factor, axis=1)))
    points = words @ factor
    energy = np.einsum("nt,nt->n", points, points)

    def distance(word: Matrix) -> Matrix:
        product, size = points @ word, float(word @ word)
        if variant == "plain":
            return np.asarray(energy - 2.0 * product + size)
        return np.asarray(energy - product**2 / size if size > 0 else energy)

    nearest = energy.copy() if variant != "plain" else np.full(len(points), np.inf)
    for word in known:
        nearest = np.minimum(nearest, distance(word @ factor))
    added: list[Matrix] = []
    while len(known) + len(added) < k:
        potential = np.maximum(nearest, 0.0) * weight if np.isfinite(nearest[0]) else weight.copy()
        potential[energy * 1e-12 > nearest] = 0.0
        total = np.cumsum(potential)
        if not total[-1] > 0:
            break
        i = int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), len(points) - 1))
        length = np.sqrt(energy[i])
        added.append(words[i] * (norm / length) if variant == "gains" and length > 0 else words[i])
        nearest = np.minimum(nearest, distance(points[i]))
    if not added and not len(known):
        return np.zeros((1, blocks.taps))  # a layer of zeros
    return np.concatenate([known, *(word[None] for word in added)]) if added else known


def normal_equations(blocks: Blocks, chosen: Chosen, k: int) -> tuple[Matrix, Matrix]:
    """(M [k, t, t], b [k, t]): the members of word c cost c M c - 2 b c + a constant."""
    t = blocks.taps
    metric, moment = np.zeros((k, t * t)), np.zeros((k, t))
    for group, index, gain in zip(blocks.groups, chosen.index, chosen.gain, strict=True):
        c = len(group.y)
        weight = group.weight * gain
        flat = (index.astype(np.int64) * c + np.arange(c)[:, None]).ravel()
        mass = np.bincount(flat, weights=(weight * gain).ravel(), minlength=k * c).reshape(k, c)
        metric += mass @ group.metric.reshape(c, t * t)
        for tap in range(t):
            moment[:, tap] += np.bincount(index.ravel(), weights=(group.pulled[..., tap] * weight).ravel(), minlength=k)
    return metric.reshape(k, t, t), moment


def centres(metric: Matrix, moment: Matrix, words: Matrix) -> Matrix:
    """argmin of c M c - 2 b c for each word; words without members stay."""
    t = words.shape[1]
    trace = np.einsum("ktt->k", metric)
    alive = trace > 0
    out = words.copy()
    damped = metric[alive] + np.eye(t) * (1e-9 * trace[alive, None, None] / t)
    out[alive] = np.linalg.solve(damped, moment[alive][..., None])[..., 0]
    return out


def lloyd(blocks: Blocks, book: Book, price: float, iterations: int, rng: np.random.Generator,
          keep: bool = False) -> Trained:
    """Iterations of assignment and centres. Words that nothing uses are dropped, or with `keep` drawn anew among
    the kernels that cost most (until the last two iterations)."""
    memory: tuple[Matrix, Matrix] | None = None
    spent = distortion = 0.0
    for left in reversed(range(iterations)):
        part = blocks.sample(SAMPLE, rng)
        chosen = choose(part, book, price, feedback=False)
        counts = chosen.counts(book.size)
        book, bits = learnt(book, chosen)
        spent, distortion = bits / part.share, chosen.cost / part.share
        metric, moment = normal_equations(part, chosen, book.size)
        if part.share < 1.0 and memory is not None and len(memory[0]) == book.size:
            metric, moment = metric + 0.5 * memory[0], moment + 0.5 * memory[1]
        memory = metric, moment
        book = replace(book, words=centres(metric, moment, book.words))
        dead = counts == 0
        if dead.any() and not dead.all():
            alive = replace(book, words=book.words[~dead], bits=book.bits[~dead])
            memory = metric[~dead], moment[~dead]
            if keep and left >= 2:
                words = seed(part, book.variant, book.size, alive.words, None, rng)
                new = np.full(len(words) - alive.size, float(np.median(book.bits)))
                alive = replace(alive, words=words, bits=np.concatenate([alive.bits, new]))
                memory = None
            book = alive
    return Trained(book, distortion, spent)
