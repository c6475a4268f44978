"""The search of dependent quantization: beside brute force, beside a plain search with feedback, beside scalar."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from test_feedback import distortion, spd

from tersor.adapters.inventory import WeightLayer
from tersor.synthesis import scalar as section
from tersor.synthesis.trellis import NEXT, QUANTIZER, active_states, restore
from tersor.tools import feedback, scalar, trellis
from tersor.tools.feedback import REACH
from tersor.tools.metric import Triangular, triangular
from tersor.tools.target import LayerTarget

Matrix = npt.NDArray[np.float64]


def lengths(classes: int = 1, dear: float = 2.0) -> Matrix:
    """Code lengths that differ between the quantizers."""
    magnitude = np.arange(REACH + 1.0)
    table = np.stack([1 + dear * magnitude, np.where(magnitude == 0, 2.5, 0.5 + dear * magnitude)])
    return np.ascontiguousarray(np.broadcast_to(table, (classes, 2, REACH + 1)))


def rounding(rows: int, states: int, price: float = 0.3, step: float | Matrix = 1.0) -> trellis.Rounding:
    return trellis.Rounding(np.full(rows, step) if np.isscalar(step) else np.asarray(step), np.full(rows, price),
                            lengths(), np.zeros(rows, np.int32), states)


def alone(columns: Matrix | int, rows: int) -> tuple[Triangular, Triangular]:
    cost = np.ones(columns) if isinstance(columns, int) else columns
    return Triangular(None, cost), Triangular(None, np.ones(rows))


def path_cost(values: list[float], q: tuple[int, ...], states: int, column: Matrix, price: float) -> float:
    state, cost, bits = 0, 0.0, lengths()[0]
    for value, integer, d in zip(values, q, column, strict=True):
        quantizer = QUANTIZER[states][state]
        level = 2 * integer - quantizer * ((integer > 0) - (integer < 0))
        cost += d * (value - level) ** 2 + price * bits[quantizer, abs(integer)]
        state = NEXT[states][state][integer % 2]
    return cost


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3.5, 3.5), min_size=1, max_size=4), st.sampled_from([4, 8]),
       st.sampled_from([0.0, 0.2, 1.0]), st.integers(0, 99))
def test_finds_the_best_of_all_paths(values, states, price, seed):
    column = np.exp(np.random.default_rng(seed).normal(0, 0.5, len(values)))
    q, restored = trellis.quantize(np.array([values]), *alone(column, 1), rounding(1, states, price))
    assert np.array_equal(restored, restore(q, states, np.ones(1, np.float32)))
    every = itertools.product(range(-3, 4), repeat=len(values))
    best = min(path_cost(values, path, states, column, price) for path in every)
    assert path_cost(values, tuple(q[0].tolist()), states, column, price) == pytest.approx(best, abs=1e-9)


def plain_search(w: Matrix, u: Matrix | None, v: Matrix | None, states: int, column: Matrix,
                 price: float) -> npt.NDArray[np.int32]:
    """Rows one after the other, every survivor with a row of its own, all integers near a value tried."""
    m, n = w.shape
    w, out, bits = w.copy(), np.zeros((m, n), np.int32), lengths()[0]
    for i in range(m):
        survivors: dict[int, tuple[float, Matrix, list[int], list[int]]] = {0: (0.0, w[i].copy(), [], [])}
        for j in range(n):
            reached: dict[int, tuple[float, Matrix, list[int], list[int]]] = {}
            for state, (cost, row, path, levels) in survivors.items():
                quantizer = QUANTIZER[states][state]
                middle = int(np.rint(row[j] / 2))
                for q in sorted({0, *range(middle - 2, middle + 3)}):
                    level = 2 * q - quantizer * ((q > 0) - (q < 0))
                    total = cost + column[j] * (row[j] - level) ** 2 + price * bits[quantizer, abs(q)]
                    after = NEXT[states][state][q % 2]
                    if after not in reached or total < reached[after][0]:
                        rest = row.copy()
                        if u is not None:
                            rest[j + 1:] -= (row[j] - level) / u[j, j] * u[j, j + 1:]
                        reached[after] = total, rest, [*path, q], [*levels, level]
            survivors = reached
        _, _, path, levels = min(survivors.values(), key=lambda survivor: survivor[0])
        out[i] = path
        if v is not None:
            for r in range(i + 1, m):
                w[r] -= v[i, r] / v[i, i] * (w[i] - np.array(levels))
    return out


@pytest.mark.parametrize("states", [4, 8])
@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("by_row", [True, False])
def test_equals_a_plain_search(states, by_column, by_row):
    rng = np.random.default_rng(states)
    w = rng.normal(0, 4, (5, 23))
    columns, rows = triangular(spd(rng, 23), 0.0), triangular(spd(rng, 5, 0.6), 0.0)
    columns = columns if by_column else columns.without_feedback()
    rows = rows if by_row else rows.without_feedback()
    price = float(0.2 * columns.cost.mean())
    q, restored = trellis.quantize(w, columns, rows, rounding(5, states, price))
    assert np.array_equal(q, plain_search(w, columns.upper, rows.upper, states, columns.cost, price))
    assert np.array_equal(restored, restore(q, states, np.ones(5, np.float32)))


@pytest.mark.parametrize("columns_in_all", [36, 720])
def test_runs_are_searched_as_the_whole_metric(columns_in_all):
    """Diagonal blocks of nine taps, in one block of columns or in several: the same as with the zeros written out."""
    rng = np.random.default_rng(3)
    blocks = np.stack([spd(rng, 9) for _ in range(columns_in_all // 9)])
    whole = np.zeros((columns_in_all,) * 2)
    for i, block in enumerate(blocks):
        whole[9 * i : 9 * i + 9, 9 * i : 9 * i + 9] = block
    w = rng.normal(0, 4, (4, columns_in_all))
    few, one, rows = triangular(blocks), triangular(whole), triangular(spd(rng, 4, 0.6))
    step = rounding(4, 8, float(0.2 * few.cost.mean()))
    q, restored = trellis.quantize(w, few, rows, step)
    assert np.array_equal(restored, restore(q, 8, np.ones(4, np.float32)))
    if columns_in_all <= trellis.WHOLE:  # else they are cut at other columns
        assert np.array_equal(q, trellis.quantize(w, one, rows, step)[0])
    else:
        other = trellis.quantize(w, one, rows, step)[1]
        kinds = [float(((w - r) @ whole * (w - r)).sum()) for r in (restored, other)]
        assert kinds[0] == pytest.approx(kinds[1], rel=0.03)


def test_blocks_cost_little(monkeypatch):
    """Searched in blocks, the tails being matrix products: nearly what the search of whole rows finds, and with more
    columns to look ahead the nearer."""
    rng = np.random.default_rng(7)
    a, g, w = spd(rng, 150), spd(rng, 12, 0.6), rng.normal(0, 4, (12, 150))
    columns, rows = triangular(a, 0.0), triangular(g, 0.0)

    def cost(block: int, look: int) -> float:
        monkeypatch.setattr(trellis, "WHOLE", 0)
        monkeypatch.setattr(trellis, "BLOCK", block)
        monkeypatch.setattr(trellis, "LOOK", look)
        q, restored = trellis.quantize(w, columns, rows, rounding(12, 8, 0.0))
        assert np.array_equal(restored, restore(q, 8, np.ones(12, np.float32)))
        return distortion(w - restored, a, g)

    whole, far, near = cost(150, 0), cost(16, 16), cost(16, 0)
    assert far < 1.06 * whole
    assert far < near < 1.4 * whole


def entropy(q: npt.NDArray[np.int32]) -> float:
    """Bits of all integers, each at the entropy of their histogram."""
    _, counts = np.unique(q, return_counts=True)
    return float(-(counts * np.log2(counts / max(counts.sum(), 1))).sum())


def of_scalar(w: Matrix, step: float) -> tuple[float, float]:
    """(bits per weight, dB of distortion) with rate-distortion-optimised rounding."""
    row_class, bits = scalar.code_lengths([w / step])
    how = feedback.Rounding(np.full(len(w), step), np.full(len(w), 0.8 * np.log(2) / 6), bits, row_class[0])
    q, restored = feedback.quantize(w, *alone(w.shape[1], len(w)), how)
    return entropy(q) / q.size, float(10 * np.log10(((w - restored) ** 2).mean()))


def of_trellis(w: Matrix, step: float, states: int) -> tuple[float, float]:
    """The same with a trellis, whose bits are those of a code that sees the quantizer."""
    sub, row_class = step * trellis.SUB_STEP, np.zeros(len(w), np.int32)
    counts = trellis.count_nearest(w / sub, row_class, 1)
    for _ in range(2):
        bits = trellis.code_lengths(counts)
        price = np.full(len(w), 0.8 * np.log(2) / 6 / trellis.SUB_STEP**2)
        q, restored = trellis.quantize(w, *alone(w.shape[1], len(w)),
                                       trellis.Rounding(np.full(len(w), sub), price, bits, row_class, states))
        counts = trellis.count(q, states, row_class, 1)
    active = np.array(QUANTIZER[states])[active_states(q, states)]
    return (entropy(q[active == 0]) + entropy(q[active == 1])) / q.size, \
        float(10 * np.log10(((w - restored) ** 2).mean()))


def test_gains_half_a_decibel_and_more_on_gaussian_rows():
    w = np.random.default_rng(1).normal(size=(40, 500))

    def at(bits: float, points: Callable[[float], tuple[float, float]]) -> float:
        rate, decibel = np.array(sorted(points(step) for step in (0.6, 0.8, 1.0, 1.3, 1.7))).T
        return float(np.interp(bits, rate, decibel))

    for bits in (2.0, 1.5):
        plain = at(bits, lambda step: of_scalar(w, step))
        four, eight = (at(bits, lambda step, states=states: of_trellis(w, step, states)) for states in (4, 8))
        assert four < plain - 0.5
        assert eight < four - 0.05
        assert eight > -6.02 * bits  # the rate-distortion function


def test_values_that_are_out_of_range_or_no_numbers():
    w = np.array([[1e300, -1e300, 0.4, np.inf, -np.inf, np.nan, 7.0]])
    for states in (4, 8):
        q, restored = trellis.quantize(w, *alone(7, 1), rounding(1, states))
        assert np.isfinite(restored).all() and (np.abs(q.astype(np.int64)) <= feedback.LIMIT).all()
        assert abs(restored[0, 6] - 7) <= 2
    q, restored = trellis.quantize(np.zeros((3, 0)), *alone(0, 3), rounding(3, 8))
    assert q.shape == restored.shape == (3, 0)
    q, _ = trellis.quantize(np.ones((2, 4)), *alone(4, 2), rounding(2, 8, step=np.zeros(2)))
    assert (q == 0).all()


def layer_target(seed: int, absorbed: bool = True, kind: str = "conv", groups: int = 1) -> LayerTarget:
    rng = np.random.default_rng(seed)
    m, n = 12, 45
    layer = WeightLayer("w", kind, groups, None)  # type: ignore[arg-type]
    w = rng.laplace(0, 1, (groups, m, n))
    shape = (groups * m, n // 9, 3, 3) if kind == "conv" else (n, m)
    a, g = (np.stack([spd(rng, size, 0.8) for _ in range(groups)]) for size in (n, m))
    return LayerTarget(layer, shape, w, a, g, absorbed)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("absorbed", [False, True])
def test_a_layer_with_a_trellis(absorbed, groups):
    """Steps, integers and what they stand for agree; feedback helps in each direction; repeatable."""
    target = layer_target(4, absorbed, groups=groups)
    plain = scalar.ScalarOptions(trellis=8)
    price = 0.03
    found = {}
    for name, options in (("both", plain), ("columns", scalar.ScalarOptions(trellis=8, two_sided=False)),
                          ("none", scalar.ScalarOptions(trellis=8, feedback=False))):
        candidate = scalar.propose(target, price, options, "small")
        code = candidate.code
        assert code.trellis == 8 and code.shift == (0, 0)
        assert candidate.distortion == pytest.approx(sum(
            distortion(target.W[k] - candidate.restored[k], target.A[k], target.G[k]) for k in range(groups)))
        again = scalar.propose(target, price, options, "small")
        assert np.array_equal(again.code.q, code.q) and again.bits == candidate.bits
        found[name] = candidate
    assert found["both"].distortion < found["columns"].distortion < found["none"].distortion
    if not absorbed:
        assert np.allclose(found["both"].code.matrix(), found["both"].restored.reshape(-1, 45), rtol=1e-6)


def test_bits_of_a_large_layer_are_those_of_its_first_rows(monkeypatch):
    target = layer_target(5, absorbed=False)
    for mode in ("small", "fast"):
        options = scalar.ScalarOptions()
        exact = scalar.propose(target, 0.03, options, mode)
        size = len(section.encode([exact.code], [target.shape], int(mode == "small")))
        assert exact.label == "scalar"  # the fast coder's tables are made for the file alone: until then an estimate
        assert exact.bits == (8 * size if mode == "small" else pytest.approx(8 * size, rel=0.1))
        with monkeypatch.context() as patched:
            patched.setattr(scalar, "COUNTED", 6 * 45)
            assert scalar.propose(target, 0.03, options, mode).bits == pytest.approx(exact.bits, rel=0.4)


def test_rows_that_are_no_rows_of_the_file_stay_without():
    rng = np.random.default_rng(3)
    layer = WeightLayer("w", "conv_transposed", 1, None)  # type: ignore[arg-type]
    target = LayerTarget(layer, (6, 4, 2, 2), rng.normal(0, 1, (1, 16, 6)), spd(rng, 6)[None], spd(rng, 16)[None])
    code, _ = scalar.encode(target, 0.1, scalar.ScalarOptions(trellis=8))
    assert code.trellis == 0


def test_unlike_prices_for_coders_that_see_and_do_not_see_the_quantizer():
    counts = np.zeros((2, 2, REACH + 1))
    counts[:, 0, :3] = [600, 300, 100]
    counts[:, 1, :3] = [300, 600, 100]
    seen, unseen = trellis.code_lengths(counts), trellis.code_lengths(counts, seen=False)
    assert np.array_equal(unseen[:, 0], unseen[:, 1])
    assert (seen[:, 0, 0] < unseen[:, 0, 0]).all() and (seen[:, 1, 0] > unseen[:, 1, 0]).all()
    # Signs cost a bit: with them the lengths are those of a complete code.
    assert np.allclose((np.exp2(-seen) * np.where(np.arange(REACH + 1) > 0, 2, 1)).sum(axis=2), 1)
