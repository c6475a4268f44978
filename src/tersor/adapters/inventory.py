"""What a model consists of, as plain NumPy data: the only thing that the encoder ever sees of a model.

No torch here: a safetensors file gives the same `Inventory` as an nn.Module, with fewer facts in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["linear", "conv", "conv_transposed", "embedding", "matrix"]
Array = npt.NDArray[np.generic]

INPUT = -1
"""The call number that stands for the model's (first) input tensor in `Graph.residual`."""


@dataclass(frozen=True)
class WeightLayer:
    """One weight tensor with at least two axes, and how to read it as a matrix.

    `name` is the state-dict key of the weight, `bias` that of the layer's own bias. `groups` is 1
    except for grouped convolutions. `kind` "matrix" is a tensor of an unknown module: its rows are
    axis 0. See `tersor.synthesis.views` for the matrix view of each kind.
    """

    name: str
    kind: Kind
    groups: int = 1
    bias: str | None = None


@dataclass(frozen=True)
class BatchNormLayer:
    """A BatchNorm with affine parameters and running statistics: four tensors [C], two degrees of freedom.

    All but `prefix` and `eps` are state-dict keys. None of the four is shared with another module.
    """

    prefix: str
    weight: str
    bias: str
    running_mean: str
    running_var: str
    eps: float

    @property
    def names(self) -> tuple[str, str, str, str]:
        """weight, bias, running_mean, running_var: the order of the file's BatchNorm payload."""
        return self.weight, self.bias, self.running_mean, self.running_var


@dataclass(frozen=True)
class Inventory:
    """All tensors of a model and what is known about them.

    * `tensors`: name -> array, in state-dict order, without aliases. The arrays may share memory with
      the model: read only. bfloat16 and float8 are `ml_dtypes` dtypes.
    * `names`: all names in state-dict order, aliases included.
    * `aliases`: name -> the earlier name of the same values, which are stored once. `tied`: they are the very
      same memory (tied weights) and are to be tied again; else only the values are known to be equal.
    * `layers`: weights that coding tools may quantise, in state-dict order, each once.
    * `batchnorms`: BatchNorms that may be re-parametrised.
    * `parameters`: the denominator of bits/weight.
    * `exact`: names that must be coded without loss: tensors that overlap others in memory without being
      equal to them (restoring one would change the other), and buffers of which nothing is known (masks,
      tables, variances: anything may depend on their last bit).
    * `metadata`: free text pairs that travel with the model.
    * `format`, `source`: the format of the file that the model was, and all of that file but the tensors
      (`tersor.adapters.skeleton`), both empty where there is nothing to keep.
    """

    tensors: dict[str, Array]
    names: list[str]
    aliases: dict[str, str]
    layers: list[WeightLayer]
    batchnorms: list[BatchNormLayer]
    parameters: int
    metadata: dict[str, str] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    tied: bool = False
    format: str = ""
    source: bytes = b""


@dataclass(frozen=True)
class Graph:
    """What one traced forward tells about the ways between layers; see `tersor.adapters.trace`.

    * `absorb`: weight name -> prefix of the BatchNorm that alone consumes the layer's output, so that a
      scale and a shift per output channel of the layer cost nothing.
    * `residual`: BatchNorm prefix (or weight name, where no BatchNorm absorbs the layer) -> number of the
      call that made the *other* operand of the addition which alone consumes this output, where that
      operand is there before the layer runs, or can be made of what is there without any parameters
      (`tersor.adapters.lockstep.Recipe`); `INPUT` is the model's input.
    * `last_use`: number of a residual operand -> number of the last such addition (then it can be freed).
    * `order`: weight names in the order of their first use.
    * `calls`: how many tensor-producing calls the forward made: a later pass must count as many.
    * `reason`: why the graph is empty, when tracing failed.
    """

    absorb: dict[str, str] = field(default_factory=dict)
    residual: dict[str, int] = field(default_factory=dict)
    last_use: dict[int, int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    calls: int = 0
    reason: str | None = None
