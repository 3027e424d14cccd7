"""Several training processes as one: each takes its share of every batch, gradients are averaged.

Started by `torchrun --nproc-per-node N -m portrait360 train ...`; gloo on CPUs, nccl on GPUs. Every process holds the
same networks and optimisers; only the first one writes files. On a CPU, N processes of one thread each train faster
than one process of N threads, because they wait for each other once per step instead of once per operation.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from portrait360.runtime.threads import settle_threads
from portrait360.types import InputError


@dataclass(frozen=True)
class Ranks:
    """This process's place among all. One process: every method returns its input."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """This process's part of a batch.

        Raises:
            InputError: the processes do not divide the batch.
        """
        if batch % self.size:
            raise InputError(
                f"{self.size} processes cannot share a batch of {batch}.",
                "Choose a number that divides the batch.",
            )
        return batch // self.size

    @torch.no_grad()
    def average_gradients(self, modules: Iterable[nn.Module]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for g in gradients:
            g.copy_(flat[offset : offset + g.numel()].view_as(g))
            offset += g.numel()

    @torch.no_grad()
    def average(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means of named numbers; the names must be the same in all processes."""
        if self.size == 1:
            return values
        stacked = torch.stack([v.float() for v in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind(), strict=True))

    @torch.no_grad()
    def average_(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes below each other, in their order; each must have equally many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def random_states(self) -> Tensor:
        """State of torch's CPU generator of every process, one row each (uint8)."""
        return self.gather(torch.get_rng_state()[None])

    def wait(self) -> None:
        """Return when all processes are here, so that none leaves while another still talks to it."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1:
            dist.destroy_process_group()


def own_gpu(device: torch.device) -> torch.device:
    """Of "the GPU", the one that is this process's own among those that torchrun started on this machine."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))


def join(device: torch.device) -> Ranks:
    """Read torchrun's environment, and give this process its share of the threads; without it, it is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    if device.type == "cuda":
        settle_threads(1)  # the CPU has small sums left, for which threads wait for each other longer than one takes
    elif size <= 1:
        settle_threads()
    else:
        settle_threads(max(1, (os.cpu_count() or 1) // local))
    if size <= 1:
        return Ranks()
    _import_first()
    store, rank, size = next(iter(rendezvous("env://")))
    # torchrun may keep one store over its restarts, in which the addresses of processes that died still stand
    store = PrefixStore(f"start-{_restarts()}", store)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # numbers of the CPU are averaged too
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return Ranks(rank, size)


def _import_first() -> None:
    """Import what would keep the process group alive if it were imported later.

    Functions of `torch.distributed.nn` have the group that there is when they are defined as a default argument. An
    optimiser's first step imports them; the group's threads then outlive `Ranks.leave`, and about one process of 300
    aborted with "terminate called without an active exception" when the interpreter ended under them.
    """
    importlib.import_module("torch.distributed.nn")


def is_first_process() -> bool:
    """Whether this is the only process, or the first one of torchrun's."""
    return int(os.environ.get("RANK", "0")) == 0


def relaunched() -> bool:
    """Whether torchrun started this process again after one of the run's processes had failed (`--max-restarts`)."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
