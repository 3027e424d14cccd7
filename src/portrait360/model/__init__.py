"""The networks: mapping, synthesis, tri-grid, rendering, super-resolution, generator, discriminator."""
