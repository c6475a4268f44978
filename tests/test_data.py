"""Inputs from folders, arrays and functions: the same order every time, bad ones told by name, labels that fit."""

from __future__ import annotations

import csv
import doctest
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch

from tersor.data import datasets, imports, open_data, preprocess
from tersor.data.preprocess import PRESETS, Preprocess
from tersor.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow (the extra `images`)")


def picture(path, size=(40, 36), mode="RGB", seed=0):
    """A noisy image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images each, and a file that is no image."""
    for number, name in enumerate(("ant", "bee", "cat")):
        for i in range(4):
            picture(tmp_path / "photos" / name / f"{i}.png", seed=10 * number + i)
    (tmp_path / "photos" / "readme.txt").write_text("no image")
    return tmp_path / "photos"


def test_classes_are_the_sorted_folders(folder):
    data = open_data(folder, preprocess("cifar"), images=None, batch=5)
    batches = list(data)
    assert [len(x) for x, _ in batches] == [5, 5, 2] and data.count == 12 and data.has_labels
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4 == data.labels().tolist()
    assert batches[0][0].shape == (5, 3, 32, 32) and batches[0][0].dtype == torch.float32
    again = list(data)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True)), "the same order every time"
    assert data.source.classes == ("ant", "bee", "cat") and not data.skipped and not data.notes


def test_some_images_are_of_all_classes(folder):
    assert torch.cat([y for _, y in open_data(folder, images=3)]).tolist() == [0, 1, 2]
    assert "ImageNet" not in open_data(folder).notes[0] and "centre 224 x 224" in open_data(folder).notes[0]


def test_pixels_are_normalised(tmp_path):
    pixels = picture(tmp_path / "a.png")
    (x,) = open_data(tmp_path, preprocess("none", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)))
    expected = (pixels / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.3])
    assert np.allclose(x[0].numpy().transpose(1, 2, 0), expected, atol=1e-6)


def test_resizing_is_that_of_torchvision(tmp_path):
    """Shorter side, the longer one in proportion and cut off; then the centre."""
    picture(tmp_path / "a.png", size=(61, 40))
    image = Image.open(tmp_path / "a.png").resize((48, 32), Image.Resampling.BILINEAR).crop((9, 1, 39, 31))
    (x,) = open_data(tmp_path, Preprocess(32, 30))
    assert np.array_equal(np.rint(x[0].numpy() * 255).transpose(1, 2, 0), np.asarray(image))


def test_grey_images_and_other_modes(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK"):
        picture(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    (x,) = open_data(tmp_path, preprocess("none"))
    assert x.shape == (4, 3, 36, 40)
    (x,) = open_data(tmp_path, preprocess("none", mean=(0.1,), std=(0.3,), size=28))
    assert x.shape == (4, 1, 28, 28)


def test_bad_images_are_skipped_by_name_up_to_a_share(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i:02}.png", seed=i)
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:100])
    picture(tmp_path / "07.png", size=(50, 50))
    data = open_data(tmp_path, preprocess("none"))
    assert sum(map(len, data)) == 38 == sum(map(len, data))
    assert set(data.skipped) == {"05.png", "07.png"}
    assert "3 x 50 x 50 where the first is 3 x 36 x 40" in data.skipped["07.png"]
    (tmp_path / "09.png").write_text("not an image at all")
    with pytest.raises(DataError, match=r"3 of 40 inputs are bad, more than 5%.*09\.png: cannot identify image file"):
        list(open_data(tmp_path, preprocess("none")))
    assert sum(map(len, open_data(tmp_path, preprocess("none"), most_skipped=0.1))) == 37


def test_labels_of_a_skipped_image_are_skipped(tmp_path):
    for i in range(30):
        picture(tmp_path / f"{i % 2}" / f"{i:02}.png")
    (tmp_path / "0" / "02.png").write_text("")
    data = open_data(tmp_path, preprocess("none"))
    labels = torch.cat([y for _, y in data])
    assert labels.tolist() == [0] * 14 + [1] * 15 == data.labels().tolist()


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits per channel"):
        list(open_data(tmp_path, preprocess("none")))


def test_decompression_bombs_are_bad_images(tmp_path, monkeypatch):
    picture(tmp_path / "big.png", size=(300, 300))
    for most in (40_000, 60_000):  # an error, and only a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(DataError, match=r"big\.png: Image size"):
            list(open_data(tmp_path, preprocess("none")))


# --- labels ---------------------------------------------------------------------------------------------


def test_labels_from_a_file(tmp_path, folder):
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class_index"])
        writer.writerows([f"{name}/{i}.png", 7 + i] for name in ("ant", "bee", "cat") for i in range(4))
    data = open_data(folder, labels=tmp_path / "labels.csv", images=None)
    assert torch.cat([y for _, y in data]).tolist() == [7, 8, 9, 10] * 3
    (tmp_path / "labels.txt").write_text("".join(f"{i}\n" for i in range(12)))
    assert open_data(folder, labels=tmp_path / "labels.txt").source.labels.tolist() == list(range(12))
    np.save(tmp_path / "labels.npy", np.arange(12, dtype=np.uint8))
    assert open_data(folder, labels=tmp_path / "labels.npy").source.labels.tolist() == list(range(12))


