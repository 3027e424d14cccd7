"""The run that compiles the kernels gives the same bits as later runs, which load them from the cache."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib
import numpy as np
import torch
from portrait360.config import PRESETS, RenderConfig
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label, rays
from portrait360.geometry.deformation import deformation_field
from portrait360.kernels.fir import add_upsampled
from portrait360.model.fused import read_density, render_fused
from portrait360.model.two_pass import render_two_pass
from portrait360.model.rendering import Sampling, bound_rays
from portrait360.model.trigrid import Decoder
from portrait360.runtime.threads import settle_threads

def report(name, *tensors):
    parts = [value.detach().contiguous().numpy().tobytes() for value in tensors]
    print(name, *[hashlib.sha256(part).hexdigest()[:12] for part in parts])

settle_threads()
model = PRESETS["cpu-64"].model
torch.manual_seed(1)
pose = torch.full((2, 6), 0.1, requires_grad=True)
field = deformation_field(load_body(), pose)
decoder = Decoder(8, 16, 3, model.decoder_activation)
planes = torch.randn(2, 3, 8, 3, 24, 24, requires_grad=True)
bounded = bound_rays(*rays(camera_label(torch.rand(2) * 6), 24), model.render)
out = render_fused(planes, decoder, bounded, model.render, Sampling(24, torch.rand(2, 24 * 24)), field=field)
assert out.opacity.std() > 0.01
report("fused", out.features, out.opacity, out.distance)
loss = out.features.square().sum() + out.opacity.square().sum()
report("gradients", *torch.autograd.grad(loss, [planes, *decoder.parameters(), pose]))
points = torch.rand(500, 3) * 2 - 1
with torch.no_grad():
    report("density", read_density(planes, decoder, points, model.render))
    original = RenderConfig(samples=14, importance_samples=9)
    bounded = bound_rays(*rays(camera_label(torch.rand(2) * 6), 24), original)
    decoder = Decoder(8, 16, 3, "softplus")
    everywhere = torch.ones(2, 3, 4, 5, dtype=torch.uint8)
    out = render_two_pass(torch.randn(2, 3, 8, 3, 24, 24), decoder, bounded, original, everywhere, field=field)
    assert out.opacity.std() > 0.01
    report("two_pass", out.features, out.opacity, out.distance)
larger = np.zeros((24, 24, 16), np.float32)
add_upsampled(torch.randn(12, 12, 16).numpy(), larger)
report("smoothing", torch.from_numpy(larger))
"""


@pytest.mark.slow
def test_compiled_and_loaded_kernels_give_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2"}

    def run() -> list[str]:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    first = run()
    kernels = len(list(tmp_path.rglob("*.nbi")))
    assert kernels >= 7  # this run compiled them
    assert run() == first
    assert len(list(tmp_path.rglob("*.nbi"))) == kernels  # and this one loaded them
