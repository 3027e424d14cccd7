"""Bad input for `invert`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, coffee

from support.bad_input import check


def save(folder, name: str, pixels: np.ndarray):
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def words(folder, *photos, extra: tuple[str, ...] = ()) -> list[str]:
    return ["invert", *map(str, photos), "--out", str(folder / "out"), *extra]


def drawing() -> np.ndarray:
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    image = np.full((400, 400, 3), 250, np.uint8)
    image[(x**2 + y**2 < 0.3)] = (250, 200, 150)
    return image


@pytest.mark.parametrize(
    ("name", "pixels", "sentence"),
    [
        ("coffee", lambda: coffee(), r"coffee.png cannot be used \(no person\)"),
        ("drawing", drawing, r"drawing.png cannot be used"),
        ("tiny", lambda: np.asarray(Image.fromarray(astronaut()).resize((40, 40))), r"tiny.png cannot be used"),
        (
            "two",
            lambda: np.concatenate([astronaut()[:400, 60:400], astronaut()[:400, 60:400]], axis=1),
            r"two.png cannot be used",
        ),
    ],
)
def test_photos_that_cannot_be_used(capfd, tmp_path, name, pixels, sentence):
    path = save(tmp_path, f"{name}.png", np.ascontiguousarray(pixels()))
    check(capfd, tmp_path, words(tmp_path, path), sentence)


def test_a_file_that_is_no_image(capfd, tmp_path):
    (tmp_path / "notes.jpg").write_text("to do")
    check(capfd, tmp_path, words(tmp_path, tmp_path / "notes.jpg"), r"notes.jpg cannot be used \(not an image\)")


def test_a_missing_file(capfd, tmp_path):
    check(capfd, tmp_path, words(tmp_path, tmp_path / "none.jpg"), "there is no photo at .*none.jpg")


def test_a_place_that_is_a_file(capfd, tmp_path):
    path = save(tmp_path, "a.png", astronaut())
    (tmp_path / "out").write_text("")
    check(capfd, tmp_path, words(tmp_path, path), "out")


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--steps", "0"), "`?--steps`? must lie between 1 and 2000, not be 0"),
        (("--head", "0", "200", "0"), "--head takes three angles"),
        (("--weights", "none.safetensors"), "no weights file"),
    ],
)
def test_bad_arguments(capfd, tmp_path, extra, sentence):
    path = save(tmp_path, "a.png", astronaut())
    check(capfd, tmp_path, words(tmp_path, path, extra=extra), sentence)
