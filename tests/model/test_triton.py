"""The kernels for GPUs against their readable twins, in Triton's interpreter on the CPU, and through its compiler.

`conftest.py` asks for the interpreter.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.geometry import deformation, nearest
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label, rays
from portrait360.geometry.deformation import FIELD_SHAPE
from portrait360.geometry.nearest import nearest_triangles, nearest_triton, triangle_distances
from portrait360.kernels.selfcheck import compare
from portrait360.model import fused, fused_gpu
from portrait360.model.rendering import Occupancy, Sampling, bound_rays, render_plain
from portrait360.model.trigrid import Decoder

CONFIG = PRESETS["cpu-64"].model.render


@pytest.mark.slow
def test_a_small_case_agrees_in_values_and_gradients():
    """Where portraits are rendered and in training, where it is asked first, too."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        random = torch.get_rng_state()
        assert compare("cpu", fused_gpu.disagreement) < 1e-5
        assert compare("cpu", deformation.disagreement) < 1e-5
        assert compare("cpu", nearest.disagreement) == 0.0
        assert torch.equal(torch.get_rng_state(), random)  # a resumed run draws as one that went on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("views", "activation", "sigmoid", "seed", "with_field"),
    [(1, "softplus", False, 7, True), (2, "lrelu", True, None, False)],
)
def test_images_of_several_tri_grids_skip_empty_cells(views, activation, sigmoid, seed, with_field):
    """Views of two tri-grids, images that tiles do not divide, channels that no power of two holds."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, feature_activation="sigmoid" if sigmoid else "none")
    decoder = Decoder(24, 20, 5, activation)
    decoder.net[2].bias.data[0] = 0.5
    tri_grid = torch.randn(2, 3, 24, 3, 8, 8, requires_grad=True)
    images = 2 * views
    bounded = bound_rays(*rays(camera_label(torch.rand(images) * 6.28, torch.randn(images) * 0.2), 5), config)
    field = (torch.randn(images, *FIELD_SHAPE, 3) * 0.01).requires_grad_() if with_field else None
    occupancy = Occupancy((torch.rand(2, 6, 8, 5) < 0.3).to(torch.uint8), seed)
    sampling = Sampling(3, torch.rand(images, 25), None, occupancy)
    plain = render_plain(tri_grid, decoder, bounded, config, sampling, field=field)
    gpu = fused_gpu.render_triton(tri_grid, decoder, bounded, config, sampling, field=field, stop=0.0)
    assert 0.01 < plain.opacity.mean() < 0.999
    torch.testing.assert_close(gpu.features, plain.features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gpu.opacity, plain.opacity, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gpu.distance, plain.distance, atol=1e-4, rtol=1e-4)
    a, b = torch.randn_like(plain.features), torch.randn_like(plain.opacity)
    inputs = [tri_grid, *decoder.parameters(), *([] if field is None else [field])]
    expected = torch.autograd.grad((plain.features * a).sum() + (plain.opacity * b).sum(), inputs)
    found = torch.autograd.grad((gpu.features * a).sum() + (gpu.opacity * b).sum(), inputs)
    for e, f in zip(expected, found, strict=True):
        assert (e - f).norm() < 1e-3 * e.norm()


@pytest.mark.slow
def test_opaque_rays_end_early_as_on_the_cpu():
    case = fused_gpu.small_case("cpu")
    case.decoder.net[2].bias.data[0] = 3.0
    inputs = case.tri_grid, case.decoder, case.rays, case.config, case.sampling
    field = torch.zeros(1, *FIELD_SHAPE, 3)
    with torch.no_grad():
        gpu = fused_gpu.render_triton(*inputs, field=field, stop=0.3)
        cpu = fused.render_fused(*inputs, field=field, stop=0.3)
        whole = fused.render_fused(*inputs, field=field, stop=0.0)
    torch.testing.assert_close(gpu.features, cpu.features, atol=1e-4, rtol=1e-4)
    assert (whole.features - cpu.features).abs().max() > 1e-3


@pytest.mark.slow
def test_the_nearest_triangle_is_the_first_among_equals():
    """Of 21 triangles, a number that the kernel's groups do not divide, each comes a second time."""
    triangles = torch.randn(21, 3, 3, generator=torch.Generator().manual_seed(1))
    points = torch.randn(70, 3, generator=torch.Generator().manual_seed(2))
    points[:21] = triangles.mean(dim=1)
    found = nearest_triton(points, torch.cat([triangles, triangles]))
    assert found.tolist() == nearest_triangles(points, triangles)[0].tolist()
    assert found[:21].tolist() == list(range(21))
    assert len(nearest_triton(points[:0], triangles)) == 0


