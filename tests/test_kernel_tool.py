"""The kernel tool's encoder: choices, codebooks, values, sizes by rate-distortion, what a file gives back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from test_tools_scalar import KINDS, spd, target_of

from tersor.adapters.inventory import WeightLayer
from tersor.bitstream import context
from tersor.bitstream.manifest import TensorRecord
from tersor.errors import ConfigError
from tersor.limits import DEFAULT_LIMITS
from tersor.synthesis import kernels as synthesis
from tersor.synthesis import scalar as synthesis_scalar
from tersor.tools import kernel_kmeans as kmeans
from tersor.tools import kernels, scalar
from tersor.tools.candidate import distortion
from tersor.tools.kernel_blocks import blocks_of
from tersor.tools.kernel_choice import RANGES, Book, choose
from tersor.tools.kernel_refit import Fitted, refit
from tersor.tools.kernels import KernelConfig, propose
from tersor.tools.target import LayerTarget, to_matrix, unmeasured_target

CONV = WeightLayer("w", "conv")


def conv(m=12, c=10, seed=0, absorbed=True, levels=0):
    """A layer with a full metric. levels: its kernels are so many different ones, in two strengths and signs."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.1, (m, c, 9))
    if levels:
        w = rng.normal(0, 0.1, (levels, 9))[rng.integers(levels, size=(m, c))] * rng.choice([-2, -1, 1, 2], (m, c, 1))
    return LayerTarget(CONV, (m, c, 3, 3), w.reshape(1, m, c * 9), spd(c * 9)[None], spd(m)[None], absorbed)


def random_book(variant, k=7, seed=1):
    rng = np.random.default_rng(seed)
    low, high = RANGES[variant]
    lengths = np.abs(np.arange(low, high + 1)) + 1.0
    if variant == "signs":
        lengths[1] = np.inf
    return Book(rng.normal(0, 0.1, (k, 9)), variant, rng.uniform(1, 4, k), lengths)


@pytest.mark.parametrize("variant", ["plain", "signs", "gains"])
def test_choices_without_feedback_are_the_cheapest(variant):
    target = conv()
    blocks = blocks_of(target, 9, np.random.default_rng(2).uniform(0.5, 2, (1, 12)), feedback=False)
    (group,), book, price = blocks.groups, random_book(variant), 0.02
    chosen = choose(blocks, book, price, feedback=False)
    low, high = book.low, book.high
    total = 0.0
    for j in range(10):
        for i in range(12):
            costs = {}
            for q in range(max(low, -8), min(high, 8) + 1):
                for k in range(book.size):
                    bits = book.gain_bits[q - low] if variant != "plain" else 0.0
                    bits += book.bits[k] if q else 0.0
                    error = (group.y[j, i] - q * book.words[k]) @ group.whiten[j]
                    costs[k if q else 0, q] = group.weight[i] * error @ error + price * bits
            k, q = int(chosen.index[0][j, i]), int(chosen.gain[0][j, i])
            assert costs[k, q] <= min(costs.values()) + 1e-9
            error = (group.y[j, i] - q * book.words[k]) @ group.whiten[j]
            total += float(group.weight[i] * error @ error)
    assert np.isclose(chosen.cost, total)


def test_whitened_errors_are_the_conditional_cost():
    """|e R|^2 = min over the later columns of e A e^T."""
    target = replace(conv(), damping=0.0)
    (group,) = blocks_of(target, 9, np.ones((1, 12))).groups
    a = target.A[0]
    for j in (0, 4, 9):
        own, later = slice(9 * j, 9 * j + 9), slice(9 * j + 9, None)
        cross = a[own, later]
        conditional = a[own, own] - cross @ np.linalg.solve(a[later, later], cross.T)
        assert np.allclose(group.metric[j], conditional, rtol=1e-6, atol=1e-9)


def test_feedback_lowers_the_real_distortion():
    target = conv(16, 16, seed=3)
    book = random_book("gains", 12)

    def real(feedback):
        blocks = blocks_of(target, 9, np.ones((1, 16)), feedback=feedback)
        return distortion(target, blocks.restore(choose(blocks, book, 0.0, feedback).kernels(book.words)))

    assert real(True) < 0.9 * real(False)


def test_feedback_cost_is_the_real_one():
    """Undamped and without rows helping each other, the cost of the pass is the layer's distortion."""
    target = replace(conv(seed=4), damping=0.0, G=np.random.default_rng(5).uniform(0.5, 2, (1, 12)))
    blocks = blocks_of(target, 9, np.random.default_rng(6).uniform(0.5, 2, (1, 12)))
    book = random_book("gains")
    chosen = choose(blocks, book, 1e-3)
    assert np.isclose(chosen.cost, distortion(target, blocks.restore(chosen.kernels(book.words))))


