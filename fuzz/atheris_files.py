"""Coverage-guided fuzzing of whole files by atheris, with the grammar-aware mutator as its custom mutator.

    pip install atheris                                       # wheels for Linux and CPython 3.11 to 3.13
    python fuzz/atheris_files.py CORPUS -max_total_time=600   # options as of libFuzzer

What atheris mutates by itself dies at the checksums; every second mutation is ours, which makes them right again.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent)]
with atheris.instrument_imports(include=["tersor"]):
    from files import golden_files
    from mutator import Seed, Seeds, mutate_bytes, mutate_seed, seed_of
    from oracle import judge, limit_memory

    import tersor.synthesis.batchnorm
    import tersor.synthesis.codebook
    import tersor.synthesis.kernels
    import tersor.synthesis.raw
    import tersor.synthesis.scalar
    import tersor.synthesis.transform
    import tersor.synthesis.vector  # noqa: F401
    from tersor.errors import TersorError

from grammar import take_apart  # noqa: E402

SEEDS = Seeds.of(golden_files())
_KNOWN: dict[bytes, Seed | None] = {}


def seed_from(data: bytes) -> Seed | None:
    """The parts of a file that atheris holds; None where it is not even a container."""
    if data not in _KNOWN:
        if len(_KNOWN) > 5000:
            _KNOWN.clear()
        try:
            _KNOWN[data] = seed_of(take_apart(data))
        except (TersorError, ValueError, IndexError, OverflowError, struct.error):
            _KNOWN[data] = None
    return _KNOWN[data]


def mutator(data: bytes, most: int, number: int) -> bytes:
    """libFuzzer's hook: `data` changed, at most `most` bytes."""
    rng = random.Random(number)
    if rng.randrange(8) == 0:
        return bytes(atheris.Mutate(data, most))
    seed = seed_from(data) or rng.choice(SEEDS)
    made = mutate_seed(seed, SEEDS, rng) if seed.parts.payloads else mutate_bytes(data, rng)
    return made[:most]


def one_input(data: bytes) -> None:
    """Raises Finding, which atheris reports as a crash."""
    judge(data)


def main() -> None:
    limit_memory()
    atheris.Setup(sys.argv, one_input, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
