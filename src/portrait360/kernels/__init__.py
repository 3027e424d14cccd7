"""Numba kernels; each has a plain twin that the tests compare it with."""
