"""ONNX networks of the user's: what they see, and which are refused before anything in them is run."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from portrait360.photos.onnx_network import NORMALISATIONS, OnnxNetwork
from portrait360.types import InputError
from support import onnx_files as onnx


def pixels(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def network(folder: Path, content: bytes, side: int = 8) -> OnnxNetwork:
    return OnnxNetwork(onnx.write(folder / "net.onnx", content), side)


@pytest.mark.parametrize("name", [None, *NORMALISATIONS])
def test_channels_are_red_green_and_blue_as_the_metadata_say(tmp_path, name):
    metadata = {} if name is None else {"normalisation": name}
    image, weights = pixels(6), np.array([0.5, -2.0, 3.0])
    found = network(tmp_path, onnx.channel_network(weights, bias=0.25, metadata=metadata), 6)(image)
    scaled = image / 255.0
    if name == "signed":
        scaled = image / 127.5 - 1.0
    if name == "imagenet":
        scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, (scaled @ weights + 0.25)[None, None], atol=1e-5)


@pytest.mark.parametrize(("side", "expected"), [("side", 8), (6, 6), (4, 4), (9, 9)])
def test_images_come_with_the_side_that_the_network_takes(tmp_path, side, expected):
    image = np.full((6, 6, 3), 51, np.uint8)
    found = network(tmp_path, onnx.channel_network(side=side))(image)
    assert found.shape == (1, 1, expected, expected)
    np.testing.assert_allclose(found, 0.2, atol=1e-6)


def test_of_several_outputs_the_first_counts(tmp_path):
    nodes = [onnx.node("ReduceMax", ["image"], ["a"]), onnx.node("ReduceMin", ["image"], ["b"])]
    ends = [onnx.value("image", [1, 3, "s", "s"])], [onnx.value("b", [1, 1, 1, 1]), onnx.value("a", [1, 1, 1, 1])]
    image = pixels(5)
    found = network(tmp_path, onnx.model(onnx.graph(nodes, *ends)), 5)(image)
    assert found.item() == pytest.approx(image.min() / 255.0)


def test_functions_of_the_network_s_own_are_operators(tmp_path):
    own = onnx.function("mine", "Twice", [onnx.node("Add", ["x", "x"], ["y"])])
    ends = [onnx.value("image", [1, 3, "s", "s"])], [onnx.value("out", [1, 3, "s", "s"])]
    twice = onnx.node("Twice", ["image"], ["out"], domain="mine")
    content = onnx.model(onnx.graph([twice], *ends), domains=["mine"], functions=[own])
    image = pixels(4)
    np.testing.assert_allclose(
        network(tmp_path, content, 4)(image), image.transpose(2, 0, 1)[None] / 127.5, atol=1e-6
    )  # fmt: skip


def test_a_network_has_one_thread(tmp_path):
    tasks = set(Path("/proc/self/task").iterdir())
    few = network(tmp_path, onnx.channel_network(), 256)
    few(pixels(256))
    assert set(Path("/proc/self/task").iterdir()) == tasks, threading.enumerate()


# ---- refused ----

CONSTANT = onnx.attribute("value", onnx.external("", [2], "secret"), "tensor")
FOREIGN = onnx.node("Leak", ["image"], ["leaked"], domain="evil.ops")
TRUE = onnx.attribute("value", onnx.tensor("", np.array([1], np.int64)), "tensor")


def branches(inside: bytes) -> bytes:
    """An operator with two graphs in it, the second one given."""
    harmless = onnx.graph([onnx.node("Identity", ["image"], ["p"])], [], [onnx.value("p", ["a"])])
    return onnx.node(
        "If", ["yes"], ["maybe"],
        onnx.attribute("then_branch", harmless, "graph"), onnx.attribute("else_branch", inside, "graph"),
    )  # fmt: skip


def nested(depth: int) -> bytes:
    inside = onnx.graph([], [], [])
    for _ in range(depth):
        inside = onnx.graph([onnx.node("If", [], [], onnx.attribute("g", inside, "graph"))], [], [])
    return onnx.model(inside)


REFUSED = {
    "external": (onnx.identity_with(tensors=[onnx.external("w", [2], "secret")]), "other files"),
    "external-outside": (onnx.identity_with(tensors=[onnx.external("w", [2], "../../etc/passwd")]), "other files"),
    "external-memory": (
        onnx.identity_with(tensors=[onnx.external("w", [2], "*/_ORT_MEM_ADDR_/*")]), "other files"),
    "external-without-a-place": (
        onnx.identity_with(tensors=[onnx.tensor("w", np.zeros(2, np.float32), onnx.field(14, 1))]), "other files"),
    "external-place-only": (
        onnx.identity_with(tensors=[onnx.tensor("w", np.zeros(2, np.float32), onnx.field(13, b""))]), "other files"),
    "external-constant": (onnx.identity_with([onnx.node("Constant", [], ["c"], CONSTANT)]), "other files"),
    "external-in-a-branch": (
        onnx.identity_with([branches(onnx.graph([onnx.node("Constant", [], ["c"], CONSTANT)], [], []))]),
        "other files"),
    "external-in-a-function": (
        onnx.identity_with(functions=[onnx.function("f", "F", [onnx.node("Constant", [], ["y"], CONSTANT)])]),
        "other files"),
    "external-in-a-second-graph": (
        onnx.channel_network() + onnx.field(7, onnx.graph([], [], [], [onnx.external("w", [2], "x")])), "other files"),
    "external-sparse": (
        onnx.model(onnx.graph([], [], []) + onnx.field(15, onnx.field(1, onnx.external("w", [2], "x")))),
        "other files"),
    "foreign": (onnx.identity_with([FOREIGN], domains=["evil.ops"]), "not ONNX's own.*evil.ops|not ONNX's own.*Leak"),
    "foreign-in-a-branch": (onnx.identity_with([branches(onnx.graph([FOREIGN], [], []))]), "not ONNX's own"),
    "foreign-in-a-function": (
        onnx.identity_with(functions=[onnx.function("f", "F", [FOREIGN])]), "not ONNX's own"),
    "runtime-s-own": (
        onnx.identity_with([onnx.node("EPContext", ["image"], ["c"], domain="com.microsoft")]), "not ONNX's own"),
    "function-in-the-runtime-s-name": (
        onnx.identity_with(
            [onnx.node("EPContext", ["image"], ["c"], domain="com.microsoft")],
            functions=[onnx.function("com.microsoft", "EPContext", [onnx.node("Identity", ["x"], ["y"])])],
        ), "not ONNX's own"),
    "unknown-operator": (onnx.image_network("Levitate"), "cannot|can be read|Levitate"),
    "empty": (b"", "no graph"),
    "text": (b"hello, I am a network", "not an ONNX network"),
    "no-graph": (onnx.field(1, 8) + onnx.field(8, onnx.field(2, 13)), "no graph"),
    "group": (onnx.channel_network() + onnx.varint(30 << 3 | 3), "damaged"),
    "field-zero": (onnx.channel_network() + b"\x00\x00", "damaged"),
    "endless-number": (onnx.channel_network() + b"\xff" * 11, "damaged"),
    "too-deep": (nested(200), "too deep"),
    "runtime-s-format": (b"\x18\x00\x00\x00ORTM" + b"\x00" * 64, "not an ONNX network"),
    "two-inputs": (
        onnx.model(onnx.graph(
            [onnx.node("Add", ["a", "b"], ["out"])],
            [onnx.value("a", [1, 3, 8, 8]), onnx.value("b", [1, 3, 8, 8])], [onnx.value("out", [1, 3, 8, 8])],
        )), "expected one image"),
    "no-inputs": (
        onnx.model(onnx.graph([onnx.node("Constant", [], ["out"], TRUE)], [], [onnx.value("out", [1], onnx.INT64)])),
        "takes nothing; expected one image"),
    "half-precision": (
        onnx.model(onnx.graph(
            [onnx.node("Identity", ["p"], ["out"])],
            [onnx.value("p", [1, 3, 8, 8], onnx.FLOAT16)], [onnx.value("out", [1, 3, 8, 8], onnx.FLOAT16)],
        )), r"takes \(float16\)\[1, 3, 8, 8\]; expected one image"),
    "grey": (onnx.channel_network([1.0], shape=[1, 1, 8, 8]), "expected one image"),
    "channels-last": (onnx.channel_network(np.ones(8), shape=[1, 8, 8, 3]), "expected one image"),
    "channels-free": (onnx.channel_network(shape=[1, "c", 8, 8]), "expected one image"),
    "batches": (onnx.channel_network(shape=[4, 3, 8, 8]), "expected one image"),
    "not-square": (onnx.channel_network(shape=[1, 3, 8, 6]), "expected one image"),
    "half-free": (onnx.channel_network(shape=[1, 3, "h", 8]), "expected one image"),
    "unknown-normalisation": (onnx.channel_network(metadata={"normalisation": "mine"}), "normalisation 'mine'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_refused(tmp_path, name, monkeypatch):
    content, sentence = REFUSED[name]
    (tmp_path / "secret").write_bytes(np.ones(2, np.float32).tobytes())
    if "other files" in sentence or "ONNX's own" in sentence:

        def forbidden(*arguments, **options):
            raise AssertionError("the runtime saw it")

        monkeypatch.setattr(onnxruntime, "InferenceSession", forbidden)
    with pytest.raises(InputError, match=sentence) as caught:
        network(tmp_path, content)
    assert str(tmp_path / "net.onnx") in caught.value.message
    assert caught.value.hint


OUTSIDE = onnx.external("w", [2], "secret")
SPARSE, GRAPH = onnx.field(1, OUTSIDE), onnx.graph([], [], [], [OUTSIDE])
IN_ATTRIBUTES = [(5, OUTSIDE), (10, OUTSIDE), (22, SPARSE), (23, SPARSE), (6, GRAPH), (11, GRAPH)]


@pytest.mark.parametrize(("number", "inside"), IN_ATTRIBUTES, ids=[number for number, _ in IN_ATTRIBUTES])
def test_other_files_are_found_in_every_attribute(tmp_path, number, inside):
    attribute = onnx.field(1, "a") + onnx.field(number, inside)
    for content in (
        onnx.identity_with([onnx.node("Constant", [], ["c"], attribute)]),
        onnx.identity_with(functions=[onnx.function("f", "F", []) + onnx.field(11, attribute)]),
    ):
        with pytest.raises(InputError, match="other files"):
            network(tmp_path, content)


@pytest.mark.parametrize("number", [1, 2])
def test_other_files_are_found_in_graphs_for_training(tmp_path, number):
    with pytest.raises(InputError, match="other files"):
        network(tmp_path, onnx.identity_with() + onnx.field(20, onnx.field(number, GRAPH)))


def test_a_network_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = onnx.channel_network()
    for length in range(len(whole)):
        with pytest.raises(InputError, match="not an ONNX network"):
            network(tmp_path, whole[:length])


def test_bytes_that_are_changed_never_crash(tmp_path):
    whole, rng = onnx.channel_network(), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 2):
            content[place] = rng.integers(0, 256)
        try:
            network(tmp_path, bytes(content)).try_out()
        except InputError:
            continue


def test_names_that_are_no_text_are_refused(tmp_path):
    for place in (b"Levitate", b"some.domain"):
        named = onnx.identity_with([onnx.node("Levitate", ["image"], ["x"], domain="some.domain")])
        with pytest.raises(InputError, match="not ONNX's own"):
            network(tmp_path, named.replace(place, b"\xff" * len(place)))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no network at"):
        OnnxNetwork(tmp_path / "none.onnx", 8)
    with pytest.raises(InputError, match="is a folder"):
        OnnxNetwork(tmp_path, 8)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages(tmp_path, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )  # fmt: skip
    with pytest.raises(InputError, match=f"need {package}\\.") as caught:
        network(tmp_path, onnx.channel_network())
    assert 'pip install "portrait360[onnx]"' in caught.value.hint


def test_trying_out(tmp_path):
    assert network(tmp_path, onnx.channel_network(), 7).try_out().shape == (1, 1, 7, 7)
    halves = onnx.image_network("SpaceToDepth", onnx.attribute("blocksize", 2))
    assert network(tmp_path, halves).try_out().shape == (1, 12, 4, 4)
    with pytest.raises(InputError, match="fails for an image of 7 pixels") as caught:
        network(tmp_path, halves, 7).try_out()
    assert "fixed side" in caught.value.hint
    with pytest.raises(InputError, match="does not give finite float32 numbers"):
        network(tmp_path, onnx.channel_network([float("inf"), 0.0, 0.0])).try_out()
    with pytest.raises(InputError, match="does not give finite float32 numbers"):
        network(tmp_path, onnx.image_network("Shape", rank=1).replace(
            onnx.value("out", ["d0"]), onnx.value("out", ["d0"], onnx.INT64))).try_out()  # fmt: skip
