"""A pretended GPU: tensors that say they are on another device and refuse to meet tensors of the CPU.

What a real GPU refuses (operands on different devices, `.numpy()` of its tensors) fails here too, so that tests find
forgotten `.to(device)` without one. Values are those of the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "fakegpu"
_LIBRARY = torch.library.Library("aten", "IMPL")
aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_LISTS_OF_INDICES = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}


class GpuTensor(Tensor):
    """A CPU tensor behind a shell that claims to be on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"GpuTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
    on_gpu = [isinstance(v, GpuTensor) for v in leaves]
    device = kwargs.get("device")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    wanted = any(on_gpu) if device is None else torch.device(device).type == NAME
    if any(on_gpu) and func not in _COPIES and func not in _LISTS_OF_INDICES:
        strangers = [v for v, gpu in zip(leaves, on_gpu, strict=True) if not gpu and v.dim() > 0]
        if strangers:
            raise RuntimeError(f"{func}: expected all tensors on the GPU, but {strangers[0].shape} is on the CPU")
    if func is aten.copy_.default:
        wanted = isinstance(args[0], GpuTensor)
    if func in _LISTS_OF_INDICES and not isinstance(args[0], GpuTensor) and any(on_gpu):
        raise RuntimeError(f"{func}: indices on the GPU for a tensor on the CPU")
    inner_args, inner_kwargs = tree_map(lambda v: v.inner if isinstance(v, GpuTensor) else v, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and not func._schema.name.endswith(("_out", ".out")):
        first = args[0]
        changed = func._schema.arguments[0].alias_info
        if isinstance(first, Tensor) and changed is not None and changed.is_write and isinstance(out, Tensor):
            return first
    if not wanted:
        return out
    return tree_map(lambda v: GpuTensor(v) if isinstance(v, Tensor) else v, out)


class _Factories(TorchDispatchMode):
    """Tensors that are made on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _made(name: str, *args: Any, **kwargs: Any) -> Any:
    """Tensors that torch makes where no mode can see it."""
    packet, _, overload = name.partition(".")
    return _run(getattr(getattr(aten, packet), overload or "default"), args, kwargs)


@lru_cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Module())
    for name in ("empty_strided", "empty.memory_format", "_to_copy", "_copy_from"):
        _LIBRARY.impl(name, partial(_made, name), "PrivateUse1")


@contextlib.contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """While it lasts, the device that it gives is a pretended GPU."""
    _register()
    with torch.autograd.set_multithreading_enabled(False), _Factories():
        yield torch.device(NAME, 0)
