"""One call of `compress`: trial encodings at any lambda, and the searches that meet a target with them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from .adapters.calls import undisturbed
from .allocation import TOLERANCE, Trial, search, search_accepted
from .decoder import load
from .encoding import Encoding, begin
from .errors import ConfigError, TargetError, WorkerError
from .evaluate import Drop, paired_drop
from .guess import Guess
from .journal import Journal, LayerJournal
from .lockstep import lockstep_walk
from .memory import available, footprint_of
from .packed import Packed
from .parallel import ALONE
from .plan import Plan
from .published import Tables, measure
from .restored import restore
from .stage import Mismatch, Stage, forward, forward_restored, prepare, signal_to_noise, walk_bytes
from .threads import released
from .trust import Originals, measured_ratios
from .walk import static_walk
from .writer import STREAMED, Written, stream_of, write

CONTEXT_GAIN, STATIC_GAIN = 0.905, 0.993
"""Bits of the small and the fast coder over those of an ideal order-0 code per layer, for the first guess of lambda."""

TRELLIS_GAIN = 0.895
"""The same of a trellis and what else effort brings in."""

DROP_START = 3.0
"""Bits/weight at which the search for a bound on the drop of accuracy begins."""


@dataclass
class _Trial:
    """What is kept of an encoding: not its integers. decisions: as `Packed.decisions`."""

    written: Written
    snr: float | None
    price: float
    decisions: dict[str, dict[str, Any]]
    ratios: dict[str, float] | None = None  # `tersor.trust.measured_ratios`, where asked for


class Job:
    """One call of `compress`: encodes at any lambda."""

    def __init__(self, plan: Plan, model: nn.Module | None) -> None:
        self.plan, self.model = plan, model
        self.notes: list[str] = list(plan.notes)
        self.stage: Stage | None = None
        self.trials: dict[tuple[bytes, ...], _Trial] = {}
        self._guess: Guess | None = None
        self.team, self.threads = ALONE, 1
        self.journal: Journal | None = None
        self.number = 0  # of the next trial
        stats = plan.statistics
        if stats is None:
            self.notes.append("data-free: no statistics were given, so every layer's relative error counts "
                              "alike")
        elif model is not None:
            self.stage = prepare(stats, model, plan.inventory)
            if self.stage is None and plan.config.corrected:
                self.notes.append("no second walk: " + (stats.graph.reason or "the statistics kept no samples"))
        elif plan.config.corrected:
            self.notes.append("no second walk: it needs the nn.Module")
        self.corrected = plan.config.corrected and self.stage is not None

    def tell_memory(self, file_bytes: float, progress: Callable[[str], None] | None) -> None:
        """Say how much memory the encoding will take; note it where that is more than there is."""
        stats, walk = self.plan.statistics, 0
        if self.corrected and self.model is not None and stats is not None:
            walk = walk_bytes(stats, self.model)
        need, have = footprint_of(self.plan, file_bytes, walk, self.threads), available()
        if have is not None and need.memory - need.mapped > have:
            self.notes.append(f"memory may not suffice: {need}, and {have / 1e9:.1f} GB are free; a lower effort takes "
                              f"less, and so does a model given as a path without samples in the statistics")
            if progress is not None:
                progress(self.notes[-1])
        elif progress is not None and need.weights >= STREAMED:
            progress(str(need))

    def to_size(self, target: float, progress: Callable[[str], None] | None) -> Packed:
        """The largest file of at most `target` bytes."""
        tensors = self.plan.inventory.tensors
        weights = sum(tensors[name].size for name in self.plan.layers)
        start = 0.0
        if weights:
            # The rest of the file: about a byte for each small number, and what is lossless.
            other = 300 + sum(tensors[name].size for name in self.plan.vectors)
            other += sum(2 * tensors[bn.weight].size for bn in self.plan.batchnorms.values())
            other += sum(tensors[name].nbytes // 2 for name in self.plan.raw) + len(self.plan.inventory.source) // 4
            config = self.plan.config
            saved = CONTEXT_GAIN if config.mode == "small" else STATIC_GAIN
            saved *= TRELLIS_GAIN if config.tries_trellis and not self.plan.shared else 1.0
            bits = max(target - other, 0.0) * 8.0 / weights / saved
            start = -min(bits, 16.0) if self.plan.shared else self.first_guess(bits)

        def encode(log_price: float) -> tuple[float, _Trial]:
            trial = self.encode(log_price, measure=self.corrected and self.plan.config.measures)
            return float(len(trial.written.data)), trial

        slope = -max(weights, 1) / (8.0 if self.plan.shared else 16.0)

        def find(start: float) -> Trial[_Trial]:
            return search(encode, target, start, slope, what="size in bytes", progress=progress)

        scout = self.stage.scout(self.plan) if self.corrected and self.stage is not None and weights else None
        if scout is not None:
            whole, self.stage = self.stage, scout
            start = find(start).log_price
            self.stage = whole
        best = self._filled(find(start), target)
        if best.value < (1.0 - TOLERANCE) * target and best.result.decisions:
            self.plan.chooser.frozen = True
            best = max(best, find(best.log_price), key=lambda trial: trial.value)
        best = self._measured(best, find, lambda trial: trial.result.snr or -math.inf)
        if best.value < (1.0 - TOLERANCE) * target:
            self.notes.append(f"the file is {100 * (1 - best.value / target):.1f}% smaller than asked: no finer "
                              f"choice of steps or shared values comes nearer")
        return self._packed(best)

    def _filled(self, best: Trial[_Trial], target: float) -> Trial[_Trial]:
        """The trial, or a larger one still within the target, where lambda alone came less than near to it."""
        return best

    def to_snr(self, target: float, progress: Callable[[str], None] | None) -> Packed:
        """The smallest file of at least `target` dB."""
        if self.model is None or self.stage is None:
            raise ConfigError("snr= needs an nn.Module and statistics with samples (calibrate(..., keep=...)); "
                              "give bits= or size= instead")

        def encode(log_price: float) -> tuple[float, _Trial]:
            trial = self.encode(log_price, measure=True)
            assert trial.snr is not None
            return trial.snr, trial

        guess = -max(target, 1.0) / 6.0 if self.plan.shared else self.first_guess(target / 6.0)

        def find(start: float) -> Trial[_Trial]:
            return _search_snr(encode, target, start, progress)

        best = find(guess)
        if best.value > target + TOLERANCE * abs(target) and best.result.decisions:
            self.plan.chooser.frozen = True
            best = min(best, find(best.log_price), key=lambda trial: trial.value)
        best = self._measured(best, find, lambda trial: -len(trial.result.written.data))
        if best.value > target + TOLERANCE * abs(target):
            self.notes.append(f"the file is at {best.value:.2f} dB: the next smaller one that was found misses "
                              f"{target:g} dB, as networks of few weights jump from one rate to another")
        return self._packed(best)

    def to_drop(self, most: float, evaluate: Callable[[nn.Module], Tensor], end: str,
                progress: Callable[[str], None] | None) -> Packed:
        """The smallest file whose network loses at most `most` points."""
        if self.model is None:
            raise ConfigError("max_drop= needs an nn.Module; give bits= or size= instead")
        copied = copy.deepcopy(self.model)
        with released(self.threads):
            before = evaluate(copied)
        least: Drop | None = None

        def attempt(log_price: float) -> tuple[bool, float, tuple[Trial[_Trial], Drop]]:
            nonlocal least
            trial = self.encode(log_price)
            size = len(trial.written.data)
            with released(self.threads):
                drop = paired_drop(before, evaluate(restore(trial.written.data, copied, threads=self.threads)))
            worst = drop.high if end == "worst" else drop.mean
            if least is None or worst < (least.high if end == "worst" else least.mean):
                least = drop
            if progress is not None:
                progress(f"{size:,} bytes, {drop}, at most {most:g} wanted")
            return worst <= most, float(size), (Trial(log_price, float(size), trial), drop)

        found = search_accepted(attempt, -DROP_START if self.plan.shared else self.first_guess(DROP_START))
        if found is None:
            raise TargetError(f"a drop of at most {most:g} points is out of reach: the best was {least}. "
                              + ("More samples make the interval narrower, or let its mean count (drop_end)"
                                 if end == "worst" else "The network itself may be what differs"))
        best, drop = found
        counted = "the worst end of the interval counts" if end == "worst" else "the mean counts, not the interval"
        self.notes.append(f"{drop}; {counted}")
        return replace(self._packed(best), drop=drop.as_dict())

    def _measured(self, best: Trial[_Trial], find: Callable[[float], Trial[_Trial]],
                  quality: Callable[[Trial[_Trial]], float]) -> Trial[_Trial]:
        """Another file in which layers weigh by what their errors do at the output, if it is better than `best`."""
        if not (self.plan.config.measures and self.corrected) or self.plan.shared:
            return best
        ratios = self.encode(best.log_price, ratios=True).ratios
        if not ratios:
            return best
        self.plan.reweigh(ratios)
        try:
            other = find(best.log_price)
        except TargetError:  # no encoding by these weights comes near to what is asked for
            other = best
        gain = quality(other) - quality(best)
        self.notes.append(f"measured at the output, the errors of layers weigh {min(ratios.values()):.2f} to "
                          f"{max(ratios.values()):.2f} times what the quadratic model says (median 1); bits by that "
                          f"{'made a better file' if gain > 0 else 'made no better file, and were not taken'}")
        return other if gain > 0 else best

    def encode(self, log_price: float, measure: bool = False, ratios: bool = False) -> _Trial:
        """One encoding at log2 lambda (of shared values: at minus their bits/weight); `measure`: with its snr;
        `ratios`: with those."""
        if self.journal is None:
            return self._encode(log_price, measure, ratios)
        number, self.number = self.number, self.number + 1
        found = self.journal.trial(number, float(log_price))
        chooser = self.plan.chooser
        if found is not None:
            record, data = found
            chooser.recall(record["known"], record["books"])
            self.corrected, self.notes = record["corrected"], list(record["notes"])
            return _Trial(Written(data, record["weight_bytes"]), record["snr"], record["price"], record["decisions"],
                          record["ratios"])
        # Layers that are taken from the journal do not say what they were to be.
        trial = self._encode(log_price, measure, ratios, None if ratios else self.journal.layers(number))
        known, books = chooser.memory()
        self.journal.finish(number, {
            "log_price": float(log_price), "known": known, "books": books, "corrected": self.corrected,
            "notes": self.notes, "weight_bytes": trial.written.weight_bytes, "snr": trial.snr, "price": trial.price,
            "decisions": trial.decisions, "ratios": trial.ratios}, trial.written.data)
        return trial

    def _encode(self, log_price: float, measure: bool, ratios: bool = False,
                layers: LayerJournal | None = None) -> _Trial:
        snr = None
        encoding = self._begin(log_price)
        originals = Originals(encoding) if ratios else None
        done = False
        failed = layers.fallback() if layers is not None and self.corrected else None
        if failed is not None:  # before the interruption, in this very trial
            self.plan.chooser.recall(failed["known"], failed["books"])
            self.corrected = False
            self.notes.append(failed["note"])
        encoding.journal = layers
        same = tuple(code.values.tobytes() for code in encoding.codebooks.values())
        if same and same in self.trials:
            return self.trials[same]  # k-means: there are only so many numbers of centres
        chooser = self.plan.chooser
        if self.corrected and self.model is not None and self.stage is not None:
            chooser.team = self.team
            try:
                y_hat = lockstep_walk(encoding, self.model, self.stage)
                done = True
                if y_hat is not None and self.stage.outputs is not None:
                    snr = signal_to_noise(self.stage.outputs, y_hat)
            except Mismatch as error:
                self.corrected = False
                self.notes.append(f"no second walk: {error}")
                encoding = self._begin(log_price)
                if layers is not None:
                    layers.fall_back(self.plan.chooser, self.notes[-1])
                encoding.journal = layers
        if not done:
            chooser.team = ALONE  # each process is at another layer
            static_walk(encoding, stream_of(encoding) if self.team.is_alone else None, self.team)
        written = write(encoding, self.team)
        self._check_equal(written)
        if snr is None and measure:
            snr = self._measure(written)
        trial = _trial(encoding, written, snr)
        if originals is not None and self.corrected and self.model is not None and self.stage is not None:
            with undisturbed(self.model), load(written.data, threads=self.threads) as file:
                trial.ratios = measured_ratios(originals, file.read_all(), self.model, self.stage)
        if same:
            self.trials[same] = trial
        return trial

    def _check_equal(self, written: Written) -> None:
        """Raise `WorkerError` unless all processes have made the same file."""
        found = self.team.gather(hashlib.sha256(written.data).hexdigest())
        different = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if different:
            raise WorkerError(f"rank {different[0]} has made other bytes than rank 0: all must have the same kind of "
                              f"processor, the same versions and the same number of threads (torch.set_num_threads)")

    def _begin(self, x: float) -> Encoding:
        """An encoding at a point of the search: log2 lambda, or minus the entropy in bits/weight of shared values,
        from which lambda then follows."""
        if self.plan.shared:
            return begin(self.plan, 1.0, max(-x, 1e-3))
        return begin(self.plan, 2.0**x)

    def _measure(self, written: Written) -> float:
        """Signal-to-noise ratio of the restored model on the samples, by really decoding."""
        assert self.model is not None and self.stage is not None
        with undisturbed(self.model), load(written.data, threads=self.threads) as file:
            y_hat = forward_restored(self.model, file, self.stage.samples)
            if self.stage.outputs is None:
                self.stage.outputs = forward(self.model, self.stage.samples)
        return signal_to_noise(self.stage.outputs, y_hat)

    def _packed(self, best: Trial[_Trial]) -> Packed:
        trial = best.result
        if trial.snr is None and self.model is not None and self.stage is not None:
            trial.snr = self._measure(trial.written)
        return Packed(trial.written.data, self.plan.inventory.parameters, trial.price, trial.snr,
                      trial.written.weight_bytes, self.notes, trial.decisions)

    def first_guess(self, bits: float) -> float:
        """log2 lambda at which plain rounding would have an entropy of `bits` per weight."""
        if self._guess is None:
            self._guess = Guess(self.plan)
        return self._guess.log_price(bits)


class PublishedJob(Job):
    """Fixed-length coding with bit depths chosen on the network's output; see `tersor.published`."""

    def __init__(self, plan: Plan, model: nn.Module | None, progress: Callable[[str], None] | None) -> None:
        self.tables: Tables = measure(plan, model, progress)
        super().__init__(plan, model)
        self.corrected = False
        self.notes.append(self.tables.note)

    def _begin(self, x: float) -> Encoding:
        return self.tables.encoding(2.0**x)

    def _filled(self, best: Trial[_Trial], target: float) -> Trial[_Trial]:
        spare = target - best.value
        while best.value < (1.0 - TOLERANCE) * target and spare >= 1.0:
            encoding = self.tables.encoding(2.0**best.log_price, 8.0 * spare)
            written = write(encoding)
            if len(written.data) <= target:
                return Trial(best.log_price, float(len(written.data)), _trial(encoding, written))
            spare -= max(1.0, len(written.data) - target)  # what the steps of deeper blocks take
        return best

    def first_guess(self, bits: float) -> float:
        count = sum(table.count for table in self.tables.every)
        return float(np.clip(math.log2(self.tables.price_for(bits * count)), -100.0, 100.0))


def _trial(encoding: Encoding, written: Written, snr: float | None = None) -> _Trial:
    return _Trial(written, snr, float(encoding.price),
                  {name: encoding.decisions[name].report() for name in encoding.plan.layers
                   if name in encoding.decisions})


def _search_snr(encode: Callable[[float], tuple[float, _Trial]], target: float, start: float,
                progress: Callable[[str], None] | None) -> Trial[_Trial]:
    """Mirror the search: signal-to-noise falls with lambda like bytes, but is wanted from above."""
    def mirrored(log_price: float) -> tuple[float, _Trial]:
        value, trial = encode(-log_price)
        return -value, trial

    found = search(mirrored, -target, -start, -3.0, what="signal-to-noise ratio in dB", sign=-1.0,
                   progress=progress)
    return Trial(-found.log_price, -found.value, found.result)
