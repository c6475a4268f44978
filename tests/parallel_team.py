"""Runs a function in several processes under torch.distributed (gloo), for the tests."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(function: Callable[..., Any], size: int, folder: Path, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """function(rank, size, *arguments) in `size` processes: what each returned, None of one that died, or the text of
    its exception."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(function, rank, size, folder, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    results = [folder / f"result-{rank}" for rank in range(size)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in results]


def _work(function: Callable[..., Any], rank: int, size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    try:
        result = function(rank, size, *arguments)
    except BaseException:
        result = traceback.format_exc()
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
