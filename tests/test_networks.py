"""The networks of the examples have the names and shapes of the published ones, and the narrow ones run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import networks  # noqa: E402

PARAMETERS = {
    "alexnet": 61_100_840,
    "squeezenet1_1": 1_235_496,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
}

TENSORS = {
    "alexnet": {
        "features.0.weight": (64, 3, 11, 11),
        "features.10.bias": (256,),
        "classifier.1.weight": (4096, 9216),
        "classifier.6.weight": (1000, 4096),
    },
    "squeezenet1_1": {"features.12.expand3x3.weight": (256, 64, 3, 3), "classifier.1.weight": (1000, 512, 1, 1)},
    "vgg16": {"features.28.weight": (512, 512, 3, 3), "classifier.0.weight": (4096, 25088)},
    "vgg16_bn": {
        "features.0.bias": (64,),
        "features.40.weight": (512, 512, 3, 3),
        "features.41.running_var": (512,),
        "classifier.6.bias": (1000,),
    },
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.num_batches_tracked": (),
        "fc.weight": (1000, 512),
    },
    "resnet34": {"layer3.5.conv2.weight": (256, 256, 3, 3), "layer4.2.bn2.bias": (512,)},
    "resnet50": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.0.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    },
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.weight": (64,),
        "features.denseblock1.denselayer1.conv1.weight": (128, 64, 1, 1),
        "features.denseblock3.denselayer24.norm1.running_mean": (992,),
        "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
        "features.transition3.conv.weight": (512, 1024, 1, 1),
        "features.norm5.bias": (1024,),
        "classifier.weight": (1000, 1024),
    },
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.17.conv.3.running_var": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
}

ENTRIES = {  # of the published state dicts
    "alexnet": 16,
    "squeezenet1_1": 52,
    "vgg16": 32,
    "vgg16_bn": 97,
    "resnet18": 122,
    "resnet34": 218,
    "resnet50": 320,
    "densenet121": 727,
    "mobilenet_v2": 314,
}


@pytest.mark.parametrize("name", networks.IMAGENET)
def test_published_sizes_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = networks.IMAGENET[name]()
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    state = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert len(state) == ENTRIES[name]
    for tensor, shape in TENSORS[name].items():
        assert tuple(state[tensor].shape) == shape, tensor


@pytest.mark.parametrize("name", networks.CIFAR)
def test_narrow_networks_run_on_small_images(name: str) -> None:
    model = networks.cifar(name, 0.125, classes=7).eval()
    wider = networks.cifar(name, 0.25, classes=7)
    assert model.state_dict().keys() == wider.state_dict().keys()
    count, more = (sum(p.numel() for p in m.parameters()) for m in (model, wider))
    assert 1.5 * count < more < 4.5 * count
    with torch.no_grad():
        output = model(torch.randn(3, 3, 32, 32))
    assert output.shape == (3, 7)
    assert torch.isfinite(output).all()


def test_narrow_networks_keep_the_published_names() -> None:
    """Of convolutions and BatchNorm; stems and heads may differ."""
    with torch.device("meta"):
        for small, large in [("resnet18", "resnet18"), ("resnet50", "resnet50"), ("mobilenet_v2", "mobilenet_v2")]:
            assert networks.cifar(small).state_dict().keys() == networks.IMAGENET[large]().state_dict().keys()
        narrow = networks.cifar("densenet121").state_dict().keys()
        assert networks.cifar("densenet").state_dict().keys() < narrow
        whole = networks.IMAGENET["densenet121"]().state_dict().keys()
        assert {name for name in whole if ".norm0." not in name} == narrow
        vgg, whole = networks.cifar("vgg16_bn").state_dict().keys(), networks.VGG().state_dict().keys()
        assert {n for n in vgg if n.startswith("features")} == {n for n in whole if n.startswith("features")}
        assert {n for n in vgg if n.startswith("classifier")} == {"classifier.0.weight", "classifier.0.bias"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError, match="vgg16_bn"):
        networks.cifar("vgg19")
    with pytest.raises(KeyError, match="nothing_cifar"):
        networks.load_zoo("nothing_cifar")
