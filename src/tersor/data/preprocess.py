"""From pixels to what a network wants: resize, crop, normalise; the way torchvision does it.

    preprocess("imagenet")                               # 256, 224, the usual mean and deviation
    preprocess("none", mean=(0.5,), std=(0.5,), size=28) # one channel: images become grey
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image.

    * `resize`: its shorter side gets so many pixels (bilinear, antialiased); None keeps its size.
    * `crop`: the central square of so many pixels; None keeps all.
    * `mean`, `std`: of each channel, of pixels / 255, which are then (pixel / 255 - mean) / std. Empty: pixels / 255.

    With one `mean` images become grey, else RGB.
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, 3):
            raise ConfigError(f"mean has {len(self.mean)} numbers and std {len(self.std)}: give one each, or three "
                              f"(red, green, blue)")
        if not all(np.isfinite([*self.mean, *self.std])) or not all(value > 0 for value in self.std):
            raise ConfigError(f"mean={self.mean} must be finite and std={self.std} positive")
        if self.crop is not None and self.resize is not None and self.crop > self.resize:
            raise ConfigError(f"crop={self.crop} is larger than resize={self.resize}")
        if any(size is not None and size < 1 for size in (self.resize, self.crop)):
            raise ConfigError(f"resize={self.resize} and crop={self.crop} must be positive")

    @property
    def mode(self) -> str:
        """Pillow's word for the channels."""
        return "L" if len(self.mean) == 1 else "RGB"

    @property
    def resizes(self) -> bool:
        return self.resize is not None or self.crop is not None

    def image(self, image: Image) -> Floats:
        """A Pillow image as the network's input, float32 [channels, height, width]."""
        image = image.convert(self.mode)
        if self.resize is not None:
            image = _shorter_side(image, self.resize)
        if self.crop is not None:
            image = _centre(image, self.crop)
        pixels = np.asarray(image, dtype=np.uint8)
        return self.normalised(pixels if pixels.ndim == 3 else pixels[:, :, None])

    def pixels(self, pixels: Pixels) -> Floats:
        """uint8 [height, width] or [height, width, channels] as the network's input, float32 [channels, h, w]."""
        if self.resizes:
            from PIL import Image
            return self.image(Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels))
        return self.normalised(pixels if pixels.ndim == 3 else pixels[:, :, None])

    def normalised(self, pixels: Pixels) -> Floats:
        """uint8 [height, width, channels] -> float32 [channels, height, width]."""
        values = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        if self.mean:
            if len(self.mean) not in (1, len(values)):
                raise ConfigError(f"mean and std have {len(self.mean)} numbers, the inputs {len(values)} channels")
            mean, std = (np.asarray(part, np.float32)[:, None, None] for part in (self.mean, self.std))
            values = (values - mean) / std
        return np.ascontiguousarray(values)

    def describe(self) -> str:
        """In words, for a note to the user."""
        parts = [f"shorter side to {self.resize}"] if self.resize is not None else []
        parts += [f"centre {self.crop} x {self.crop}"] if self.crop is not None else []
        numbers = " ".join(f"{value:g}" for value in (*self.mean, *self.std))
        parts += [f"mean and deviation {numbers}"] if self.mean else ["pixels / 255, not normalised"]
        return ", ".join(parts)


PRESETS: Mapping[str, Preprocess] = MappingProxyType({
    "imagenet": Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": Preprocess(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": Preprocess(),
})


def preprocess(preset: str = "imagenet", *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
               size: int | None = None) -> Preprocess:
    """A preset ("imagenet", "cifar", "none"), with other numbers where they are given.

    `size`: of the network's square inputs; the shorter side is resized in the preset's proportion of resize to crop.
    Raises `ConfigError` for an unknown preset, and numbers that do not fit each other.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preprocess={preset!r} is not one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if size is not None:
        larger = (chosen.resize or 1) / (chosen.crop or 1)
        chosen = replace(chosen, resize=round(size * larger), crop=size)
    if mean is not None or std is not None:
        # A deviation alone goes with the preset's mean, and the other way round.
        one = tuple(mean) if mean is not None else chosen.mean or (0.0,) * len(std or ())
        other = tuple(std) if std is not None else chosen.std or (1.0,) * len(one)
        chosen = replace(chosen, mean=one, std=other)
    return chosen


def _shorter_side(image: Image, size: int) -> Image:
    from PIL.Image import Resampling
    width, height = image.size
    short = min(width, height)
    shape = (size, int(size * height / short)) if width <= height else (int(size * width / short), size)
    return image if shape == (width, height) else image.resize(shape, Resampling.BILINEAR)


def _centre(image: Image, size: int) -> Image:
    width, height = image.size
    if min(width, height) < size:
        raise ValueError(f"{width} x {height} pixels, fewer than the {size} x {size} that are cut out")
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
