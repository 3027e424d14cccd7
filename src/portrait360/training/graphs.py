"""The device's part of a training step as a CUDA graph: one call starts its thousands of small kernels.

A GPU computes a step of `cpu-64` in less time than Python takes to ask for it. `RecordedSteps` stands in for
`training.passes.compute`, its readable twin: it computes the first steps as that does, records one, and from then on
replays it with each step's inputs. The width of the blur and the side of rendered images are part of a recording, so
while they change nothing is recorded.
"""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from portrait360.training.passes import Batch, StepInputs, StepOutputs, TrainingState, compute
from portrait360.training.schedules import ScheduleValues

WARM_UP = 3
"""Steps of a kind that are computed before one is recorded: libraries choose their algorithms and kernels compile."""

P = TypeVar("P", Batch, StepInputs)
Key = tuple[ScheduleValues, tuple[torch.Size, ...]]
Compute = Callable[[], StepOutputs]


@runtime_checkable
class Recorder(Protocol):
    """How a device computes and records what a function does there."""

    def compute(self, run: Compute) -> StepOutputs: ...

    def record(self, run: Compute) -> tuple[StepOutputs, Callable[[], None]]: ...


class CudaGraphs:
    """Computes and records steps on NVIDIA GPUs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

    Both happen on one stream of its own: a parameter's gradient is added up on the stream where the parameter was used
    first, and a recording must not wait for another one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    def compute(self, run: Compute) -> StepOutputs:
        """What `run` returns, computed now."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def record(self, run: Compute) -> tuple[StepOutputs, Callable[[], None]]:
        """What `run` returns, without results yet, and what computes that anew in the same tensors.

        Raises:
            RuntimeError: it cannot be recorded; it can be computed all the same.
        """
        random = torch.cuda.get_rng_state(self._device)
        gc.collect()  # what is left of earlier steps may hold on to their streams
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                outputs = run()
        except RuntimeError:
            self._draw_as_before(random)
            raise
        return outputs, graph.replay

    def _draw_as_before(self, random: Tensor) -> None:
        """A generator that was recorded in vain draws for recordings only; another one takes its place."""
        generator = torch.Generator(self._device)
        generator.set_state(random)
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        torch.cuda.default_generators[index].graphsafe_set_state(generator.graphsafe_get_state())


@dataclass(frozen=True)
class _Recording:
    inputs: list[Tensor]
    outputs: StepOutputs
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    replay: Callable[[], None]


class RecordedSteps:
    """Replays recordings of `compute`; what it returns, and the gradients, hold until the next step.

    Where a step cannot be recorded (it waits for the device, as without Triton's kernels), steps are computed, after a
    warning.
    """

    def __init__(self, device: Recorder) -> None:
        self._device = device
        self._recordings: dict[Key, _Recording] = {}
        self._computed: Counter[Key] = Counter()
        self._fails = False
        self.replayed = 0
        """Steps that were replayed so far."""

    @property
    def kinds(self) -> int:
        """Kinds of steps that are recorded now."""
        return len(self._recordings)

    def __call__(self, state: TrainingState, batch: Batch, inputs: StepInputs) -> StepOutputs:
        tensors = _tensors(batch, inputs)
        key = inputs.schedule, tuple(value.shape for value in tensors)
        self._forget_others(key)

        # Compute until a step of this kind has been recorded
        if key not in self._recordings:
            self._computed[key] += 1
            if self._fails or self._computed[key] <= WARM_UP:
                return self._device.compute(lambda: compute(state, batch, inputs))
            try:
                self._recordings[key] = self._recorded(state, batch, inputs)
            except RuntimeError as error:
                warnings.warn(f"steps cannot be recorded on this GPU ({error}); they take longer.", stacklevel=2)
                self._fails = True
                for module in (state.generator, state.discriminator):
                    module.zero_grad(set_to_none=True)
                return self._device.compute(lambda: compute(state, batch, inputs))

        # Replay the recording with this step's numbers
        recording = self._recordings[key]
        torch._foreach_copy_(recording.inputs, tensors)  # pyright: ignore[reportPrivateImportUsage]
        recording.replay()
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        self.replayed += 1
        return recording.outputs

    def _recorded(self, state: TrainingState, batch: Batch, inputs: StepInputs) -> _Recording:
        batch, inputs = _copied(batch), _copied(inputs)
        outputs, replay = self._device.record(lambda: compute(state, batch, inputs))
        parameters = [*state.generator.parameters(), *state.discriminator.parameters()]
        return _Recording(_tensors(batch, inputs), outputs, [(p, p.grad) for p in parameters], replay)

    def _forget_others(self, key: Key) -> None:
        """Drop the recordings of other schedule values: they do not come back, and hold much memory."""
        schedule, shapes = key
        times = {(dataclasses.replace(schedule, penalties=penalties), shapes) for penalties in (False, True)}
        for found in (self._recordings, self._computed):
            for old in [k for k in found if k not in times]:
                del found[old]


def record_steps(state: TrainingState, device: torch.device) -> None:
    """Have steps on a GPU recorded where the recipe says so."""
    if state.config.cuda_graphs and device.type == "cuda":
        state.recorded = RecordedSteps(CudaGraphs(device))


def _tensors(batch: Batch, inputs: StepInputs) -> list[Tensor]:
    """What differs from step to step."""
    values = [getattr(part, field.name) for part in (batch, inputs) for field in dataclasses.fields(part)]
    return [value for value in values if isinstance(value, Tensor)]


def _copied(part: P) -> P:
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **{k: v.clone() for k, v in values.items() if isinstance(v, Tensor)})