@pytest.mark.parametrize(("name", "text", "message"), [
    ("l.csv", "a.png,1\n", "no label for ant/0.png"),
    ("l.csv", "0.png,1\n1.png,1,\n2.png,x\n", "line 3: 'x' is no class index"),
    ("l.csv", "0.png,1\n1.png\n", "line 2: wanted is NAME,CLASS INDEX"),
    ("l.txt", "1\n2\n", r"shape \(2,\) and type int64, there are 12 inputs"),
    ("l.txt", "1\n-2\n", "line 2: '-2'"),
    ("l.npy", "1\n", "cannot be read"),
])
def test_labels_that_do_not_fit(folder, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(folder, labels=tmp_path / name)


# --- arrays ---------------------------------------------------------------------------------------------


def test_arrays_of_floats_are_taken_as_they_are(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(70, 3, 8, 8)), np.arange(70) % 10
    np.savez(tmp_path / "a.npz", images=x, labels=y)
    np.save(tmp_path / "a.npy", x)
    safetensors.numpy.save_file({"x": x.astype("f4"), "y": y}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.npy", "a.safetensors"):
        data = open_data(tmp_path / name, images=None)
        assert data.has_labels == (name != "a.npy")
        inputs = torch.cat([batch[0] if data.has_labels else batch for batch in data])
        assert inputs.dtype == torch.float32 and np.allclose(inputs.numpy(), x, atol=1e-6)
    with pytest.raises(DataError, match="taken as it is"):
        open_data(tmp_path / "a.npy", PRESETS["imagenet"])
    x[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", x)
    data = open_data(tmp_path / "a.npy", images=None)
    assert sum(map(len, data)) == 69 and data.skipped == {"input 3": "NaN or infinity"}


def test_arrays_of_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    data = open_data(tmp_path / "a.npy")
    (x,) = data
    assert np.allclose(x.numpy().transpose(0, 2, 3, 1) * 255, pixels, atol=1e-4)
    assert "not normalised" in data.notes[0]
    (x,) = open_data(tmp_path / "a.npy", preprocess("imagenet", size=8))
    assert x.shape == (6, 3, 8, 8)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    (x,) = open_data(tmp_path / "grey.npy", preprocess("none", mean=(0.5,), std=(0.5,)))
    assert x.shape == (6, 1, 10, 12) and x.min() >= -1


def test_tokens_keep_their_type(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(12).reshape(4, 3))
    (x,) = open_data(tmp_path / "tokens.npy")
    assert x.dtype == torch.int64 and x.tolist() == np.arange(12).reshape(4, 3).tolist()


@pytest.mark.parametrize(("arrays", "message"), [
    ({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, "a, b: call the inputs 'images'"),
    ({"labels": np.ones(2)}, "labels: call the inputs"),
    ({"x": np.ones(5)}, r"shape \(5,\)"),
    ({"x": np.ones((5, 2)), "y": np.ones(4, int)}, r"labels of shape \(4,\) and type int64 for 5 inputs"),
    ({"x": np.ones((5, 2)), "y": np.ones(5)}, "type float64"),
    ({"x": np.array([["a"]])}, "type <U1"),
])
def test_arrays_that_are_no_inputs(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "a.npz")


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(tmp_path / "a.npy")


# --- functions ------------------------------------------------------------------------------------------

MODULE = """
import torch

def pairs():
    for i in range(5):
        yield torch.full((4, 2), float(i)), torch.full((4,), i)

def tensors():
    return [torch.ones(4, 2)]

def keywords():
    return [{"x": torch.ones(4, 2)}]

nothing = list
wrong = lambda: ["text"]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_own_loaders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_own_loaders", raising=False)


def test_functions_by_import_path(module):
    data = open_data("my_own_loaders:pairs", images=10)
    assert data.has_labels and [len(x) for x, _ in data] == [4, 4, 2] == [len(x) for x, _ in data]
    assert data.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 2 and data.count == 10
    assert [batch.shape for batch in open_data("my_own_loaders:tensors")] == [(4, 2)]
    assert [batch["x"].shape for batch in open_data("my_own_loaders:keywords", images=3)] == [(3, 2)]


@pytest.mark.parametrize(("path", "error", "message"), [
    ("my_own_loaders:nothing", DataError, "gives no batches"),
    ("my_own_loaders:wrong", DataError, "gives a str for a batch"),
    ("my_own_loaders:absent", ConfigError, "has no absent"),
    ("no_such_module_here:f", ConfigError, "importing no_such_module_here failed: ModuleNotFoundError"),
])
def test_functions_that_cannot_be_used(module, path, error, message):
    with pytest.raises(error, match=message):
        open_data(path)


# --- what is no data ------------------------------------------------------------------------------------


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        open_data(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_data(tmp_path / "absent")
    (tmp_path / "x.zip").write_text("")
    with pytest.raises(DataError, match="no folder, nor one of"):
        open_data(tmp_path / "x.zip")


@pytest.mark.parametrize("options", [{"preset": "mnist"}, {"mean": (1.0, 2.0)}, {"mean": (0.1,), "std": (0.0,)},
                                     {"mean": (float("nan"),), "std": (1.0,)}, {"size": 0}])
def test_preprocessing_that_makes_no_sense(options):
    with pytest.raises(ConfigError):
        preprocess(**options)


def test_doctests():
    for tested in (datasets, imports):
        assert doctest.testmod(tested).failed == 0
