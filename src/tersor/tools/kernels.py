"""Kernel quantization of one layer at a given lambda ("Kernel quantization for efficient network compression", Yu, Shi,
Huang, Yu, IEEE Access 2022, with the layer's output as its distortion).

    candidate = propose(target, price, KernelConfig(), "small")      # None: no kernels here, take the scalar tool

Codebooks come from sensitivity-weighted, entropy-constrained k-means (`kernel_kmeans`), their size and whether
kernels have gains from J = D + lambda R; the values are rounded to a grid (6 bits in the paper); a last pass with
error feedback (`kernel_choice`) chooses the indexes for the codebook as a decoder has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ..config import KernelConfig
from ..synthesis import grid
from ..synthesis import kernels as synthesis
from ..synthesis.kernel_code import KernelCode, compact
from . import kernel_kmeans as kmeans
from .candidate import Candidate, distortion
from .kernel_blocks import Blocks, blocks_of
from .kernel_choice import Book, Chosen, Variant, choose
from .kernel_kmeans import Trained
from .kernel_refit import Fitted, refit
from .metric import Matrix
from .scalar import ROW_BITS, ROW_RESOLUTION, output_costs
from .target import LayerTarget

RDO = 0.6
"""Share of lambda that decisions with feedback pay for a bit."""
SIZES = tuple(2**i for i in range(1, 13))
"""Sizes that are tried."""
FINALISTS = 3
"""Codebooks that get through to the passes with feedback."""
VALUE_COST = 3.0
"""Bits of a codebook value, while sizes are compared; the file is measured in the end."""
PASSES = 3, 14
"""Of choosing indexes and fitting the codebook to them: of all finalists, and more of the best."""
FEWEST = 8
"""Layers with fewer kernels are left to the scalar tool."""


@dataclass(frozen=True)
class Layer:
    """A layer as this tool sees it: `blocks`, and how a file tells the rows' scales. `target`: transposed
    convolutions stand on their side, so that their kernels lie in rows."""

    target: LayerTarget
    blocks: Blocks
    rows: npt.NDArray[np.int64] | None
    turned: bool


def prepare(target: LayerTarget, config: KernelConfig, feedback: bool = True, unit: int = 0) -> Layer | None:
    """None where the layer has no kernels for this tool. unit: of the codebook, on the logarithmic grid."""
    taps = prod(target.shape[2:])
    turned = target.layer.kind == "conv_transposed" and taps > 1
    if target.layer.kind == "embedding":
        return None
    if taps == 1:
        if config.vector is None:
            return None
        taps = min(config.vector, target.W.shape[2])
    if turned:
        target = replace(target, W=np.ascontiguousarray(target.W.transpose(0, 2, 1)), A=target.G, G=target.A,
                         absorbed=False)
    if target.count < FEWEST * taps:
        return None
    scale, rows = _scales(target, feedback, turned)
    scale = scale * float(grid.value(unit))
    return Layer(target, blocks_of(target, taps, scale, feedback=feedback, metric=config.metric), rows, turned)


def _scales(target: LayerTarget, feedback: bool, turned: bool) -> tuple[Matrix, npt.NDArray[np.int64] | None]:
    """The unit of each row, [groups, m], in which an error costs the same in all rows; as far as a BatchNorm takes
    it up, or it pays to tell the file."""
    if turned:
        return np.ones(target.W.shape[:2]), None
    per_channel = target.by_channel(-0.5 * np.log2(output_costs(target, feedback)))
    per_channel = per_channel - per_channel.mean()
    if target.absorbed:
        return target.from_channel(np.exp2(per_channel)), None
    gain = 0.5 * np.log2(np.exp2(-2.0 * per_channel).mean()) * target.count
    if gain <= ROW_BITS * per_channel.size or target.file_rows != per_channel.size:
        return np.ones(target.W.shape[:2]), None
    rows = np.rint(per_channel * (1 << ROW_RESOLUTION)).astype(np.int64)
    return target.from_channel(grid.value(rows * (grid.RESOLUTION >> ROW_RESOLUTION))), rows


def file_coder(config: KernelConfig, mode: str) -> synthesis.Coder:
    """The coder of the file in the mode "small" or "fast"."""
    if config.coder == "fixed":
        return "fixed"
    return "fast" if mode == "fast" else "adaptive"


def variants(config: KernelConfig) -> tuple[Variant, ...]:
    """What is to be tried."""
    if config.gains:
        return ("gains",)
    plain: tuple[Variant, ...] = ("signs",) if config.signs else ("plain",) if config.signs is False else \
        ("plain", "signs")
    # Gains of a fixed length are dear: each takes the bits of the rarest.
    return plain if config.gains is False or config.coder == "fixed" else (*plain[:1], "gains")


def propose(target: LayerTarget, price: float, config: KernelConfig, mode: str, *, feedback: bool = True,
            seed: int = 0, memory: dict[str, Book] | None = None) -> Candidate | None:
    """The layer by kernels at lambda = `price`, or None where it has none (1 x 1 convolutions, linear layers without
    `config.vector`, embeddings, very small layers): they are for the scalar tool.

    Deterministic. `mode`: "small" or "fast", which coder the bits are counted for. `memory`: layer name -> codebook
    that an earlier call found for it. Where there is one, the search begins with it and takes a third of the time, for
    values of lambda and targets that are not far from those before; the new one is put in its place.
    """
    layer = prepare(target, config, feedback)
    if layer is None:
        return None
    rng = np.random.default_rng(seed)
    wanted = config.size_of(target.name)
    known = memory.get(target.name) if memory is not None else None
    if known is not None and not _fits(known, layer, wanted, config):
        known = None
    if known is not None:
        found = _retrain(layer.blocks, known, price, wanted, config, rng)
    else:
        found = [trained for variant in variants(config)
                 for trained in train(layer.blocks, variant, price, wanted, config, rng)]
    found.sort(key=lambda trained: objective(trained, layer.blocks, price, config))
    finals = [Final(layer, trained.book, price, config, mode, feedback) for trained in found[:FINALISTS]]
    first, more = PASSES if known is None else (PASSES[0], PASSES[0])
    for final in finals:
        final.improve(first)
    best = min(finals, key=Final.cost)
    best.improve(more)
    if memory is not None:
        memory[target.name] = best.book
    return best.candidate()


def train(blocks: Blocks, variant: Variant, price: float, wanted: int | None, config: KernelConfig,
           rng: np.random.Generator) -> list[Trained]:
    """The codebook of the wanted size, or two of the sizes with the least J: sizes grow until J has risen twice."""
    norm = 1.25 * float(np.sqrt(6.0 * price / np.log(2.0)))  # of a gain's step, at high rate
    paid = 0.0 if config.coder == "fixed" else price  # all indexes of one length
    found: list[Trained] = []
    words = np.zeros((0, blocks.taps))
    book: Book | None = None
    sizes = [size for size in SIZES if size * FEWEST <= 2 * blocks.count or size == SIZES[0]]
    for size in sizes if wanted is None else [size for size in sizes if size < wanted] + [wanted]:
        words = kmeans.seed(blocks, variant, min(size, blocks.count), words, norm, rng)
        book = _grown(book, words, variant)
        last = size == wanted
        found.append(kmeans.lloyd(blocks, book, paid, 12 if last else 4, rng, keep=wanted is not None))
        book, words = found[-1].book, found[-1].book.words
        costs = [objective(trained, blocks, price, config) for trained in found]
        if wanted is None and len(costs) > 2 and min(costs[-2:]) > min(costs):
            break
    if wanted is not None:
        return found[-1:]
    order = np.argsort(costs, kind="stable")[:FINALISTS]
    return [kmeans.lloyd(blocks, found[i].book, paid, 4, rng) for i in order]


def _fits(known: Book, layer: Layer, wanted: int | None, config: KernelConfig) -> bool:
    """Whether a codebook can be the start for this layer with these options."""
    return known.words.shape[1] == layer.blocks.taps and known.variant in variants(config) and \
        (wanted is None or known.size == min(wanted, layer.blocks.count))


def _retrain(blocks: Blocks, known: Book, price: float, wanted: int | None, config: KernelConfig,
             rng: np.random.Generator) -> list[Trained]:
    """A known codebook at another lambda, and where its size is free, twice as large and without its rarer half."""
    paid = 0.0 if config.coder == "fixed" else price
    found = [kmeans.lloyd(blocks, known, paid, 4, rng, keep=wanted is not None)]
    if wanted is not None:
        return found
    norm = 1.25 * float(np.sqrt(6.0 * price / np.log(2.0)))
    words = kmeans.seed(blocks, known.variant, min(2 * known.size, blocks.count), known.words, norm, rng)
    if len(words) * FEWEST <= 4 * blocks.count:
        found.append(kmeans.lloyd(blocks, _grown(known, words, known.variant), paid, 4, rng))
    if known.size > SIZES[0]:
        kept = np.sort(np.argsort(known.bits, kind="stable")[: (known.size + 1) // 2])
        less = replace(known, words=known.words[kept], bits=known.bits[kept])
        found.append(kmeans.lloyd(blocks, less, paid, 4, rng))
    return found


def _grown(book: Book | None, words: Matrix, variant: Variant) -> Book:
    fresh = kmeans.start(variant, words)
    if book is None:
        return fresh
    bits = np.concatenate([book.bits, np.full(len(words) - book.size, float(np.median(book.bits)))])
    return replace(fresh, bits=bits, gain_bits=book.gain_bits)


def objective(trained: Trained, blocks: Blocks, price: float, config: KernelConfig) -> float:
    side = trained.book.words.size * VALUE_COST
    bits = trained.bits
    if config.coder == "fixed":
        size, gains = trained.book.size, trained.book.high - trained.book.low + 1
        bits = float(blocks.count * (np.ceil(np.log2(size)) + np.ceil(np.log2(gains))))
        side = trained.book.words.size * float(config.value_bits or VALUE_COST)
    return trained.distortion + price * (bits + side)


# ---- from a trained codebook to integers -----------------------------------------------------------------

class Final:
    """A layer with a codebook on its way to integers: passes that round the values, choose indexes with feedback, and
    fit the codebook to them; the best of them counts, with its `book`. Indexes are always for the rounded values."""

    def __init__(self, layer: Layer, book: Book, price: float, config: KernelConfig, mode: str, feedback: bool) -> None:
        self.layer, self.price, self.config, self.mode, self.feedback = layer, price, config, mode, feedback
        self._paid = 0.0 if config.coder == "fixed" else RDO * price
        self._chosen = choose(layer.blocks, book, self._paid, feedback)
        self._book = kmeans.learnt(book, self._chosen)[0]
        self.book = self._book
        self._best: Candidate | None = None
        self._settled = False

    def improve(self, passes: int) -> None:
        """So many passes more, or fewer where nothing changes any longer."""
        layer, config = self.layer, self.config
        for _ in range(passes):
            if self._settled:
                return
            values, step = round_values(layer.blocks, self._book, self._chosen, self.price, config)
            exact = replace(self._book, words=np.asarray(values * float(grid.value(step)), dtype=np.float64))
            self._chosen = choose(layer.blocks, exact, self._paid, self.feedback)
            made = _candidate(layer, exact, values, step, self._chosen, config, self.mode)
            self._settled = self._best is not None and made.distortion == self._best.distortion
            if self._best is None or made.cost(self.price) < self._best.cost(self.price):
                self._best, self.book = made, kmeans.learnt(exact, self._chosen)[0]
            words = refit([Fitted(layer.target, layer.blocks, self._chosen)], exact.words)
            self._settled |= words is exact.words and self._best is not made
            self._book = replace(kmeans.learnt(exact, self._chosen)[0], words=words)

    def candidate(self) -> Candidate:
        """The best so far; after `improve`."""
        assert self._best is not None
        return self._best

    def cost(self) -> float:
        """Its J."""
        return self.candidate().cost(self.price)


def round_values(blocks: Blocks, book: Book, chosen: Chosen, price: float,
                 config: KernelConfig) -> tuple[npt.NDArray[np.int32], int]:
    """Values on a grid (int32 [k, t], step index) with the least J = D + lambda R."""
    metric, _ = kmeans.normal_equations(blocks, chosen, book.size)
    used = chosen.counts(book.size) > 0
    limit = (1 << ((config.value_bits or 12) - 1)) - 1
    largest = float(np.abs(book.words[used]).max(initial=0.0)) if used.any() else 0.0
    if not largest > 0:
        return np.zeros(book.words.shape, np.int32), 0
    finest = int(np.ceil(np.log2(largest / (limit + 0.5)) * grid.RESOLUTION))
    best: tuple[float, npt.NDArray[np.int32], int] | None = None
    coarsest = int(np.log2(largest / 2.0) * grid.RESOLUTION)
    for wanted in range(finest, max(coarsest, finest) + 1, 4):
        index = int(np.clip(wanted, -grid.MAX_INDEX, grid.MAX_INDEX))
        step = float(grid.value(index))
        values = np.clip(np.rint(book.words / step), -limit - 1, limit).astype(np.int32)
        error = values * step - book.words
        lost = float(np.einsum("ks,kst,kt->", error, metric, error))
        bits = value_bits(values[used], config)
        if best is None or lost + price * bits < best[0]:
            best = lost + price * bits, values, index
    assert best is not None
    return best[1], best[2]


def value_bits(values: npt.NDArray[np.int32], config: KernelConfig) -> float:
    if config.coder == "fixed":
        reach = max(int(values.max()), -int(values.min()) - 1, 0)
        return float(values.size * (1 + reach.bit_length()))
    return kmeans.ideal_bits(np.bincount((values - values.min()).ravel()).astype(np.float64)) + 2.0 * np.ptp(values)


def _candidate(layer: Layer, book: Book, values: npt.NDArray[np.int32], step: int, chosen: Chosen,
               config: KernelConfig, mode: str) -> Candidate:
    target = layer.target
    restored = layer.blocks.restore(chosen.kernels(book.words))
    index = np.concatenate([part.T for part in chosen.index])
    gain = None if book.variant == "plain" else np.ascontiguousarray(np.concatenate([part.T for part in chosen.gain]))
    code = KernelCode(values, np.ascontiguousarray(index), step, gain, layer.rows, ROW_RESOLUTION)
    (code,) = compact([code])
    payload, weight_bytes = synthesis.encode_counted([code], [target.shape], file_coder(config, mode),
                                                     config.value_bits)
    side = min(8.0 * (len(payload) - weight_bytes), value_bits(code.values, config) + 60.0)
    lost = distortion(target, restored)
    if layer.turned:
        restored = np.ascontiguousarray(restored.transpose(0, 2, 1))
    extra = {"plain": "", "signs": ", signs", "gains": ", gains"}[book.variant]
    return Candidate("kernels", code, restored, lost, 8.0 * weight_bytes + side,
                     f"{len(code.values)} kernels of {layer.blocks.taps}{extra}", side)
