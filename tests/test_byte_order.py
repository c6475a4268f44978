"""Files mean the same on machines of either byte order, by construction: whatever reads numbers from bytes says which
order they are in. The native kernel was also run on emulated machines (`make -C fuzz elsewhere`): x86-64, AArch64 and
the big-endian s390x decode all kept inputs to the same numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tersor
from tersor.bitstream.dtypes import NUMPY, from_bytes, to_bytes

SOURCE = Path(tersor.__file__).parent
NATIVE = Path(__file__).parent.parent / "native"
MODULES = [*sorted((SOURCE / "bitstream").rglob("*.py")), *sorted((SOURCE / "synthesis").glob("*.py")),
           SOURCE / "decoder.py"]
ORDER = re.compile(r"['\"]<|uint8|newbyteorder\('<'\)")


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions, and the module itself for what stands outside of them."""
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def says_order(call: ast.Call, where: ast.AST) -> bool:
    """Whether the element type of a `frombuffer` has a byte order, in the call or where its name is assigned."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    kind = keywords.get("dtype", call.args[1] if len(call.args) > 1 else None)
    if kind is None:
        return False
    if isinstance(kind, ast.Name):
        values = [ast.unparse(node.value) for node in ast.walk(where) if isinstance(node, ast.Assign)
                  and any(isinstance(target, ast.Name) and target.id == kind.id for target in node.targets)]
        return bool(values) and all(ORDER.search(value) for value in values)
    return ORDER.search(ast.unparse(kind)) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_bytes_are_read_in_a_stated_order(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for where in functions(tree):
        for call in (node for node in ast.walk(where) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if name == "frombuffer" and where is not tree:
                assert says_order(call, where), ast.unparse(call)
            if name in ("from_bytes", "to_bytes") and ast.unparse(call.func).startswith("int."):
                assert ast.unparse(call.args[1]) in ("'little'", "'big'"), ast.unparse(call)
            if name in ("Struct", "pack", "unpack", "unpack_from") and ast.unparse(call.func).startswith("struct."):
                assert ast.unparse(call.args[0]).startswith("'<"), ast.unparse(call)


@pytest.mark.parametrize("path", sorted(NATIVE.glob("*.*")), ids=lambda path: path.name)
def test_native_code_reads_numbers_byte_by_byte(path):
    """No stream is looked at as wider numbers; SIMD code, which is for little-endian machines alone, may."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"reinterpret_cast<(const )?(u?int(16|32|64)_t|float|double) ?\*>", text)


@pytest.mark.parametrize("name", sorted(NUMPY))
def test_elements_are_little_endian_from_arrays_of_either_order(name):
    kind = NUMPY[name]
    array = np.arange(6).astype(kind).reshape(2, 3)
    expected = array.astype(kind.newbyteorder("<")).tobytes()
    assert to_bytes(array.astype(kind.newbyteorder(">"))) == to_bytes(array) == expected
    restored = from_bytes(expected, name, (2, 3))
    assert restored.dtype == kind and np.array_equal(restored, array)
