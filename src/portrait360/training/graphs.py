"""The device's part of a training step as a CUDA graph: one call starts its thousands of small kernels.

A GPU computes a step of `cpu-64` in less time than Python takes to ask for it. `RecordedSteps` stands in for
`training.gradients.compute`, its readable twin: it computes the first steps as that does, records one, and from then on
replays it with the numbers of the day. How wide pictures are blurred and how large they are rendered is part of a
recording, so while that changes nothing is recorded.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from portrait360.training.gradients import Batch, Given, Outcome, TrainingState, compute
from portrait360.training.schedules import Moment

WARM_UP = 3
"""Steps of a kind that are computed before one is recorded: libraries choose their algorithms and kernels compile."""

P = TypeVar("P", Batch, Given)
Key = tuple[Moment, tuple[torch.Size, ...]]
Record = Callable[[Callable[[], Outcome]], tuple[Outcome, Callable[[], None]]]
"""Records what a function does on a device, without results yet; returns what it returned, and what computes that anew
in the same tensors."""


def record_cuda_graph(run: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
    """A `Record` for NVIDIA GPUs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = run()
    return outcome, graph.replay


@dataclass(frozen=True)
class _Recording:
    inputs: list[Tensor]
    outcome: Outcome
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    replay: Callable[[], None]


class RecordedSteps:
    """Replays recordings of `compute`; what it returns, and the gradients, hold until the next step.

    Where a step cannot be recorded (it waits for the device, as without Triton's kernels), steps are computed, after a
    warning.
    """

    def __init__(self, record: Record = record_cuda_graph) -> None:
        self._record = record
        self._recordings: dict[Key, _Recording] = {}
        self._computed: Counter[Key] = Counter()
        self._fails = False
        self.replayed = 0
        """Steps that were replayed so far."""

    def __call__(self, state: TrainingState, batch: Batch, given: Given) -> Outcome:
        inputs = _tensors(batch, given)
        key = given.moment, tuple(value.shape for value in inputs)
        self._forget_others(key)
        if key not in self._recordings:
            self._computed[key] += 1
            if self._fails or self._computed[key] <= WARM_UP:
                return compute(state, batch, given)
            try:
                self._recordings[key] = self._recorded(state, batch, given)
            except RuntimeError as error:
                warnings.warn(f"steps cannot be recorded on this GPU ({error}); they take longer.", stacklevel=2)
                self._fails = True
                for module in (state.generator, state.discriminator):
                    module.zero_grad(set_to_none=True)
                return compute(state, batch, given)
        recording = self._recordings[key]
        torch._foreach_copy_(recording.inputs, inputs)  # pyright: ignore[reportPrivateImportUsage]
        recording.replay()
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        self.replayed += 1
        return recording.outcome

    def _recorded(self, state: TrainingState, batch: Batch, given: Given) -> _Recording:
        batch, given = _copied(batch), _copied(given)
        outcome, replay = self._record(lambda: compute(state, batch, given))
        parameters = [*state.generator.parameters(), *state.discriminator.parameters()]
        return _Recording(_tensors(batch, given), outcome, [(p, p.grad) for p in parameters], replay)

    def _forget_others(self, key: Key) -> None:
        """Drop the recordings of another time: they do not come back, and hold much memory."""
        moment, shapes = key
        times = {(dataclasses.replace(moment, penalties=penalties), shapes) for penalties in (False, True)}
        for found in (self._recordings, self._computed):
            for old in [k for k in found if k not in times]:
                del found[old]


def record_steps(state: TrainingState, device: torch.device) -> None:
    """Have steps on a GPU recorded where the recipe says so."""
    if state.config.cuda_graphs and device.type == "cuda":
        state.recorded = RecordedSteps()


def _tensors(batch: Batch, given: Given) -> list[Tensor]:
    """What differs from step to step."""
    values = [getattr(part, field.name) for part in (batch, given) for field in dataclasses.fields(part)]
    return [value for value in values if isinstance(value, Tensor)]


def _copied(part: P) -> P:
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **{k: v.clone() for k, v in values.items() if isinstance(v, Tensor)})
