"""A model called again and again with its state carried on: what a service does with live input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqexport.errors import InputError, UnsupportedError
from seqexport.runtimes import OnnxRuntime, Runtime
from seqexport.specs import check_feeds

if TYPE_CHECKING:
    from onnxruntime import IOBinding


class Stream:
    """Calls of a runtime, each going on from the state that the one before left: `stream({"x": x})` → outputs.

    In onnxruntime nothing is allocated from the second call on: inputs are copied into one buffer, and the state goes
    to and fro between two. So the arrays that a call gives are written over by the next one; copy what is to be kept.

    Raises UnsupportedError for a model that does not say which outputs are the next call's state.
    """

    def __init__(self, runtime: Runtime) -> None:
        states: Mapping[str, str] = runtime.metadata.get("state_map") or {}
        names = {spec.name for spec in runtime.inputs}
        if not states or not set(states) <= names or not set(states.values()) <= set(runtime.output_names):
            raise UnsupportedError(
                "The model has no state map, so there is no state to carry on: export it with its state, or give "
                "--state-map for a class of your own."
            )
        self.runtime = runtime
        self._states = dict(states)
        self._inputs = tuple(spec for spec in runtime.inputs if spec.name not in states)
        self._state: dict[str, np.ndarray] = {}
        self._bound: _Bound | None = None

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Input name → the state to go on from, a copy; empty before the first call."""
        now = self._bound.state() if self._bound else self._state
        return {name: array.copy() for name, array in now.items()}

    def reset(self, state: Mapping[str, np.ndarray] | None = None) -> None:
        """Go on from this state, or from none."""
        self._bound = None
        self._state = {name: np.array(array) for name, array in (state or {}).items()}

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{input name: array} without the state → {output name: array} without the state.

        Raises InputError for values that do not fit, among them another batch than the state's.
        """
        checked = check_feeds(self._inputs, feeds)
        if self._bound and self._bound.fits(checked):
            return self._bound.run(checked)
        return self._run_anew(checked)

    def _run_anew(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A call of new shapes: an ordinary one, after which the buffers are laid out for the next."""
        outputs = self.runtime.run({**feeds, **self.state})
        self._state = {name: outputs[output] for name, output in self._states.items()}
        shown = {name: array for name, array in outputs.items() if name not in self._states.values()}
        complete = feeds.keys() == {spec.name for spec in self._inputs}
        if isinstance(self.runtime, OnnxRuntime) and complete:
            self._bound = _Bound(self.runtime, feeds, self._state, self._states, shown)
        else:
            self._bound = None
        return shown


@dataclass(frozen=True)
class _Buffer:
    """An array, and the same memory as onnxruntime knows it."""

    array: np.ndarray
    value: Any

    @classmethod
    def like(cls, array: np.ndarray) -> _Buffer:
        from onnxruntime import OrtValue

        own = np.array(array, order="C")
        return cls(own, OrtValue.ortvalue_from_numpy(own))


class _Bound:
    """A session bound to buffers of fixed shapes, the states twice: read from one, written to the other, in turn."""

    def __init__(
        self,
        runtime: OnnxRuntime,
        feeds: Mapping[str, np.ndarray],
        state: Mapping[str, np.ndarray],
        states: Mapping[str, str],
        shown: Mapping[str, np.ndarray],
    ) -> None:
        self._session = runtime.session
        self._feeds = {name: _Buffer.like(array) for name, array in feeds.items()}
        self._shown = {name: _Buffer.like(array) for name, array in shown.items()}
        self._sides = [{name: _Buffer.like(array) for name, array in state.items()} for _ in range(2)]
        self._bindings = [self._binding(states, side) for side in range(2)]
        self._now = 0
        self._outputs = {name: buffer.array for name, buffer in self._shown.items()}

    def _binding(self, states: Mapping[str, str], side: int) -> IOBinding:
        binding = self._session.io_binding()
        for name, buffer in (*self._feeds.items(), *self._sides[side].items()):
            binding.bind_ortvalue_input(name, buffer.value)
        for name, buffer in self._shown.items():
            binding.bind_ortvalue_output(name, buffer.value)
        for name, output in states.items():
            binding.bind_ortvalue_output(output, self._sides[1 - side][name].value)
        return binding

    def fits(self, feeds: Mapping[str, np.ndarray]) -> bool:
        return feeds.keys() == self._feeds.keys() and all(
            array.shape == self._feeds[name].array.shape for name, array in feeds.items()
        )

    def state(self) -> dict[str, np.ndarray]:
        return {name: buffer.array for name, buffer in self._sides[self._now].items()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            np.copyto(self._feeds[name].array, array)
        try:
            self._session.run_with_iobinding(self._bindings[self._now])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise InputError(f"onnxruntime could not run the step: {str(error).splitlines()[0]}") from error
        self._now = 1 - self._now
        return self._outputs
