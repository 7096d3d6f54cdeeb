"""Does a size of the example live on in the graph? Found by looking at its integers, and settled by a second example.

The example's sizes occur nowhere among the module's own numbers (seqexport.tracing), so an integer of the graph that is
one of them or a multiple is suspicious: a Reshape's target, a Slice's end, a declared shape. Then the
module is lowered once more with another example, and what differs between the two graphs is what was frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from seqexport.errors import UnsupportedError
from seqexport.sources import line_of_stack

_STACK = "pkg.torch.onnx.stack_trace"  # where torch.onnx keeps the user's stack of a node
_FEW = 16  # elements of a tensor that may be a shape; weights have more
_FAR = 2**31  # beyond it a number means "to the end", as in a Slice


def check_not_frozen(model: ir.Model, sizes: Mapping[str, int], lower_again: Callable[[], ir.Model]) -> None:
    """Raise UnsupportedError, naming the node and the line of the user's code, where a size of the example lives on.

    model: as lowered, not simplified yet. sizes: the example's, by the names of the dims. lower_again: the same module
    lowered with an example of other sizes.
    """
    if not any(_suspicious(number, sizes) for _, _, numbers in _integers(model) for number in numbers):
        return
    mine, other = list(_integers(model)), list(_integers(lower_again()))
    for (node, what, numbers), (_, _, others) in zip(mine, other, strict=False):
        if numbers != others:
            raise UnsupportedError(_said(node, what, numbers, sizes))
    if len(mine) != len(other):
        node, what, numbers = mine[min(len(mine), len(other)) - 1]
        raise UnsupportedError(_said(node, what, numbers, sizes))


def _suspicious(number: int, sizes: Mapping[str, int]) -> bool:
    return 0 < number < _FAR and any(number % size == 0 for size in sizes.values())


def _said(node: ir.Node, what: str, numbers: tuple[int, ...], sizes: Mapping[str, int]) -> str:
    names = [dim for dim, size in sizes.items() if any(_suspicious(number, {dim: size}) for number in numbers)]
    line = line_of_stack(node.metadata_props.get(_STACK, ""))
    place = f"{line}: the" if line else "The"
    return (
        f"{place} node {node.name or node.op_type} ({node.op_type}) keeps the example's size of "
        f"{' and '.join(map(repr, names)) or 'a dim'} in {what} {list(numbers)}, so the file would serve no other: "
        "compute it from the tensor's own shape, or give the dim as a number in the input's spec."
    )


def _integers(model: ir.Model) -> Iterator[tuple[ir.Node, str, tuple[int, ...]]]:
    """Every small tensor or attribute of integers that a node holds or reads, and every shape that it declares."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.producer() is None:
                yield from _of_tensor(node, "its input", value.const_value)
        for name, attribute in node.attributes.items():
            if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
                numbers = attribute.value if isinstance(attribute.value, (list, tuple)) else [attribute.value]
                if len(numbers) <= _FEW:
                    yield node, f"its {name}", tuple(map(int, numbers))
            elif attribute.type == ir.AttributeType.TENSOR:
                yield from _of_tensor(node, f"its {name}", attribute.value)
        for value in node.outputs:
            if value.shape is not None and value.const_value is None:
                yield node, "its declared shape", tuple(dim for dim in value.shape if isinstance(dim, int))


def _of_tensor(node: ir.Node, what: str, tensor: Any) -> Iterator[tuple[ir.Node, str, tuple[int, ...]]]:
    if tensor is not None and tensor.size <= _FEW and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32):
        yield node, what, tuple(int(number) for number in np.ravel(tensor.numpy()))