@pytest.mark.slow
def test_the_nearest_triangles_of_a_body_are_those_of_the_tree():
    """Most groups of triangles are passed over; points on the body, about it and far away."""
    body = load_body()
    triangles = body.vertices[body.faces][::8]
    draws = torch.Generator().manual_seed(0)
    some = torch.randint(len(triangles), (60,), generator=draws)
    on_it = triangles[some].double().mean(dim=1)
    points = torch.cat([on_it, torch.rand(60, 3, generator=draws) - 0.5, 3.0 * torch.randn(30, 3, generator=draws)])
    found = nearest_triton(points, triangles)
    index, _, distance = nearest_triangles(points, triangles)
    own = triangle_distances(points, triangles[found])
    torch.testing.assert_close(own, distance, atol=1e-12, rtol=1e-12)
    assert (found == index).double().mean() > 0.9  # where they differ, both share the nearest edge or corner
    assert found[:60].tolist() == some.tolist()


@pytest.mark.slow
def test_the_nearest_of_triangles_without_extent_and_of_points_that_are_no_numbers():
    """Bounding boxes of one point each are as far as what is in them; rounding hides none."""
    corners = torch.randn(100, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    triangles = corners[:, None].expand(-1, 3, 3)
    points = torch.cat([corners.flip(0), corners + 1e-9, torch.full((1, 3), float("nan"))])
    found = nearest_triton(points, triangles).tolist()
    assert found[:-1] == [*range(99, -1, -1), *range(100)]
    assert 0 <= found[-1] < 100
    assert 0 <= int(nearest_triton(points[:1], torch.full((20, 3, 3), float("nan")))) < 20
    alone = nearest_triton(points[:100], triangles[:1])
    assert alone.tolist() == [0] * 100


@pytest.mark.parametrize("found", [0.5, float("nan"), RuntimeError("no such device")])
def test_a_gpu_on_which_it_is_wrong_gets_the_plain_renderer(monkeypatch, found):
    def look(_: torch.device) -> float:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(fused_gpu, "disagreement", look)
    fused_gpu.triton_works.cache_clear()
    with pytest.warns(UserWarning, match="no fused renderer on cpu"):
        assert not fused_gpu.triton_works(torch.device("cpu"))
    fused_gpu.triton_works.cache_clear()


def test_without_triton_the_plain_renderer_serves_silently(monkeypatch):
    monkeypatch.setattr(fused_gpu, "load_kernels", lambda: (_ for _ in ()).throw(ImportError("no triton")))
    fused_gpu.triton_works.cache_clear()
    assert not fused_gpu.triton_works(torch.device("cpu"))
    fused_gpu.triton_works.cache_clear()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from portrait360.config import PRESETS
from portrait360.kernels import triton_deformation, triton_nearest, triton_render
from portrait360.kernels.blocks import Form
from portrait360.model.fused_gpu import constants


def build(kernel, kinds, values):
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | kinds | dict.fromkeys(values, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(made.asm["cubin"]) > 10_000
    print(kernel.__name__, "compiled")


flags = constants(Form(16, 32, 4, 3, False), PRESETS["cpu-64"].model.render)
flags |= {"HAS_FIELD": True, "HAS_NOISE": True, "HAS_OCCUPANCY": True, "EXPLORES": True}
kinds = dict.fromkeys("rays width samples views resolution".split(), "i32") | {"occupied": "*u8", "seed": "*i32"}
kinds |= {"frame": ("fp32",) * 6, "counts": ("i32",) * 3, "box": ("fp32",) * 6, "cells": ("i32",) * 3}
kinds |= {"light": ("fp32",) * 3}
for kernel, more in ((triton_render.forward, {}), (triton_render.backward, {"WANTS_FIELD": True})):
    build(kernel, kinds, flags | more)
for kernel in (triton_deformation.forward, triton_deformation.backward):
    kinds = dict.fromkeys("nx ny nz wx wy wz".split(), "i32")
    kinds |= dict.fromkeys("low_x low_y low_z inverse_spacing".split(), "fp32")
    build(kernel, {name: kind for name, kind in kinds.items() if name in kernel.arg_names}, {"BLOCK": 128})
kinds = dict.fromkeys(("points", "triangles", "boxes"), "*fp64") | dict.fromkeys(("numbers", "index"), "*i32")
kinds |= dict.fromkeys(("count", "groups", "faces"), "i32")
build(triton_nearest.nearest, kinds, {name: getattr(triton_nearest, name) for name in ("POINTS", "GROUP", "TRIANGLES")})
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """Down to machine code, which needs no GPU."""
    wanted = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | wanted, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == [*["forward compiled", "backward compiled"] * 2, "nearest compiled"]
