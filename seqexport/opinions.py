"""Third opinions, which tell whether onnxruntime or torch is off: torch in float64, and onnx's own evaluator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seqexport.peers import RowsAlone, evaluator
from seqexport.reports import TOLERANCE, Outcome
from seqexport.sources import first_line
from seqexport.specs import TensorSpec
from seqexport.verification import difference

Arrays = Mapping[str, np.ndarray]


class Exact:
    """A module in float64. reason: why it has no opinion, where it has none."""

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec], output_names: Sequence[str]) -> None:
        self.inputs, self.output_names, self.reason = inputs, output_names, ""
        try:
            self.module: nn.Module | None = copy.deepcopy(module).double().eval()
        except Exception as error:  # a user's module may hold what can't be copied
            self.module, self.reason = None, first_line(error)

    def run(self, feeds: Arrays) -> dict[str, np.ndarray] | None:
        """{input name: array} → {output name: array}, floats in float64; None where the module can't run so."""
        if self.module is None:
            return None
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for what forward makes itself, such as a zero state
        try:
            with torch.inference_mode():
                outputs = self.module(*self._tensors(feeds))
        except Exception as error:  # forward may fix a dtype
            self.module, self.reason = None, first_line(error)
            return None
        finally:
            torch.set_default_dtype(before)
        return dict(zip(self.output_names, (output.numpy() for output in outputs), strict=True))

    def _tensors(self, feeds: Arrays) -> list[torch.Tensor]:
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            if spec.name in feeds:
                pairs = zip(spec.dims, feeds[spec.name].shape, strict=True)
                sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
        arrays = [feeds[spec.name] if spec.name in feeds else spec.filled(sizes) for spec in self.inputs]
        tensors = [torch.tensor(np.asarray(array)) for array in arrays]
        return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def weighed(outcome: Outcome, exact: Exact, feeds: Arrays, expected: Arrays) -> Outcome:
    """The outcome, explained where it is a little beyond the tolerance and torch, which gave `expected`, is as far from
    its own float64."""
    if outcome.passed(TOLERANCE) or not replace(outcome, explained=True).passed(TOLERANCE):
        return outcome
    found = exact.run(feeds)
    own = 0.0 if found is None else distance(found, expected)
    note = f"torch itself is {own:.1e} from its float64"
    return replace(outcome, explained=2 * own >= max(outcome.errors.values()), notes=(*outcome.notes, note))


class Reference:
    """onnx's reference evaluator on a file. It is slow, and reads every row to its end whatever lengths say: rows with
    lengths are given one by one, without their padding."""

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        declared: Mapping[str, Sequence[int | str | None]],
    ) -> None:
        self.inputs, self.declared, self.reason = inputs, declared, ""
        self.rows = RowsAlone.of(inputs)
        try:
            self.session: Any = evaluator(path)
        except Exception as error:  # operators that it has not
            self.session, self.reason = None, first_line(error)

    def run(self, feeds: Arrays) -> Iterator[tuple[dict[str, np.ndarray], Callable[[np.ndarray], np.ndarray]]]:
        """Outputs, and what cuts a whole batch's output to the rows and steps that they are of."""
        if self.session is None:
            return
        try:
            if self.rows is None:
                yield self._outputs(feeds), lambda whole: whole
                return
            for row, length in enumerate(feeds[self.rows.lengths.name]):
                for name, value in self._outputs(self.rows.cut(feeds, row)).items():
                    yield {name: value}, self._cutter(name, row, int(length))
        except Exception as error:  # an operator, or a form of one, that it has not
            self.session, self.reason = None, first_line(error)

    def _outputs(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.declared, self.session.run(list(self.declared), dict(feeds)), strict=True))

    def _cutter(self, name: str, row: int, length: int) -> Callable[[np.ndarray], np.ndarray]:
        assert self.rows is not None
        lengths = self.rows.lengths
        batch, along, declared = lengths.dims[0], str(lengths.high), list(self.declared[name])

        def cut(whole: np.ndarray) -> np.ndarray:
            if batch in declared:
                whole = np.take(whole, [row], declared.index(batch))
            return np.take(whole, range(length), declared.index(along)) if along in declared else whole

        return cut


def finite(outputs: Arrays, expected: Arrays) -> Arrays:
    """Outputs in which what is not finite in the same way in both is left out as zero."""
    cleaned = {}
    for name, value in outputs.items():
        other = expected.get(name)
        if other is not None and other.shape == value.shape and value.dtype.kind == "f":
            same = ~np.isfinite(other)
            if np.array_equal(value[same], other[same], equal_nan=True):
                value = np.where(same, 0, value).astype(value.dtype)
        cleaned[name] = value
    return cleaned


def distance(exact: Arrays, found: Arrays) -> float:
    """The worst error of the float outputs; those of another shape, decisions and all, are not compared."""
    errors = []
    for name, value in exact.items():
        other = found.get(name)
        if value.dtype.kind != "f":
            continue
        if other is None or other.shape != value.shape:
            return math.inf
        pair = finite({name: value}, {name: value}), finite({name: other.astype(np.float64)}, {name: value})
        errors.append(difference(pair[0][name], pair[1][name])[0])
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)
