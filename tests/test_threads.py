"""Work on several threads comes back in order, stays on as many threads as were asked for, and changes no file."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from encoder_models import build, inputs
from test_choice import smooth_network

import tersor
from tersor.errors import ConfigError
from tersor.threads import chosen, in_order, released, using


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order(count: int) -> None:
    seen = set()

    def work(i: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.002 * (i % 3))
        return i * i

    with using(count) as used:
        assert used == count and list(in_order(work, range(40))) == [i * i for i in range(40)]
    assert len(seen) <= count
    seen.clear()
    assert list(in_order(work, range(3))) == [0, 1, 4] and seen == {threading.get_ident()}, "no threads outside"


def test_threads_do_not_wait_for_threads() -> None:
    """Work that has work of its own does it where it is."""
    with using(2):
        rows = list(in_order(lambda i: list(in_order(lambda j: i * j, range(3))), range(20)))
    assert rows == [[0, i, 2 * i] for i in range(20)]


def test_an_error_comes_in_its_place_and_ends_the_rest() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError("three")
        return i

    with using(2), pytest.raises(ValueError, match="three"):
        for i, found in enumerate(in_order(work, range(1000))):
            assert i == found < 3
    assert len(begun) < 30


def test_libraries_make_no_threads_of_their_own_inside() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before, blas_before = torch.get_num_threads(), blas()
    torch.set_num_threads(3)
    try:
        with using(2):
            assert torch.get_num_threads() == 1 and set(blas()) <= {1}
            assert list(in_order(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
            with released(3):
                assert torch.get_num_threads() == 3
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3 == chosen(None) and blas() == blas_before
        with pytest.raises(KeyError), using(2):
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_wrong_numbers_of_threads(wrong: object) -> None:
    with pytest.raises(ConfigError, match="threads="):
        tersor.compress({"w": np.ones((8, 8), np.float32)}, bits=4, threads=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [
    {"effort": 7}, {"effort": 4}, {"effort": 3, "mode": "fast"}, {"tools": ("scalar", "transform", "kernels")},
    {"tools": ("scalar", "kernels"), "kernels": tersor.KernelConfig(scope="all")}, {"tools": ("codebook",)}])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_file_does_not_depend_on_threads(options: dict[str, object], calibrated: bool) -> None:
    model, x = smooth_network()
    stats = tersor.calibrate(model, [x]) if calibrated else None
    bits = 4.0 if options.get("tools") == ("codebook",) else 9.0
    found = [tersor.compress(model, stats, bits=bits, threads=count, **options) for count in (1, 3)]
    assert found[0].data == found[1].data
    assert list(found[0].decisions.items()) == list(found[1].decisions.items())


def test_a_walk_through_shortcuts_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in chunks of images, sums of their outputs, products of their inputs: on one thread or on several."""
    monkeypatch.setattr("tersor.lockstep.CHUNK", 1 << 12)
    model, x = build("residual"), inputs("residual")
    stats = tersor.calibrate(model, [x])
    found = [tersor.compress(model, stats, bits=6.0, threads=count) for count in (1, 3)]
    assert found[0].data == found[1].data and found[0].snr == found[1].snr
