"""Calibration against brute force: per-image gradients and inputs by autograd and explicit loops."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tersor.adapters.module import inventory_of_module, load_into  # noqa: E402
from tersor.calibration import accumulators  # noqa: E402
from tersor.errors import StatisticsError  # noqa: E402
from tersor.sensitivity import calibrate, memory_needed  # noqa: E402
from tersor.statistics import Statistics  # noqa: E402

IMAGES = 6


class Around(nn.Module):
    """A layer between two non-linear surroundings, float64, with a small output."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.layer = layer
        z = layer(x)
        self.register_buffer("mix", torch.randn(z[0].numel(), 3) / z[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.sin(x) + 0.2).flatten(1)) @ self.mix


def signs(model: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    """The documented random signs, drawn image by image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, 2, (1, *y.shape), generator=generator)[0] * 2 - 1
                        for y in model.eval()(x)])


def gradients(model: nn.Module, name: str, x: Tensor, v: Tensor) -> list[Tensor]:
    """d(v.y) / d parameter for each image, by one backward pass each."""
    parameter = dict(model.named_parameters())[name]
    return [torch.autograd.grad((model(x[i:i + 1]) * v[i]).sum(), parameter)[0] for i in range(len(x))]


def matrix(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """[groups, m, n] as the contract of views says."""
    if transposed:
        return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "wide linear": (lambda: nn.Linear(40, 30), (3, 40)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 5, 6)),
    "same, even kernel": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 5)),
    "valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    "dilated": (lambda: nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(2, 1), dilation=(2, 1)), (2, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 0)), (2, 3, 4, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2), (3, 4)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), (4, 3, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 2, 2, dilation=2, bias=False), (2, 2, 2, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same:UserWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [256 << 20, 3000])
def test_against_brute_force(case: str, budget: int) -> None:
    torch.manual_seed(0)
    make, shape = CASES[case]
    x = torch.randn(IMAGES, *shape, dtype=torch.float64)
    layer = make().double()
    model = Around(layer, x).double().eval()
    found = calibrate(model, [x[:4], x[4:]], budget=budget, keep=3)
    stats, v = found.layers["layer.weight"], signs(model, x)
    groups = getattr(layer, "groups", 1)
    transposed = type(layer).__name__.startswith("ConvTranspose")

    # Gradients of the weight matrix, and all (u, g) pairs, from the definition: a loop over images.
    per_image = [matrix(g, groups, transposed) for g in gradients(model, "layer.weight", x, v)]
    norm = torch.stack(per_image).square().sum((2, 3)).mean(0)
    u, g = columns(layer, model, x, v)
    positions = u.shape[-1]
    A = torch.einsum("gnip,gkip->gnk", u, u) / IMAGES
    G = torch.einsum("gmip,gkip->gmk", g, g)
    G *= (norm / (A.diagonal(dim1=1, dim2=2).sum(1) * G.diagonal(dim1=1, dim2=2).sum(1)))[:, None, None]
    # The pairs are right if they give autograd's gradients.
    torch.testing.assert_close(torch.einsum("gmip,gnip->igmn", g, u), torch.stack(per_image))

    assert stats.positions == positions and stats.images == IMAGES
    assert stats.A.dtype == stats.G.dtype == stats.mean.dtype == np.float32
    np.testing.assert_allclose(stats.A, A.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(stats.mean, u.mean((2, 3)).numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(stats.G, G.numpy(), rtol=1e-6, atol=1e-9)
    trace = stats.A.trace(axis1=1, axis2=2) * stats.G.trace(axis1=1, axis2=2)
    np.testing.assert_allclose(trace, norm.numpy(), rtol=1e-5)
    # What an error costs that acts at all positions of an image at once, with and without the mean input.
    mean = u.mean((2, 3))
    rank_one = torch.einsum("gmip,gn->igmn", g, mean)
    for given, wanted in ((stats.coherent.second, torch.stack(per_image)),
                          (stats.coherent.centred(mean.numpy()), torch.stack(per_image) - rank_one)):
        square = torch.einsum("igmn,igmk->gnk", wanted, wanted) / IMAGES
        np.testing.assert_allclose(given, square.numpy(), rtol=1e-5, atol=1e-6 * float(square.abs().max()))
    if getattr(layer, "bias", None) is not None:
        square = torch.stack(gradients(model, "layer.bias", x, v)).square().mean(0)
        np.testing.assert_allclose(found.vector_sensitivity["layer.bias"], square.numpy(), rtol=1e-6)
    assert found.samples is not None and found.samples.equal(x[:3])


def columns(layer: nn.Module, model: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """u [groups, n, images, P] and g [groups, m, images, P], tap by tap."""
    seen: dict[str, Tensor] = {}
    handle = layer.register_forward_hook(lambda m, i, o: seen.update(x=i[0], z=o))
    y = model(x)
    handle.remove()
    grad = torch.autograd.grad((y * v).sum(), seen["z"])[0]
    a = seen["x"].detach()
    if isinstance(layer, nn.Linear):
        return tuple(t.reshape(IMAGES, -1, t.shape[-1]).permute(2, 0, 1)[None] for t in (a, grad))
    if layer.transposed:
        u = a.flatten(2)
        g = taps(grad, layer, a.shape[2:], tuple(layer.padding), tuple(layer.padding), "constant")
        order = u, g
    else:
        pad, mode = layer.padding, {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        low = {"same": [t // 2 for t in total], "valid": [0] * len(total)}.get(pad, pad) \
            if isinstance(pad, str) else pad
        high = [t - t // 2 for t in total] if pad == "same" else low
        order = taps(a, layer, grad.shape[2:], tuple(low), tuple(high), mode), grad.flatten(2)
    groups = layer.groups
    return tuple(t.reshape(IMAGES, groups, -1, t.shape[-1]).permute(1, 2, 0, 3) for t in order)


def taps(a: Tensor, layer: Any, sizes: Any, low: Any, high: Any, mode: str) -> Tensor:
    """[images, channels * taps, P]: one shifted, strided copy of the padded input for each tap."""
    pads = [p for pair in zip(low[::-1], high[::-1], strict=True) for p in pair]
    extra = [s + d * k for s, d, k in zip(layer.stride, layer.dilation, layer.kernel_size, strict=True)]
    a = F.pad(a, pads, mode=mode)
    a = F.pad(a, [p for e in extra[::-1] for p in (0, e)])
    parts = []
    for tap in np.ndindex(*layer.kernel_size):
        cut = [slice(t * d, t * d + s * n, s)
               for t, d, s, n in zip(tap, layer.dilation, layer.stride, sizes, strict=True)]
        parts.append(a[(slice(None), slice(None), *cut)].flatten(2))
    return torch.stack(parts, 2).flatten(1, 2)


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, a layer norm, a shared layer, something unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.norm, self.shared, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.tensor(1.5))
        for bn in (self.bn1, self.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)) + x).mean((2, 3))
        x = self.shared(torch.tanh(self.shared(self.norm(x))))
        return self.head(x * self.gain)


def test_batchnorm_vectors_and_shared_layers() -> None:
    model = Tiny().double().eval()
    x = torch.randn(IMAGES, 3, 5, 5, dtype=torch.float64)
    found, v = calibrate(model, x), signs(model, x)
    z = model.conv1(x)
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    bn = found.batchnorms["bn1"]
    np.testing.assert_allclose(bn.mean, mean.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(bn.variance, variance.detach().numpy(), rtol=1e-6)
    # y = weight * (z - running_mean) / sqrt(running_var + eps) + bias; its slope in a, around the mean of z.
    inverse = (model.bn1.running_var + model.bn1.eps).sqrt()
    shift = torch.stack(gradients(model, "bn1.bias", x, v))
    scale = torch.stack(gradients(model, "bn1.weight", x, v)) * inverse
    scale = scale + (model.bn1.running_mean - mean) * shift
    np.testing.assert_allclose(bn.shift_sensitivity, shift.square().mean(0).detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(bn.scale_sensitivity, scale.square().mean(0).detach().numpy(), rtol=1e-6)
    for name in ("norm.weight", "norm.bias", "gain", "shared.bias", "head.bias"):
        square = torch.stack(gradients(model, name, x, v)).square().mean(0)
        np.testing.assert_allclose(found.vector_sensitivity[name], square.numpy(), rtol=1e-5, err_msg=name)
    shared = found.layers["shared.weight"]
    norm = torch.stack(gradients(model, "shared.weight", x, v)).square().sum((1, 2)).mean()
    assert np.trace(shared.A[0]) * np.trace(shared.G[0]) == pytest.approx(float(norm), rel=1e-5)
    assert shared.positions == 2, "both calls count"
    assert found.unused == ["unused.weight", "unused.bias"]
    assert not {"bn1.weight", "unused.weight"} & set(found.vector_sensitivity)
    assert found.graph.absorb == {"conv1.weight": "bn1", "conv2.weight": "bn2"}


def test_batching_does_not_change_the_statistics() -> None:
    model, x = Tiny(), torch.randn(13, 3, 6, 6)
    first = calibrate(model, [x], max_positions=10, vectors=2)
    for batches in ([x[:1], x[1:6], x[6:6], x[6:]], x.split(4), [(part, None) for part in x.split(5)], x):
        second = calibrate(model, batches, max_positions=10, vectors=2, budget=4000)
        for name, layer in first.layers.items():
            for part in ("A", "G", "mean"):
                one, two = getattr(layer, part), getattr(second.layers[name], part)
                np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5 * np.abs(one).max())
        for name, vector in first.vector_sensitivity.items():
            np.testing.assert_allclose(vector, second.vector_sensitivity[name], rtol=1e-3, atol=1e-6)
        assert second.samples is not None and second.samples.equal(x) and second.images == 13
    other = calibrate(model, x, max_positions=10, seed=1)
    assert not np.allclose(other.layers["conv1.weight"].G, first.layers["conv1.weight"].G, rtol=1e-3)


def test_sampled_positions_are_unbiased() -> None:
    model, x = Tiny(), torch.randn(64, 3, 8, 8)
    full, some = calibrate(model, x), calibrate(model, x, max_positions=16)
    for name in ("conv1.weight", "conv2.weight"):
        a, b = full.layers[name], some.layers[name]
        assert np.trace(a.A[0]) == pytest.approx(np.trace(b.A[0]), rel=0.1)
        assert np.abs(a.A - b.A).max() < 0.2 * np.abs(a.A).max()
        product = [np.trace(s.A[0]) * np.trace(s.G[0]) for s in (a, b)]
        assert product[0] == pytest.approx(product[1], rel=1e-4), "the scale uses all positions"


def test_embeddings_and_tied_output_layer() -> None:
    class Language(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.words, self.body = nn.Embedding(9, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 9, bias=False)
            if tied:
                self.head.weight = self.words.weight
            self.head.weight.data.copy_(self.words.weight.data)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(self.words(tokens)).cumsum(1)))

    tokens = torch.randint(0, 8, (5, 7))
    model = Language(False).double()
    found, v = calibrate(model, [tokens]), signs(model, tokens)
    words = found.layers["words.weight"]
    counts = torch.bincount(tokens.flatten(), minlength=9).double()
    np.testing.assert_allclose(words.A[0], counts.numpy() / 5, rtol=1e-6)
    np.testing.assert_allclose(words.mean[0], counts.numpy() / 35, rtol=1e-6)
    norm = torch.stack(gradients(model, "words.weight", tokens, v)).square().sum((1, 2)).mean()
    assert words.A.sum() * np.trace(words.G[0]) == pytest.approx(float(norm), rel=1e-5)

    tied = calibrate(Language(True).double(), [tokens]).layers
    assert list(tied) == ["words.weight", "body.weight"]
    assert tied["words.weight"].A.shape == (1, 9) and tied["words.weight"].G.shape == (1, 4, 4)
    apart = found.layers["head.weight"]
    total = words.A.sum() * np.trace(words.G[0]) + np.trace(apart.A[0]) * np.trace(apart.G[0])
    joint = tied["words.weight"]
    assert joint.A.sum() * np.trace(joint.G[0]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("offsets", [False, True])
def test_embedding_bags(mode: str, offsets: bool) -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags, self.head = nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            if offsets:
                x = self.bags(tokens.flatten(), torch.arange(0, tokens.numel(), tokens.shape[1]))
            else:
                x = self.bags(tokens)
            return self.head(torch.tanh(x))

    model, tokens = Bags().double(), torch.randint(0, 9, (5, 6))
    found, v = calibrate(model, [tokens]), signs(model, tokens)
    square = torch.stack(gradients(model, "bags.weight", tokens, v)).square().mean(0)
    if mode == "max":
        np.testing.assert_allclose(found.vector_sensitivity["bags.weight"], square.numpy(), rtol=1e-6)
    else:
        bags = found.layers["bags.weight"]
        assert bags.A.sum() * np.trace(bags.G[0]) == pytest.approx(float(square.sum()), rel=1e-5)


def test_attention_is_measured_weight_by_weight() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double()
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    found, v = calibrate(model, [x]), signs(model, x)
    assert set(found.layers) == {"linear1.weight", "linear2.weight"}
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "norm1.weight"):
        square = torch.stack(gradients(model, name, x, v)).square().mean(0)
        np.testing.assert_allclose(found.vector_sensitivity[name], square.numpy(), rtol=1e-5, atol=1e-9)
    assert found.unused == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Tiny().to(dtype)
    found = calibrate(model, torch.randn(4, 3, 5, 5, dtype=dtype), keep=2)
    found.save(tmp_path / "s.safetensors")
    back = Statistics.load(tmp_path / "s.safetensors")
    for one, two in ((found.layers, back.layers), (found.batchnorms, back.batchnorms)):
        assert list(one) == list(two)
        for name in one:
            flat = [dataclasses.asdict(part[name]) for part in (one, two)]
            flat = [entry | (entry.pop("coherent", None) or {}) for entry in flat]
            assert list(flat[0]) == list(flat[1]) and all(value is not None for value in flat[0].values())
            for key, value in flat[0].items():
                np.testing.assert_array_equal(value, flat[1][key])
    assert set(found.vector_sensitivity) == set(back.vector_sensitivity)
    assert back.samples is not None and back.samples.dtype == dtype and back.samples.equal(found.samples)
    for field in ("graph", "unused", "digests", "fingerprint", "images", "vectors", "seed"):
        assert getattr(found, field) == getattr(back, field)
    back.check(inventory_of_module(model))
    (tmp_path / "other").write_bytes(b"not statistics")
    with pytest.raises(StatisticsError, match="other is not a readable statistics file"):
        Statistics.load(tmp_path / "other")


def test_another_model_is_refused_by_name() -> None:
    model = Tiny()
    found = calibrate(model, torch.randn(2, 3, 5, 5))
    model.bn1.num_batches_tracked += 1
    found.check(inventory_of_module(model))
    inventory = inventory_of_module(model)
    load_into(model, {n: a + (n == "conv2.weight") for n, a in inventory.tensors.items()})
    with pytest.raises(StatisticsError, match=r"conv2\.weight has other values.*1 of"):
        found.check(inventory_of_module(model))
    del model.unused
    with pytest.raises(StatisticsError, match="another model"):
        found.check(inventory_of_module(model))


def test_the_model_is_left_as_it_was() -> None:
    model = Tiny().train()
    model.bn2.eval()
    model.conv1.weight.requires_grad_(False)
    calls: list[int] = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}

    def fail(result: Tensor) -> Tensor:
        if len(calls) > 2:
            raise KeyError("stop")
        return result

    x = torch.randn(4, 3, 5, 5)
    assert calibrate(model, x).layers["conv1.weight"].images == 4, "frozen parameters are measured as well"
    with pytest.raises(KeyError, match="stop"):
        calibrate(model, x.split(1), output=fail)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not model.conv1.weight.requires_grad and model.conv2.weight.requires_grad
    assert all(tensor.grad is None for tensor in model.parameters())
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert list(model.head._forward_hooks) == [handle.id] and not model.conv1._forward_hooks


class Wrapped(nn.Module):
    """A network with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Linear(3, 3), nn.Linear(3, 2), wrong

    def forward(self, x: Tensor) -> Any:
        if self.wrong == "no_grad":
            with torch.no_grad():
                x = self.a(x)
            return self.b(x)
        x = self.a(x)
        if self.wrong == "detach":
            x = x.detach()
        if self.wrong == "infinite":
            x = x / 0
        if self.wrong == "in place":
            y = self.b(x)
            x.mul_(2)
            return y + x[:, :2]
        if self.wrong == "tuple":
            return (None, {"tokens": x.argmax(1), "y": self.b(x)})
        if self.wrong == "scalar":
            return self.b(x).sum()
        return self.b(x)


@pytest.mark.parametrize(("wrong", "message"), [
    ("no_grad", r"a\.weight: no gradient"), ("detach", r"a\.weight: no gradient"),
    ("infinite", r"b\.weight: the input of this layer holds NaN"), ("in place", "in-?place"),
    ("scalar", "output.*one row for each"),
])
def test_what_cannot_be_measured_is_an_error_with_a_name(wrong: str, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        calibrate(Wrapped(wrong), torch.randn(4, 3))


def test_bad_batches() -> None:
    model = Wrapped("")
    for batches in ([], torch.zeros(0, 3), [torch.zeros(0, 3)]):
        with pytest.raises(StatisticsError, match="no calibration images"):
            calibrate(model, batches)
    with pytest.raises(StatisticsError, match="tuple"):
        calibrate(model, [("image.jpg", torch.zeros(1))])
    with pytest.raises(StatisticsError, match=r"a\.weight: the input.*NaN"):
        calibrate(model, [torch.randn(2, 3), torch.full((2, 3), torch.nan)])
    model.b.weight.data[0, 0] = torch.inf
    with pytest.raises(StatisticsError, match=r"b\.weight: the weight holds"):
        calibrate(model, torch.randn(2, 3))


def test_outputs_batches_by_keyword_and_progress() -> None:
    x, done = torch.randn(6, 3), []
    plain = calibrate(Wrapped(""), [x])
    torch.manual_seed(0)
    model = Wrapped("tuple")
    first = calibrate(model, [{"x": part} for part in x.split(2)], progress=done.append)
    second = calibrate(model, [x], output=lambda result: result[1]["y"])
    for name, layer in first.layers.items():
        np.testing.assert_allclose(layer.G, second.layers[name].G, rtol=1e-5)
    assert done == [2, 4, 6]
    assert isinstance(first.samples, dict) and first.samples["x"].equal(x)
    assert set(plain.layers) == {"a.weight", "b.weight"}


def test_dense_outputs_use_random_signs_everywhere() -> None:
    model = nn.Conv2d(2, 3, 1).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    found, v = calibrate(model, [x]), signs(model, x)
    square = torch.stack(gradients(model, "weight", x, v)).square().mean(0)
    assert np.trace(found.layers["weight"].A[0]) * np.trace(found.layers["weight"].G[0]) \
        == pytest.approx(float(square.sum()), rel=1e-5)


def test_windows_of_images_and_rows_that_are_not_images() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.table, self.head = nn.Linear(3, 3), nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:  # [N, 4, 5, 3]
            y = torch.tanh(self.inner(x.flatten(0, 1)))
            y = y.unflatten(0, (len(x), 4)).mean((1, 2))
            return self.head(y * self.table(torch.ones(1, 2, dtype=x.dtype)).sum(0))

    model, x = Windows().double(), torch.randn(3, 4, 5, 3, dtype=torch.float64)
    found, v = calibrate(model, [x]), signs(model, x)
    norm = torch.stack(gradients(model, "inner.weight", x, v)).square().sum((1, 2)).mean()
    inner = found.layers["inner.weight"]
    assert np.trace(inner.A[0]) * np.trace(inner.G[0]) == pytest.approx(float(norm), rel=1e-5)
    assert inner.positions == 20
    # One row for the whole batch: the squared sum over images, whose random signs are independent.
    whole = sum(gradients(model, "table.weight", x, v)).square().sum() / 3
    table = found.layers["table.weight"]
    assert np.trace(table.A[0]) * np.trace(table.G[0]) == pytest.approx(float(whole), rel=1e-5)


def test_memory_is_stated() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Embedding(100, 5), nn.ConvTranspose1d(3, 2, 4))
    conv, words, transposed = 2 * (3 * 3 + 18 * 18 + 18), 5 * 5 + 100 + 100, 8 * 8 + 3 * 3 + 3
    assert memory_needed(model) == 12 * (conv + words + transposed)


def test_messages_have_no_addresses() -> None:
    with pytest.raises(StatisticsError) as error:
        calibrate(Wrapped("scalar"), torch.randn(4, 3))
    assert not re.search("0x[0-9a-f]{6}", str(error.value))


@pytest.mark.parametrize("n", [5, 256, 257, 700, 1300])
def test_symmetric_products_by_blocks(n: int) -> None:
    rows = torch.randn(2, n, 30, generator=torch.Generator().manual_seed(n))
    found = accumulators._outer(rows)
    assert torch.allclose(found, rows @ rows.transpose(1, 2), atol=1e-4)
    assert n <= 256 or torch.equal(found[:, :128, 128:], found[:, 128:, :128].transpose(1, 2)), "one half is the other"


@pytest.mark.parametrize(("most", "room", "fewest", "kept"), [(4, 1 << 30, 1, 4), (9, 100, 1, 5), (9, 100, 6, 6)])
def test_how_many_inputs_are_kept(most: int, room: int, fewest: int, kept: int,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """By default: not too many, within so many bytes, but enough for a second walk."""
    for name, value in (("KEPT", most), ("KEPT_BYTES", room), ("FEWEST_KEPT", fewest)):
        monkeypatch.setattr(f"tersor.sensitivity.{name}", value)
    x = torch.randn(8, 5)  # 20 bytes each
    found = calibrate(nn.Linear(5, 3), x.split(3))
    assert found.samples is not None and found.samples.equal(x[:kept])
