"""Reading, splitting and augmenting images for the examples."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

Image = pytest.importorskip("PIL.Image", reason="reading JPEG copies needs Pillow")

import image_data  # noqa: E402


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """Twelve plain images, of which JPEG keeps the colour to within a few steps, as JPEG copies."""
    parts = []
    for i in range(12):
        with io.BytesIO() as file:
            Image.new("RGB", (32, 32), (20 * i, 255 - 20 * i, 7 * i)).save(file, "JPEG", quality=95)
            parts.append(file.getvalue())
    path = tmp_path / "jpeg_train.npz"
    np.savez(
        path,
        bytes=np.frombuffer(b"".join(parts), np.uint8),
        offsets=np.cumsum([0, *map(len, parts)]),
        labels=(np.arange(12) % 10).astype(np.uint8),
    )
    return path


def test_jpeg_copies_are_decoded_and_kept(jpegs: Path, tmp_path: Path) -> None:
    images, labels = image_data.read(jpegs, tmp_path / "cache")
    assert (images.dtype, images.shape) == (torch.uint8, (12, 3, 32, 32))
    assert labels.tolist() == [i % 10 for i in range(12)]
    for i in range(12):
        colour = torch.tensor([20 * i, 255 - 20 * i, 7 * i]).view(3, 1, 1)
        assert (images[i].int() - colour).abs().max() <= 4

    (kept,) = (tmp_path / "cache").iterdir()
    with np.load(kept) as file:
        changed = 255 - file["images"]
        np.savez(kept, images=changed, labels=file["labels"])
    again, _ = image_data.read(jpegs, tmp_path / "cache")
    assert torch.equal(again, 255 - images)  # it was the cache that answered
    assert torch.equal(image_data.read(jpegs)[0], images)
    assert torch.equal(image_data.read(jpegs, tmp_path / "cache", 5)[0], 255 - images[:5])
    few, some = image_data.read(jpegs, count=5)
    assert torch.equal(few, images[:5])
    assert some.tolist() == [0, 1, 2, 3, 4]
    os.utime(jpegs, (0, 0))
    assert torch.equal(image_data.read(jpegs, tmp_path / "cache")[0], images)  # a changed file is read anew


def test_lossless_files_are_read_as_they_are(tmp_path: Path) -> None:
    given = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=given, labels=np.arange(5))
    images, labels = image_data.read(tmp_path / "train.npz")
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), given)
    assert labels.dtype == torch.int64


def numbered(count: int) -> image_data.Pair:
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.arange(count)


def test_splits_are_disjoint_and_fixed() -> None:
    training, held_out = image_data.split(numbered(100), 20)
    assert held_out[1].tolist() == list(range(80, 100))
    chosen = image_data.calibration(training, 30)
    assert len(set(chosen[1].tolist())) == 30
    assert set(chosen[1].tolist()) < set(range(80))
    assert torch.equal(chosen[0], training[0][chosen[1]])
    assert torch.equal(chosen[1], image_data.calibration(training, 30)[1])
    assert not torch.equal(chosen[1], image_data.calibration(training, 30, seed=1)[1])


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="hold out 100 of 100"):
        image_data.split(numbered(100), 100)
    with pytest.raises(ValueError, match="draw"):
        image_data.calibration(numbered(10), 11)


def test_normalised_and_in_order() -> None:
    data = numbered(10)
    parts = list(image_data.batches_in_order(data, 4))
    assert [len(y) for _, y in parts] == [4, 4, 2]
    x = torch.cat([x for x, _ in parts])
    mean, deviation = torch.tensor(image_data.MEAN), torch.tensor(image_data.DEVIATION)
    back = (x * deviation.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    torch.testing.assert_close(back, data[0].float(), atol=1e-3, rtol=0)


def test_augmented_images_are_crops_of_padded_or_mirrored_ones() -> None:
    images, labels = numbered(20)
    generator = torch.Generator().manual_seed(3)
    seen = 0
    for x, y in image_data.batches((images, labels), 8, generator, reach=2):
        for view, label in zip(x, y, strict=True):
            one = image_data.normalised(images[label : label + 1])
            padded = torch.nn.functional.pad(one, (2,) * 4, mode="reflect")[0]
            crops = [padded[:, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
            assert any(torch.equal(view, crop) or torch.equal(view, crop.flip(2)) for crop in crops)
            seen += 1
    assert seen == 16


def test_accuracy_counts_right_answers() -> None:
    images, _ = numbered(10)

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 3).float()

    labels = torch.tensor([0, 0, 1, 2, 0, 1, 1, 0, 0, 2])
    assert image_data.accuracy(First(), (images, labels), 4) == 0.5
