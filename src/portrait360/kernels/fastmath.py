"""What kernels may take liberties with in floating point: everything but the order of sums."""

FASTMATH = {"nnan", "ninf", "nsz", "arcp", "contract", "afn"}
"""All of LLVM's fast-math flags except `reassoc`.

Numba optimises the body of a parallel kernel once for the process that compiles it and once more for the object file
that later processes load. Free to reorder sums, LLVM orders them differently the second time: the first run after an
install would draw pictures with other last bits than every later run. Costs nothing measurable.
"""
