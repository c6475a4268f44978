"""scikit-learn's 8x8 handwritten digits, split once and for all: 1,000 to train on, 797 to test.

Calibration data is never evaluation data, so the two parts come from functions of different names.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAIN = 1000
SPLIT_SEED = 2024


@cache
def _shuffled() -> tuple[Tensor, Tensor]:
    """All 1,797 images float32 [N, 1, 8, 8] in 0..1 and labels int64 [N], in an order that never changes."""
    data = load_digits()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(data.target))
    images = torch.from_numpy(data.images[order].astype(np.float32) / 16).unsqueeze(1)
    return images, torch.from_numpy(data.target[order].astype(np.int64))


def train_split() -> tuple[Tensor, Tensor]:
    """The 1,000 images and labels for training and calibration."""
    images, labels = _shuffled()
    return images[:TRAIN], labels[:TRAIN]


def test_split() -> tuple[Tensor, Tensor]:
    """The 797 images and labels for evaluation only."""
    images, labels = _shuffled()
    return images[TRAIN:], labels[TRAIN:]


def calibration_batches(count: int = 320, batch: int = 80) -> list[Tensor]:
    """The first `count` training images in batches of [batch, 1, 8, 8]."""
    return list(train_split()[0][:count].split(batch))
