"""The networks: mapping, synthesis, tri-grid, rendering, super-resolution, generator, discriminator.

*Equations 5.2* in a docstring or comment is section 5.2 of ``docs/equations.md``: the original's equations as they are
implemented here.
"""
