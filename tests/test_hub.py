"""Networks saved to folders and loaded again, with and without huggingface_hub underneath."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tersor  # noqa: E402
import tersor.hub  # noqa: E402
from tersor.errors import ConfigError, ModelError  # noqa: E402


@pytest.fixture(params=["alone", "huggingface_hub"])
def net(request, monkeypatch):
    """A class of networks upon either base."""
    if request.param == "alone":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    else:
        pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
        pytest.importorskip("jinja2", reason="jinja2 is not installed (for model cards)")
    hub = importlib.reload(tersor.hub)

    class Net(nn.Module, hub.TersorHubMixin):
        def __init__(self, width: int = 16, bias: bool = True, **more: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, width, bias), nn.Linear(width, more.get("outputs", 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.relu(self.one(x)))

    yield Net
    monkeypatch.undo()
    importlib.reload(tersor.hub)


@pytest.mark.filterwarnings("ignore")
def test_there_and_back(net, tmp_path):
    model = net(24, outputs=3)
    x = torch.randn(40, 8)
    model.save_pretrained(tmp_path / "net", bits=16.0, stats=tersor.calibrate(model, x), options={"effort": 2})
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert config["width"] == 24 and config["outputs"] == 3
    assert (tmp_path / "net/model.tersor").stat().st_size * 8 <= 16 * sum(p.numel() for p in model.parameters())
    again = net.from_pretrained(tmp_path / "net")
    assert not again.training and again.one.weight.shape == (24, 8)
    assert 0 < float((again(x) - model(x)).abs().max().detach()) < 0.05
    wider = tersor.compress(net(24, bias=False, outputs=3), bits=20)
    net(24, bias=False, outputs=3).save_pretrained(tmp_path / "other", packed=wider)
    assert net.from_pretrained(tmp_path / "other").one.bias is None
    assert (tmp_path / "other/model.tersor").read_bytes() == wider.data


@pytest.mark.filterwarnings("ignore")
def test_mistakes(net, tmp_path):
    model = net()
    with pytest.raises(ConfigError, match="exactly one of bits="):
        model.save_pretrained(tmp_path / "net")
    with pytest.raises(ConfigError, match="packed= is a finished file"):
        model.save_pretrained(tmp_path / "net", packed=tersor.compress(model, bits=24), bits=3)
    model.save_pretrained(tmp_path / "net", bits=24)
    with pytest.raises(ModelError, match="shape"):
        net.from_pretrained(tmp_path / "net", width=9)
    (tmp_path / "net/model.tersor").unlink()
    with pytest.raises(ModelError, match="was not written by tersor"):
        net.from_pretrained(tmp_path / "net")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub = importlib.reload(tersor.hub)
    with pytest.raises(ModelError, match="pip install huggingface_hub"):
        hub.LocalHubMixin.from_pretrained("someone/model")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="not a configuration"):
        hub.LocalHubMixin.from_pretrained(tmp_path)
    monkeypatch.undo()
    importlib.reload(tersor.hub)
