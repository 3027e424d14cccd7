"""Compiled loops, in numba and Triton; each has a plain twin that the tests compare it with."""