def test_centres_are_the_minimum():
    target = conv(seed=7)
    blocks = blocks_of(target, 9, np.ones((1, 12)), feedback=False)
    book = random_book("gains")
    chosen = choose(blocks, book, 1e-3, feedback=False)
    metric, moment = kmeans.normal_equations(blocks, chosen, book.size)
    best = kmeans.centres(metric, moment, book.words)
    (group,) = blocks.groups

    def cost(words):
        error = np.matmul(group.y - words[chosen.index[0]] * chosen.gain[0][..., None], group.whiten)
        return float((group.weight * (error**2).sum(axis=2)).sum())

    for scale in (1e-2, 1e-4):
        for seed in range(5):
            assert cost(best) <= cost(best + scale * np.random.default_rng(seed).normal(size=best.shape)) + 1e-12


def test_lloyd_falls_and_keeps_what_was_asked_for():
    blocks = blocks_of(conv(32, 24, seed=8), 9, np.ones((1, 32)), feedback=False)
    rng = np.random.default_rng(0)
    words = kmeans.seed(blocks, "plain", 20, np.zeros((0, 9)), 1.0, rng)
    assert len(words) == 20
    start = kmeans.start("plain", words)
    costs = [kmeans.lloyd(blocks, start, 0.0, n, np.random.default_rng(0)).distortion for n in (1, 3, 10)]
    assert costs[0] > costs[1] > costs[2]
    dead = replace(start, words=np.concatenate([words[:5], np.full((15, 9), 100.0)]))
    assert kmeans.lloyd(blocks, dead, 0.0, 8, rng).book.size == 5
    assert kmeans.lloyd(blocks, dead, 0.0, 8, rng, keep=True).book.size == 20


def test_minibatches(monkeypatch):
    """Sampled iterations come near those over all kernels."""
    blocks = blocks_of(conv(64, 48, seed=9), 9, np.ones((1, 64)), feedback=False)
    start = kmeans.start("plain", kmeans.seed(blocks, "plain", 8, np.zeros((0, 9)), 1.0, np.random.default_rng(1)))
    whole = kmeans.lloyd(blocks, start, 0.0, 8, np.random.default_rng(2))
    monkeypatch.setattr(kmeans, "SAMPLE", 1000)
    sampled = kmeans.lloyd(blocks, start, 0.0, 8, np.random.default_rng(2))
    cost = choose(blocks, sampled.book, 0.0, feedback=False).cost
    assert cost < 1.05 * whole.distortion
    assert 0.8 < sampled.distortion / cost < 1.2


def test_refit_finds_the_least_squares_codebook():
    target = conv(seed=10)
    blocks = blocks_of(target, 9, np.random.default_rng(11).uniform(0.5, 2, (1, 12)))
    book = random_book("gains", 3)
    chosen = choose(blocks, book, 1e-3)

    def real(words):
        return distortion(target, blocks.restore(chosen.kernels(words)))

    words = book.words
    for _ in range(12):
        words = refit([Fitted(target, blocks, chosen)], words)
    assert real(words) < real(book.words)
    for seed in range(5):
        assert real(words) <= real(words + 1e-3 * np.random.default_rng(seed).normal(size=words.shape))


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("options", [{}, {"gains": False}, {"coder": "fixed", "signs": True, "gains": False}],
                         ids=str)
def test_candidates_are_what_a_file_restores(kind, absorbed, options):
    monkey = KINDS[kind]
    target = target_of(kind, absorbed)
    config = KernelConfig(vector=3, **options)
    found = propose(target, 1e-2, config, "small")
    if found is None:
        assert kind == "embedding" or target.count < 8 * np.prod(monkey[1][2:])
        return
    assert found.tool == "kernels" and found.label and 0 < found.side_bits < found.bits
    assert np.isclose(found.distortion, distortion(target, found.restored))
    coder = "fixed" if options.get("coder") == "fixed" else "adaptive"
    payload = synthesis.encode([found.code], [target.shape], coder, 6)
    (tensor,) = synthesis.decode(payload, [TensorRecord("w", "F64", target.shape, 0)], DEFAULT_LIMITS, 1)
    assert np.array_equal(tensor, found.code.tensor(target.shape))
    ratio = found.restored / np.where(found.restored == 0, 1, to_matrix(tensor, target.layer))
    if not absorbed or kind.startswith("transposed"):
        assert np.allclose(to_matrix(tensor, target.layer), found.restored)
    else:  # each output's scale is taken up
        rows = np.where(found.restored == 0, np.nan, ratio)
        spread = np.nanmax(rows, axis=2, initial=0) - np.nanmin(rows, axis=2, initial=np.inf)
        assert (spread[np.isfinite(spread)] < 1e-9).all()


