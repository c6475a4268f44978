"""The logistic function in integers, and steps of updates: native/mixing.h."""

from __future__ import annotations

_ANCHORS = (22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793, 47911,
            53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514)

SQUASH = [(_ANCHORS[i >> 7] * (128 - (i & 127)) + _ANCHORS[(i >> 7) + 1] * (i & 127) + 64) >> 7 for i in range(4096)]
"""Probability of a 1 in 1/65536, at logit + 2048."""

RECIPROCAL = [65536 // (n + 2) for n in range(1024)]
"""The step of the n-th update."""


def _stretch() -> list[int]:
    out, x = [], -2047
    for p in range(4096):
        while x < 2047 and SQUASH[x + 2048] < p * 16 + 8:
            x += 1
        out.append(x)
    return out


STRETCH = _stretch()
"""The logit of a probability, at its upper twelve bits."""


def probability(x: int) -> int:
    """What the arithmetic coder is given for a logit."""
    return min(65536 - 32, max(32, SQUASH[x + 2048]))
