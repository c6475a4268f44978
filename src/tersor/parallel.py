"""Several processes at one task, started by torchrun or otherwise under torch.distributed.

    torch.distributed.init_process_group("gloo")            # or "nccl"
    stats = tersor.calibrate(model, my_batches)             # every process; each gets the statistics of all

A process that dies, hangs or fails ends the task on all others with a `WorkerError` that names it: while a process
waits for the others it looks into the store of torch.distributed, where the first to meet trouble leaves word.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import WorkerError

T = TypeVar("T")

TIMEOUT = 1800.0
"""Seconds that processes wait for one another, unless the environment's TERSOR_TIMEOUT says otherwise."""
GRACE = 4.0
"""Seconds in which every living process that waits answers a roll call."""
GLANCE = 0.5
"""Seconds between looks into the store while waiting."""


class Team:
    """The processes that work together: `rank` of `size`. All must make the same calls in the same order.

    Values travel as pickles between the processes of one job, never from files.
    """

    def __init__(self, rank: int, size: int, group: Any = None, timeout: float = TIMEOUT, number: int = 0) -> None:
        self.rank, self.size = rank, size
        self._group, self._timeout, self._prefix = group, timeout, f"tersor/{number}"
        self._broken = False

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def gather(self, value: object) -> list[Any]:
        """The `value` of each process, by rank, on every process."""
        if self.is_alone:
            return [value]
        data = pickle.dumps(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        mine = torch.tensor([len(data)])
        self._finish(lambda: dist.all_gather(lengths, mine, group=self._group, async_op=True))
        most = max(int(length) for length in lengths)
        blocks = [torch.empty(most, dtype=torch.uint8) for _ in range(self.size)]
        own = torch.zeros(most, dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._finish(lambda: dist.all_gather(blocks, own, group=self._group, async_op=True))
        return [pickle.loads(block[: int(length)].numpy().tobytes())
                for block, length in zip(blocks, lengths, strict=True)]

    def broadcast(self, value: object, source: int = 0) -> Any:
        """The `value` of the process `source`, on every process (what the others give is not looked at)."""
        if self.is_alone:
            return value
        data = pickle.dumps(value) if self.rank == source else b""
        length = torch.tensor([len(data)])
        self._finish(lambda: dist.broadcast(length, source, group=self._group, async_op=True))
        block = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else \
            torch.empty(int(length), dtype=torch.uint8)
        self._finish(lambda: dist.broadcast(block, source, group=self._group, async_op=True))
        return value if self.rank == source else pickle.loads(block.numpy().tobytes())

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes, in place."""
        if self.is_alone:
            return
        local = tensor.cpu().contiguous()
        self._finish(lambda: dist.all_reduce(local, group=self._group, async_op=True))
        if local.data_ptr() != tensor.data_ptr():
            tensor.copy_(local)

    def share(self, costs: Sequence[float], work: Callable[[int], T]) -> list[T]:
        """work(i) for every task i, each on one process; the results of all, in order, on every process."""
        if self.is_alone:
            return [work(i) for i in range(len(costs))]
        mine = [i for i, rank in enumerate(dealt(costs, self.size)) if rank == self.rank]
        found = self.gather([(i, work(i)) for i in mine])
        return [result for _, result in sorted((pair for part in found for pair in part), key=lambda pair: pair[0])]

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, an exception on this process ends the task on all others, too, which learn what it was."""
        try:
            yield
        except WorkerError:
            raise
        except BaseException as error:
            if not self.is_alone:
                self._broken = True  # the others are elsewhere in the order of calls
                self._tell(f"rank {self.rank} has stopped: {type(error).__name__}: {error}")
            raise

    def _finish(self, start: Any) -> None:
        """Run a collective, looking out for trouble."""
        if self._broken:
            raise WorkerError(f"rank {self.rank}: this team has lost a process; start the job again")
        deadline = time.monotonic() + self._timeout
        glance = time.monotonic() + GLANCE
        pause = 0.0
        try:
            work = start()
            while not work.is_completed():
                time.sleep(pause)
                pause = min(0.01, pause + 1e-4)
                if time.monotonic() > glance:
                    glance = time.monotonic() + GLANCE
                    if self._word() is not None:
                        self._lost("")
                if time.monotonic() > deadline:
                    self._lost(f"no answer for {self._timeout:,.0f} s")
            work.wait()
        except RuntimeError as error:
            self._lost(str(error))

    def _word(self) -> str | None:
        """What the first process in trouble has left in the store."""
        try:
            store, key = _store(), f"{self._prefix}/trouble"
            return store.get(key).decode() if store.check([key]) else None
        except (RuntimeError, ValueError) as error:
            return _no_store(error)

    def _tell(self, text: str) -> None:
        try:
            store, key = _store(), f"{self._prefix}/trouble"
            if not store.check([key]):
                store.set(key, text)
        except (RuntimeError, ValueError):
            return  # whoever held the store is gone, which the others see for themselves

    def _lost(self, what: str) -> None:
        """Find out who is missing, leave word, and raise."""
        self._broken = True
        known = self._word()
        if known is None:
            known = self._roll_call(what)
            self._tell(known)
        elif known == _CALL:
            known = self._roll_call(what)
        raise WorkerError(f"rank {self.rank} of {self.size}: {known}; this process has stopped too. Start the job "
                          f"again: with state= it goes on where it was saved last")

    def _roll_call(self, what: str) -> str:
        """Every process that lives and waits answers within `GRACE`; the words for those that do not."""
        try:
            store = _store()
            if not store.check([f"{self._prefix}/trouble"]):
                store.set(f"{self._prefix}/trouble", _CALL)
            store.set(f"{self._prefix}/here/{self.rank}", "1")
            end = time.monotonic() + GRACE
            missing = list(range(self.size))
            while missing and time.monotonic() < end:
                missing = [r for r in missing if not store.check([f"{self._prefix}/here/{r}"])]
                time.sleep(0.05)
        except (RuntimeError, ValueError) as error:
            return _no_store(error)
        if not missing:
            return f"the connection between processes failed ({_line(what)})"
        named = "rank " + str(missing[0]) if len(missing) == 1 else "ranks " + ", ".join(map(str, missing))
        reason = f" ({_line(what)})" if what else ""
        return (f"{named} died or does not answer{reason}; if it was only slow, raise TERSOR_TIMEOUT (seconds)")


def dealt(costs: Sequence[float], size: int) -> list[int]:
    """The process of each task: the dearest first, each to whoever has least to do.

    >>> dealt([3, 1, 1, 1], 2)
    [0, 1, 1, 1]
    """
    ranks, load = [0] * len(costs), [0.0] * size
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        ranks[i] = min(range(size), key=lambda rank: (load[rank], rank))
        load[ranks[i]] += costs[i]
    return ranks


_CALL = "roll call"

ALONE = Team(0, 1)
"""This process by itself, also under torch.distributed."""

_teams: dict[int, Team] = {}


def everybody() -> Team:
    """All processes of torch.distributed; `ALONE` where it is not initialised. The first call must be made by all."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    world = id(dist.group.WORLD)
    if world not in _teams:
        timeout = float(os.environ.get("TERSOR_TIMEOUT", TIMEOUT))
        # A group of its own: pickles and float64 sums go through the CPU, also in a job on GPUs.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout + 60.0))
        _teams[world] = Team(dist.get_rank(), dist.get_world_size(), group, timeout, len(_teams))
    return _teams[world]


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store
    return _get_default_store()


def _no_store(error: Exception) -> str:
    return f"rank 0 is gone, or whatever else held the store of torch.distributed ({_line(error)})"


def _line(error: object) -> str:
    """The first line of a message, without addresses."""
    return str(error).strip().partition("\n")[0].rpartition("] ")[2][:200]
