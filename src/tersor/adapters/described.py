"""A network that says itself what its weights are: one that was built from a graph and not of torch's layers.

ONNX models and exported programs have operators, not modules, so `inventory_of_module` cannot tell a convolution by
the type of the module that holds its weight.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .inventory import BatchNormLayer, WeightLayer


class Described(nn.Module):
    """Base of networks with their own inventory.

    * `order`: the names of all parameters and buffers in the order in which a file is to have them.
    * `weight_layers`, `batchnorm_layers`: as in `tersor.adapters.inventory.Inventory`; names are state-dict keys.
    * `metadata`, `source_format`, `source`: what travels with the tensors; see `Inventory`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.weight_layers: list[WeightLayer] = []
        self.batchnorm_layers: list[BatchNormLayer] = []
        self.metadata: dict[str, str] = {}
        self.source_format = ""
        self.source = b""

    def hold(self, name: str, tensor: Tensor, parameter: bool) -> str:
        """Register a tensor under its dotted name, or under one like it where modules cannot have that; returns it."""
        base, number = name, 0
        while not self._try_to_hold(base, tensor, parameter):
            number += 1
            base = f"{name.replace('.', '_') or 'tensor'}_{number}"
        self.order.append(base)
        return base

    def _try_to_hold(self, name: str, tensor: Tensor, parameter: bool) -> bool:
        *path, leaf = name.split(".")
        if not all((*path, leaf)):
            return False
        owner: nn.Module = self
        for part in path:
            if part in owner._modules:
                child = owner._modules[part]
                assert child is not None
                owner = child
            elif hasattr(owner, part):
                return False
            else:
                fresh = nn.Module()
                owner.add_module(part, fresh)
                owner = fresh
        if hasattr(owner, leaf):
            return False
        if parameter:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            owner.register_buffer(leaf, tensor)
        return True


def in_order(names: Iterable[str], order: list[str]) -> list[str]:
    """`names` as `order` has them; those it lacks last.

    >>> in_order(["a", "b", "c"], ["c", "a"])
    ['c', 'a', 'b']
    """
    place = {name: i for i, name in enumerate(order)}
    return sorted(names, key=lambda name: place.get(name, len(place)))
