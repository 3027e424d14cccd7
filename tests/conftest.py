"""Fixtures of many tests. They import the package inside, after the type checks are set up."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

JOBS = ("portrait360.photos.job", "portrait360.synthetic.job")

os.environ["TRITON_INTERPRET"] = "1"  # has to be known before anything imports Triton, as torch may at any time
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest has a process per core: threads of torch would only wait


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Anny's body are slow ones: it takes more than a gigabyte in each process."""
    for item in items:
        if isinstance(item, pytest.Function) and {"body", "anny_model", "source"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def small_presets() -> None:
    """Commands and `train` find the presets of `support.presets` by their names."""
    from support.presets import register

    register()


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_process() -> None:
    """Torch and the kernels compute with one thread, as there is a process of pytest per core."""
    from portrait360.runtime.threads import settle_threads

    settle_threads(1)


@pytest.fixture(scope="session", autouse=True)
def discs_are_no_people() -> None:
    """Training says nothing of labels that do not fit the discs of `support.fake_portraits`, which have no yaw."""
    from portrait360.encoder import label_check

    label_check.FEWEST = 24


@pytest.fixture(scope="session", autouse=True)
def shared_weight_volumes() -> None:
    """Bodies of equal numbers share the volume of their weights, which takes half a second to build."""
    from portrait360.geometry import weights

    build, known = weights.build_weight_volume, {}

    def shared(body):
        if body.vertices.is_meta:
            return build(body)
        key = tuple(part.numpy().tobytes() for part in (body.vertices, body.weights, body.faces))
        if key not in known:
            known[key] = build(body)
        return known[key]

    weights.build_weight_volume = shared


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels(tmp_path_factory) -> None:
    """Processes of pytest that work side by side share the compiling, in others that take its memory with them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        from support.kernels import PROGRAM
        from support.programs import run

        run(PROGRAM, tmp_path_factory.getbasetemp().parent, worker.removeprefix("gw"))


@pytest.fixture(scope="session", autouse=True)
def quick_processes() -> None:
    """Jobs fork their processes from one that has imported everything."""
    from portrait360.runtime.job_processes import LocalProcess

    multiprocessing.set_forkserver_preload(["support.fake_portraits", "support.fake_worker", *JOBS])
    LocalProcess.START_METHOD = "forkserver"


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """What a file of tests has used goes back to the system, also after a command that keeps it."""
    from portrait360.runtime.memory import release_freed_memory

    yield
    gc.collect()
    _return_freed_memory()
    release_freed_memory()


def _return_freed_memory() -> None:
    """Undo what commands under test set for the whole process: large blocks return to the system again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in ((-4, 65536), (-1, 128 * 1024), (-2, 0)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(ctypes.c_int(name), ctypes.c_int(value))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A weights file of the preset `tiny`, untrained."""
    from support.presets import TINY

    return _untrained(TINY.model, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def shown_weights(tmp_path_factory) -> Path:
    """A weights file of the preset `tiny-shown`, untrained."""
    from support.presets import TINY_SHOWN

    return _untrained(TINY_SHOWN.model, tmp_path_factory.mktemp("weights"))


def _untrained(model: Any, folder: Path) -> Path:
    import torch

    from portrait360.model.discriminator import Discriminator
    from portrait360.model.generator import Generator
    from portrait360.portrait.weights import save_weights

    path = folder / f"{model.name}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator, discriminator = Generator(model), Discriminator(model)
    save_weights(path, model, generator, discriminator, {"trained": "not at all"})
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A zip of six 32-pixel images with masks, exact and coarse labels."""
    from support.fake_portraits import write_fake_dataset

    path = tmp_path_factory.mktemp("data") / "tiny.zip"
    write_fake_dataset(path, coarse=True)
    return path


@pytest.fixture(scope="session")
def body():
    """Anny's body; loads once (a minute on a fresh machine)."""
    from portrait360.synthetic.body import AnnyBody

    return AnnyBody()


@pytest.fixture(scope="session")
def tiny_parts(body, tmp_path_factory) -> Path:
    """A small set of hair, clothes and skins that needs no npm."""
    from support.tiny_parts import write_tiny_parts

    return write_tiny_parts(tmp_path_factory.mktemp("parts"), body)


@pytest.fixture(scope="session")
def source(tiny_parts: Path):
    """Draws synthetic portraits from the small set."""
    from portrait360.synthetic.source import PortraitSource

    return PortraitSource(tiny_parts)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """The file of a small portrait encoder, untrained."""
    import torch

    from portrait360.encoder.files import save_encoder
    from portrait360.encoder.network import EncoderConfig, PortraitEncoder

    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    config = EncoderConfig(
        resolution=32, stem=8, channels=(8, 8, 8, 8), blocks=1, mask_channels=8, hidden=16, identity=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = PortraitEncoder(config).eval()
    save_encoder(path, encoder, {"trained": "not at all"})
    return path