def test_what_is_left_to_the_scalar_tool():
    assert propose(target_of("linear"), 1e-2, KernelConfig(), "small") is None
    assert propose(target_of("embedding"), 1e-2, KernelConfig(vector=4), "small") is None
    assert propose(conv(2, 2), 1e-2, KernelConfig(), "small") is None


def test_more_expensive_bits_are_fewer():
    target = conv(24, 24, seed=12)
    found = [propose(target, price, KernelConfig(), "small") for price in (1e-3, 1e-2, 1e-1)]
    assert found[0].bits > found[1].bits > found[2].bits
    assert found[0].distortion < found[1].distortion < found[2].distortion


def test_sizes_by_hand_and_determinism():
    target = conv(24, 24, seed=13)
    found = propose(target, 1e-3, KernelConfig(size={"x.*": 3, "w": 20}, gains=False, signs=False), "small")
    assert len(found.code.values) == 20 and found.code.gain is None
    again = propose(target, 1e-3, KernelConfig(size=20, gains=False, signs=False), "small")
    assert np.array_equal(found.code.index, again.code.index) and np.array_equal(found.code.values, again.code.values)
    assert np.abs(found.code.values).max() <= 32


def test_memory_of_an_earlier_search():
    target, memory = conv(24, 24, seed=17), {}
    first = propose(target, 1e-2, KernelConfig(), "small", memory=memory)
    assert first.cost(1e-2) == propose(target, 1e-2, KernelConfig(), "small").cost(1e-2)
    assert list(memory) == ["w"] and memory["w"].size >= len(first.code.values)
    moved = replace(target, W=target.W * 1.01)
    again = propose(moved, 1.2e-2, KernelConfig(), "small", memory=memory)
    assert again.cost(1.2e-2) < 1.05 * propose(moved, 1.2e-2, KernelConfig(), "small").cost(1.2e-2)
    sized = propose(target, 1e-2, KernelConfig(size=20, gains=False, signs=False), "small", memory=memory)
    assert len(sized.code.values) == 20 and sized.code.gain is None


def test_kernels_win_where_there_are_few():
    """A layer that is made of 6 kernels, their negatives and their doubles."""
    target = conv(32, 32, seed=14, levels=6)
    flat = float((target.W**2).sum())
    target = replace(target, A=np.eye(288)[None], G=np.eye(32)[None] / flat, absorbed=False)
    found = propose(target, 1e-6, KernelConfig(), "small")
    assert found.distortion < 4e-3 and found.bits < 0.75 * target.count
    assert len(found.code.values) <= 24
    gains = propose(target, 1e-6, KernelConfig(gains=True), "small")
    assert len(gains.code.values) <= 12 and found.cost(1e-6) <= gains.cost(1e-6)
    code, steps = scalar.encode(target, 1e-6, scalar.ScalarOptions())
    integers = context.encode([code.q], [synthesis_scalar.view_shape(target.shape, False)])
    lost = distortion(target, to_matrix(code.tensor(target.shape), CONV) * steps.absorbed[:, :, None])
    assert found.cost(1e-6) < 0.7 * (lost + 1e-6 * 8 * len(integers))


def test_values_as_fine_as_they_pay():
    target = conv(24, 24, seed=15)
    coarse, six, free = (propose(target, 1e-4, KernelConfig(size=16, gains=False, value_bits=bits), "small")
                         for bits in (3, 6, None))
    assert np.abs(coarse.code.values).max() <= 4 and np.abs(six.code.values).max() <= 32
    assert free.cost(1e-4) < 1.02 * six.cost(1e-4) < coarse.cost(1e-4) * 1.02


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_layers_without_anything_to_say(value):
    target = unmeasured_target(CONV, np.full((8, 8, 3, 3), value))
    found = propose(target, 1e-2, KernelConfig(), "small")
    assert np.isfinite(found.restored).all() and found.bits < 800


def test_diagonal_metric():
    target = conv(16, 16, seed=16)
    block, diagonal = (propose(target, 1e-3, KernelConfig(metric=metric), "small") for metric in ("block", "diagonal"))
    assert block.cost(1e-3) < diagonal.cost(1e-3)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": {"a": 2.5}}, {"value_bits": 1}, {"vector": 0},
                                     {"coder": "x"}, {"metric": "x"}, {"scope": "x"}, {"size": {"(": 4}}], ids=str)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError):
        KernelConfig(**options)


def test_wanted_size_larger_than_the_layer():
    found = propose(conv(4, 4), 1e-6, KernelConfig(size=100, gains=False), "small")
    assert len(found.code.values) <= 16
    assert kernels.prepare(conv(4, 4), KernelConfig()).blocks.count == 16
