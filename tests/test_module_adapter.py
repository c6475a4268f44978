"""nn.Module -> Inventory -> nn.Module: everything comes back, tied weights once and tied again."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tersor.adapters.module import inventory_of_module, load_into  # noqa: E402
from tersor.errors import ModelError  # noqa: E402


class Zoo(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv1d(6, 6, 3, groups=6, bias=False)
        self.volume = nn.ConvTranspose3d(4, 6, 2, groups=2)
        self.words = nn.Embedding(11, 5)
        self.bags = nn.EmbeddingBag(7, 5)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(5, 11, bias=True)
        self.head.weight = self.words.weight
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.brief = nn.Parameter(torch.randn(3, 4).bfloat16())
        self.register_buffer("mask", torch.tensor([[True, False]]))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("small", torch.randn(3).half())
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("f8", torch.randn(4).to(torch.float8_e4m3fn))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.plain_bn = nn.BatchNorm1d(3, affine=False)


def test_inventory_names_everything_once() -> None:
    model = Zoo()
    inventory = inventory_of_module(model)
    assert inventory.names == list(model.state_dict())
    assert inventory.aliases == {"head.weight": "words.weight"}
    assert list(inventory.tensors) == [n for n in inventory.names if n != "head.weight"]
    assert inventory.parameters == sum(p.numel() for p in model.parameters())
    assert inventory.exact == {"mask", "count", "small", "nothing", "f8", "plain_bn.running_mean",
                               "plain_bn.running_var", "plain_bn.num_batches_tracked",
                               "bn.num_batches_tracked"}, "buffers of which nothing is known"
    assert inventory.tied and not inventory_of_module(nn.Linear(2, 2)).tied
    layers = {layer.name: (layer.kind, layer.groups, layer.bias) for layer in inventory.layers}
    assert layers == {
        "brief": ("matrix", 1, None),
        "conv.weight": ("conv", 1, "conv.bias"),
        "depthwise.weight": ("conv", 6, None),
        "volume.weight": ("conv_transposed", 2, "volume.bias"),
        "words.weight": ("embedding", 1, "head.bias"),
        "bags.weight": ("embedding", 1, None),
        "attention.in_proj_weight": ("matrix", 1, None),
        "attention.out_proj.weight": ("linear", 1, "attention.out_proj.bias"),
    }
    assert [bn.prefix for bn in inventory.batchnorms] == ["bn"]
    assert inventory.batchnorms[0].names == ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert inventory.batchnorms[0].eps == pytest.approx(1e-5)
    assert inventory.tensors["brief"].dtype == ml_dtypes.bfloat16
    assert inventory.tensors["mask"].dtype == np.bool_ and inventory.tensors["scalar"].shape == ()
    assert not inventory.tensors["conv.weight"].flags.writeable


def test_round_trip_is_exact_in_place_and_tied() -> None:
    source, target = Zoo(), Zoo()
    inventory = inventory_of_module(source)
    pointers = {n: t.data_ptr() for n, t in target.state_dict().items()}
    load_into(target, inventory.tensors, inventory.aliases)
    restored = target.state_dict()
    for name, tensor in source.state_dict().items():
        assert restored[name].dtype == tensor.dtype
        assert restored[name].view(torch.uint8).equal(tensor.view(torch.uint8)) if tensor.ndim else \
            restored[name].equal(tensor)
    assert {n: t.data_ptr() for n, t in restored.items()} == pointers
    assert target.head.weight is target.words.weight


def test_ties_are_restored_in_a_model_that_lost_them() -> None:
    source, target = Zoo(), Zoo()
    target.head.weight = nn.Parameter(torch.zeros(11, 5))
    inventory = inventory_of_module(source)
    load_into(target, inventory.tensors, inventory.aliases)
    assert target.head.weight is target.words.weight
    assert target.words.weight.equal(source.words.weight)


def test_errors_name_the_tensor() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    tensors = dict(inventory_of_module(model).tensors)
    with pytest.raises(ModelError, match=r"missing: 1\.bias.*not in the model: 1\.offset"):
        load_into(model, {("1.offset" if n == "1.bias" else n): a for n, a in tensors.items()})
    with pytest.raises(ModelError, match=r"0\.weight.*shape \(2, 3\).*\(3, 2\)"):
        load_into(model, tensors | {"0.weight": tensors["0.weight"].T})
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=r"1\.bias.*float32.*float16"):
        load_into(model, tensors | {"0.weight": tensors["0.weight"] + 1,
                                    "1.bias": tensors["1.bias"].astype(np.float16)})
    assert model[0].weight.equal(before), "nothing is written unless everything fits"


def test_two_values_for_one_tensor_are_refused() -> None:
    model = Zoo()
    tensors = dict(inventory_of_module(model).tensors)
    assert load_into(model, tensors | {"head.weight": tensors["words.weight"].copy()}) is model
    with pytest.raises(ModelError, match=r"head\.weight and words\.weight"):
        load_into(model, tensors | {"head.weight": tensors["words.weight"] + 1})


def test_shared_modules_and_batchnorms() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.BatchNorm1d(3)
            self.b = self.a
            self.c = nn.BatchNorm1d(3)
            self.d = nn.BatchNorm1d(3)
            self.d.weight = self.c.weight

    inventory = inventory_of_module(Twice())
    assert [bn.prefix for bn in inventory.batchnorms] == ["a"], "c and d share a weight: left alone"
    assert inventory.aliases["b.running_mean"] == "a.running_mean"


def test_partial_views_are_exact_and_come_back() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.randn(4, 3)
            self.whole = nn.Parameter(whole)
            self.part = nn.Parameter(whole[1:])
            self.apart = nn.Linear(2, 2)
            flat = torch.randn(8)
            self.left, self.right = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
            self.register_buffer("row", torch.arange(3.0).expand(5, 3))

    source, target = Views(), Views()
    inventory = inventory_of_module(source)
    assert inventory.exact == {"whole", "part", "row"}
    assert inventory.aliases == {}
    load_into(target, inventory.tensors)
    for name, tensor in source.state_dict().items():
        assert target.state_dict()[name].equal(tensor)
    with pytest.raises(ModelError, match="row"):
        load_into(target, dict(inventory.tensors) | {"row": np.arange(15, dtype=np.float32).reshape(5, 3)})


def test_parametrized_weights_are_tensors_not_layers() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3))
    inventory = inventory_of_module(model)
    assert inventory.names == list(model.state_dict())
    assert {layer.name: layer.kind for layer in inventory.layers} == {
        "parametrizations.weight.original0": "matrix", "parametrizations.weight.original1": "matrix"}


def test_models_without_values_are_refused() -> None:
    with pytest.raises(ModelError, match=r"weight.*not initialised"):
        inventory_of_module(nn.LazyLinear(3))
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="meta"):
        inventory_of_module(model)
    with pytest.raises(ModelError, match=r"weight.*complex128"):
        inventory_of_module(nn.Linear(2, 2, dtype=torch.complex128))


def test_non_contiguous_parameters() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    inventory = inventory_of_module(model)
    np.testing.assert_array_equal(inventory.tensors["weight"], model.weight.detach().numpy())
    load_into(model, {name: array * 2 for name, array in inventory.tensors.items()})
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_are_tensors() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(2, 3)), nn.BatchNorm1d(3))
    inventory = inventory_of_module(model)
    assert inventory.names == list(model.state_dict())
    load_into(model, {name: array * 0 for name, array in inventory.tensors.items()})
    assert not any(tensor.any() for tensor in model.state_dict().values())
