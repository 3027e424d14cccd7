"""Eight float32 lanes as a numba value.

Plain loops over short arrays make LLVM test at run time whether pointers overlap, which costs more than the work.
These functions say exactly which vector instructions to use; LLVM maps them to what the processor has.
"""

from __future__ import annotations

import math
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, register_model

FASTMATH = {"nnan", "ninf", "nsz", "arcp", "contract", "afn"}
"""All of LLVM's fast-math flags except `reassoc`.

Numba optimises the body of a parallel kernel once for the process that compiles it and once more for the object file
that later processes load. Free to reorder sums, LLVM orders them differently the second time: the first run after an
install would render images with other last bits than every later run. Costs nothing measurable.
"""
device = numba.njit(fastmath=FASTMATH, forceinline=True, _nrt=False)
"""Decorator of functions that kernels call: inlined, and without reference counts.

Numba would count references whenever an array is taken out of a tuple, which costs a fifth of a render's time. These
functions own nothing, since the arrays are their callers': they must neither allocate arrays nor return any.
"""
LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


class _Float8(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Float8")


float8 = _Float8()


@register_model(_Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, zeros)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors or numbers, in one instruction where the processor has it."""
    name = "llvm.fmuladd." + (f"v{LANES}f32" if isinstance(a.type, ir.VectorType) else "f32")
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _is_float_array(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1


@intrinsic
def load8(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index : index + 8] of a contiguous float32 array; bounds are not checked."""
    if not _is_float_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=4)

    return float8(array, types.intp), codegen


@intrinsic
def store8(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + 8] = value."""
    if not _is_float_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, float8), codegen


@intrinsic
def splat8(typingctx: Any, scalar: Any) -> Any:
    """The same number in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return float8(types.float32), codegen


@intrinsic
def axpy8(typingctx: Any, scalar: Any, x: Any, y: Any) -> Any:
    """scalar * x + y."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply_add(builder, _splat(builder, args[0]), args[1], args[2])

    return float8(types.float32, float8, float8), codegen


@intrinsic
def fma8(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply_add(builder, args[0], args[1], args[2])

    return float8(float8, float8, float8), codegen


@intrinsic
def leaky8(typingctx: Any, x: Any) -> Any:
    """x where positive, else 0.2 x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scaled = builder.fmul(args[0], ir.Constant(_VECTOR, [0.2] * LANES))
        positive = builder.fcmp_ordered(">", args[0], ir.Constant(_VECTOR, [0.0] * LANES))
        return builder.select(positive, args[0], scaled)

    return float8(float8), codegen


def _constant(kind: Any, value: Any) -> Any:
    """A number of an LLVM type, in all lanes if it is a vector type."""
    return ir.Constant(kind, [value] * LANES if isinstance(kind, ir.VectorType) else value)


def _horner(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Polynomial in x, the highest power's coefficient first."""
    total = _constant(x.type, coefficients[0])
    for coefficient in coefficients[1:]:
        total = _multiply_add(builder, total, x, _constant(x.type, coefficient))
    return total


def _exp_of_negative(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0, to 2e-7 of its value: 2^n times a polynomial in the rest. Eight lanes or one number."""

    def constant(value: float) -> Any:
        return _constant(x.type, value)

    integers = ir.VectorType(ir.IntType(32), LANES) if isinstance(x.type, ir.VectorType) else ir.IntType(32)
    low = constant(-87.0)
    clamped = builder.select(builder.fcmp_ordered(">", x, low), x, low)
    shifted = builder.fsub(builder.fmul(clamped, constant(1.4426950408889634)), constant(0.5))
    whole = builder.fptosi(shifted, integers)
    n = builder.sitofp(whole, x.type)
    rest = builder.fsub(clamped, builder.fmul(n, constant(0.693359375)))
    rest = builder.fadd(rest, builder.fmul(n, constant(2.12194440e-4)))
    value = _horner(builder, rest, tuple(1.0 / math.factorial(k) for k in range(6, -1, -1)))
    bits = builder.shl(builder.add(whole, _constant(integers, 127)), _constant(integers, 23))
    return builder.fmul(value, builder.bitcast(bits, x.type))


def _softplus(builder: Any, x: Any) -> Any:
    """log(1 + exp(x)) as max(x, 0) + 2 artanh(e / (2 + e)) with e = exp(-|x|)."""
    zero = _constant(x.type, 0.0)
    positive = builder.fcmp_ordered(">", x, zero)
    e = _exp_of_negative(builder, builder.select(positive, builder.fsub(zero, x), x))
    s = builder.fdiv(e, builder.fadd(e, _constant(x.type, 2.0)))
    series = _horner(builder, builder.fmul(s, s), tuple(2.0 / k for k in range(13, 0, -2)))
    return builder.fadd(builder.select(positive, x, zero), builder.fmul(s, series))


@intrinsic
def softplus8(typingctx: Any, x: Any) -> Any:
    """log(1 + exp(x)), to 3e-7 of its value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _softplus(builder, args[0])

    return float8(float8), codegen


@intrinsic
def softplus1(typingctx: Any, x: Any) -> Any:
    """`softplus8` of one number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _softplus(builder, args[0])

    return types.float32(types.float32), codegen


@intrinsic
def exp_of_negative1(typingctx: Any, x: Any) -> Any:
    """exp(x) of one number, x <= 0, to 2e-7 of its value: several times as fast as the C library's."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _exp_of_negative(builder, args[0])

    return types.float32(types.float32), codegen


@intrinsic
def logistic1(typingctx: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)) of one number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero, one = _constant(args[0].type, 0.0), _constant(args[0].type, 1.0)
        positive = builder.fcmp_ordered(">", args[0], zero)
        e = _exp_of_negative(builder, builder.select(positive, builder.fsub(zero, args[0]), args[0]))
        return builder.fdiv(builder.select(positive, one, e), builder.fadd(one, e))

    return types.float32(types.float32), codegen


@intrinsic
def leaky_gradient8(typingctx: Any, activated: Any, gradient: Any) -> Any:
    """gradient where the activated value is positive, else 0.2 gradient."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scaled = builder.fmul(args[1], ir.Constant(_VECTOR, [0.2] * LANES))
        positive = builder.fcmp_ordered(">", args[0], ir.Constant(_VECTOR, [0.0] * LANES))
        return builder.select(positive, args[1], scaled)

    return float8(float8, float8), codegen


@intrinsic
def sum8(typingctx: Any, x: Any) -> Any:
    """Sum of the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = LANES
        value = args[0]
        i32 = ir.IntType(32)
        while half > 1:
            half //= 2
            low = ir.Constant(ir.VectorType(i32, half), list(range(half)))
            high = ir.Constant(ir.VectorType(i32, half), list(range(half, 2 * half)))
            value = builder.fadd(
                builder.shuffle_vector(value, value, low),
                builder.shuffle_vector(value, value, high),
            )
        return builder.extract_element(value, ir.Constant(i32, 0))

    return types.float32(float8), codegen


__all__ = [
    "LANES", "axpy8", "exp_of_negative1", "fma8", "leaky8", "leaky_gradient8", "load8", "logistic1", "softplus1",
    "softplus8", "splat8", "store8", "sum8",
]  # fmt: skip
