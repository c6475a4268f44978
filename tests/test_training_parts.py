"""The parts of a trainable file: gradients against finite differences, ranges, re-assignment, small tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from make_golden_kernels import book
from make_golden_kernels import code as kernel_code
from make_golden_transform import block_matrix, code, scalar_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import ConfigError, ModelError
from tersor.synthesis.batchnorm import BatchNormCode
from tersor.synthesis.codebook import CodebookCode
from tersor.synthesis.kernel_code import KernelCode
from tersor.synthesis.scalar import ScalarCode
from tersor.synthesis.transform import Dct, TransformCode
from tersor.synthesis.vector import VectorCode
from tersor.training.kernels import KernelBooks
from tersor.training.shared import SharedValues
from tersor.training.small import AffineMaps, SmallTensors
from tersor.training.weights import CodedWeight

SHAPE = (6, 4, 3, 3)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "channels, dct": {"channels": 3, "taps": Dct.II, "scaled": True},
    "all": {"rows": 5, "channels": 4, "taps": 7},
    "joint": {"joint": 6, "rows": 4}, "swapped": {"channels": 5, "taps": Dct.I, "swapped": True},
}


@pytest.mark.parametrize("make", [scalar_matrix, block_matrix])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_begins_as_a_decoder_restores_it(make, kind):
    made = code(make, 4, SHAPE, **KINDS[kind])
    part = CodedWeight("w", made, torch.zeros(SHAPE))
    expected = torch.from_numpy(np.array(made.tensor(SHAPE)))
    torch.testing.assert_close(part(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    found = part.coded()
    assert isinstance(found, TransformCode)
    for a, b in zip((*made.bases(), made.coefficients), (*found.bases(), found.coefficients), strict=True):
        assert np.array_equal(a.q, b.q) and b.q.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_smooth_map(kind, monkeypatch):
    """Without rounding, finite differences; with it, the same gradients (straight through) where nothing moved."""
    def plain_matrix(seed: int, rows: int, columns: int, unit: int = 1) -> ScalarCode:
        return replace(scalar_matrix(seed, rows, columns), shift=(0, 0))

    part = CodedWeight("w", code(plain_matrix, 2, SHAPE, **KINDS[kind]), torch.zeros(SHAPE, dtype=torch.float64))
    factor = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value() -> Tensor:
        return (part() * factor).square().sum()

    def gradients() -> list[Tensor]:
        part.zero_grad()
        value().backward()
        return [p.grad.clone() for p in part.parameters()]

    through = gradients()
    monkeypatch.setattr("tersor.training.matrices.Matrix.forward", lambda self: self.latents * self.step)
    for p, found, other in zip(part.parameters(), gradients(), through, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12)
        place = int(found.abs().argmax())
        with torch.no_grad():
            values = []
            for sign in (1, -1, -1):
                values.append(float(value()))
                p.view(-1)[place] += sign * 1e-6
            p.view(-1)[place] += 1e-6
        assert (values[1] - values[2]) / 1e-6 == pytest.approx(float(found.view(-1)[place]), rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "channels, dct", "swapped"])
def test_leaning_finds_the_weight_again_through_any_maps(kind):
    """Coefficients that were moved by less than a step lean back to where they were."""
    made = code(scalar_matrix, 4, SHAPE, **KINDS[kind])
    part = CodedWeight("w", made, torch.zeros(SHAPE, dtype=torch.float64))
    with torch.no_grad():
        part.coefficients.latents += 0.1 * torch.randn(part.coefficients.latents.shape, dtype=torch.float64)
        wanted, latents = part.coefficients.latents.clone(), part.coefficients
        step = latents.step
        forward = latents.forward
        latents.forward = lambda: latents.latents * step  # type: ignore[method-assign]
        weight = part().clone()
        latents.forward = forward  # type: ignore[method-assign]
        latents.latents.copy_(torch.from_numpy(made.coefficients.q.astype(np.float64)))
        before = float((latents.latents - wanted).square().sum())
        part.lean(weight)
        after = float((latents.latents - wanted).square().sum())
    assert after < before and np.array_equal(part.coefficients.coded().q, made.coefficients.q)


def test_blocks_are_clipped_to_their_depth():
    part = CodedWeight("w", code(block_matrix, 4, SHAPE), torch.zeros(SHAPE))
    with torch.no_grad():
        part.coefficients.latents += 1e6
    blocks = part.coefficients.coded()
    blocks.check()
    for box, depth in zip(blocks.boxes(), blocks.depths.tolist(), strict=True):
        assert (blocks.cuts.view(blocks.q)[box] == max((1 << depth >> 1) - 1, 0)).all()
    part().sum().backward()
    assert not part.coefficients.latents.grad.any(), "no gradient beyond the range"


def test_codes_that_do_not_fit():
    for wrong in (scalar_matrix(1, 6, 35), TransformCode(scalar_matrix(1, 6, 36), joint=True)):
        with pytest.raises(ModelError, match=r"9\.weight: the code does not fit"):
            CodedWeight("9.weight", wrong, torch.zeros(SHAPE))
    shared = CodebookCode.of([0.0, 1.0], [np.zeros((2, 3), np.int32)])
    with pytest.raises(ModelError, match="6 indexes for 8"):
        SharedValues(["a"], shared, [torch.zeros(2, 4)])
    with pytest.raises(ModelError, match="a: kernel indexes"):
        KernelBooks(["a"], [kernels()["0.weight"]], [torch.zeros(7, 2, 3, 3)])


# ---- kernels -----------------------------------------------------------------------------------------

SHAPES = {"0.weight": (6, 2, 3, 3), "2.weight": (6, 6, 3, 3), "4.weight": (4, 96)}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(),
                         nn.Linear(96, 4))


def kernels(gain: str = "gains") -> dict[str, KernelCode]:
    """Both convolutions in one codebook, the linear layer in vectors of 8."""
    shared, pairs = np.clip(book(1, 7, 9), -25, 25), np.clip(book(2, 5, 8), -25, 25)
    found = {name: kernel_code(i, shape, shared if len(shape) == 4 else pairs, gain=gain, step=-200, rows=i == 1)
             for i, (name, shape) in enumerate(SHAPES.items())}
    return {name: replace(one, row_resolution=3) for name, one in found.items()}


def books(gain: str = "gains") -> KernelBooks:
    model = network()
    return KernelBooks(list(SHAPES), list(kernels(gain).values()), [model.get_parameter(name) for name in SHAPES])


def loss_of(model: nn.Module, weights: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(32, 2, 4, 4, generator=generator), torch.randint(0, 4, (32,), generator=generator)
    return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)


@pytest.mark.parametrize("gain", ["", "signs", "gains"])
def test_weights_are_those_of_the_codes(gain):
    part = books(gain)
    for name, weight in part.tensors().items():
        assert np.allclose(weight.detach().numpy(), kernels(gain)[name].tensor(SHAPES[name]), rtol=1e-5, atol=1e-7)
    again = part.codes()
    for one, other in zip(kernels(gain).values(), again, strict=True):
        assert np.array_equal(other.values, one.values) and np.array_equal(other.index, one.index)
        assert (one.gain is None) == (other.gain is None)
        assert one.gain is None or np.array_equal(other.gain, one.gain)
    assert again[0].values is again[1].values


def test_the_gradient_of_an_entry_is_the_sum_over_its_kernels():
    model, part = network(), books()
    weights = part.tensors()
    for weight in weights.values():
        weight.retain_grad()
    loss_of(model, weights).backward()
    expected = np.zeros((7, 9))
    for name in ("0.weight", "2.weight"):
        one = kernels()[name]
        slope = weights[name].grad.numpy().reshape(*one.index.shape, 9)
        np.add.at(expected, one.index, slope * one.gain[..., None] * one.row_steps()[:, None, None])
    unit = np.sqrt(np.square(kernels()["0.weight"].values, dtype=np.float64).mean())
    assert np.allclose(part.values[0].grad.numpy(), expected * unit, rtol=1e-4, atol=1e-7)


def test_entries_stay_within_their_bits_and_gains_keep_their_signs():
    part = books()
    with torch.no_grad():
        part.values[0].fill_(1e9)
        for gain in part.gains.values():
            gain.sub_(1e9)
    code = part.codes()[0]
    assert (code.values == 31).all()
    signs = np.sign(kernels()["0.weight"].gain)
    assert np.array_equal(code.gain, signs), "the least that keeps the sign"
    sum(weight.sum() for weight in part.tensors().values()).backward()
    assert not part.values[0].grad.any()


def test_reassignment():
    model, part = network(), books()
    assert part.reassign(1e-2) == 0  # no gradient has been seen
    before = loss_of(model, part.tensors())
    before.backward()
    changed = part.reassign(0.3)
    assert 0 < changed < sum(one.index.size for one in kernels().values()) / 2
    with torch.no_grad():
        assert float(loss_of(model, part.tensors())) < float(before.detach())
    for one, other in zip(kernels().values(), part.codes(), strict=True):
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.index[one.gain == 0], other.index[one.gain == 0])
    assert part.reassign(0.3) == 0
    with pytest.raises(ConfigError, match="rate"):
        part.reassign(0.0)


# ---- shared values and small tensors -----------------------------------------------------------------

def test_centres_that_pass_each_other_and_zeros_that_stay():
    values = np.array([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3], np.float32)
    index = np.random.default_rng(5).integers(0, 7, (4, 9), dtype=np.int32)
    part = SharedValues(["w"], CodebookCode.of(values, [index]), [torch.zeros(4, 9)])
    assert np.array_equal(part.tensors()["w"].detach().numpy(), values[index])
    with torch.no_grad():
        part.values.copy_(torch.tensor([0.3, -0.2, 0.05, 9.0, 0.1, -0.7, 0.3]) / part.unit)
    (code,) = part.codes()
    assert np.all(np.diff(code.values) >= 0) and code.values[code.zero] == 0.0
    assert np.array_equal(part.tensors()["w"].detach().numpy(), code.tensors([(4, 9)])[0])
    part.tensors()["w"].sum().backward()
    counts = np.bincount(index.ravel(), minlength=7)
    assert np.allclose(part.values.grad.numpy() / part.unit, np.where(np.arange(7) == 3, 0, counts))


def test_half_precision_stays():
    halves = np.array([-0.3, 0.1, 0.7], np.float16).astype(np.float32)
    part = SharedValues(["w"], CodebookCode.of(halves, [np.array([[0, 1, 2]], np.int32)]), [torch.zeros(1, 3)])
    with torch.no_grad():
        part.values *= 1.01
    (code,) = part.codes()
    assert np.array_equal(code.values.astype(np.float16).astype(np.float32), code.values)
    assert not np.array_equal(code.values, halves)


def test_batchnorms_and_small_tensors_move_on_their_grids():
    affine = BatchNormCode(np.array([-20, 5, 0]), np.array([1, -1, 0], np.int8), 4, np.array([3, -5, 0]), -100, 1e-5)
    part = AffineMaps([("w", "b")], [affine], [torch.zeros(3)])
    found = part.tensors()
    assert np.allclose(found["w"].detach().numpy(), affine.scale().astype(np.float32), rtol=1e-6)
    assert np.allclose(found["b"].detach().numpy(), affine.shift().astype(np.float32), rtol=1e-6)
    (same,) = part.codes()
    assert np.array_equal(same.scale_index, affine.scale_index)
    assert np.array_equal(same.shift_index, affine.shift_index)
    (found["w"].sum() + 2 * found["b"].sum()).backward()
    expected = np.log(2.0) * affine.scale()
    assert np.allclose(part.scales[0].grad.numpy(), expected) and np.unique(part.shifts[0].grad.numpy()).size == 1
    with torch.no_grad():
        part.scales[0] += 1.0
    assert np.allclose(part.codes()[0].scale(), 2.0 * affine.scale())

    vector = VectorCode(np.array([[4, -7]]), -64)
    small = SmallTensors(["b"], [vector], [torch.zeros(1, 2)])
    with torch.no_grad():
        small.values[0] *= 3.0
    assert small.codes()[0].index.tolist() == [[12, -21]]
    assert small.tensors()["b"].tolist() == [[3.0, -5.25]]
    zeros = SmallTensors(["b"], [VectorCode(np.zeros(3, np.int64), -64)], [torch.zeros(3)])
    assert not zeros.tensors()["b"].any() and not zeros.values[0].requires_grad, "absorbed by a BatchNorm"
