"""Inputs of a network from what a user has: a folder of images, arrays in a file, a function of their own.

    for inputs, labels in open_data("photos/", preprocess("imagenet"), images=256): ...
"""

from .datasets import Dataset, open_data
from .preprocess import PRESETS, Preprocess, preprocess

__all__ = ["PRESETS", "Dataset", "Preprocess", "open_data", "preprocess"]
