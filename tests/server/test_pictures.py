"""Images for a browser that does not render itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from portrait360.portrait.model import PortraitModel
from portrait360.portrait.portrait import Portrait
from portrait360.server.pictures import View, encoded, render_view


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    return PortraitModel.from_pretrained().sample(3)


@pytest.fixture(scope="module")
def tiny(tiny_weights) -> Portrait:
    """Of a model with super-resolution and a background."""
    return PortraitModel.from_pretrained(tiny_weights).sample(3)


def shown(portrait: Portrait, **view) -> np.ndarray:
    return render_view(portrait, View(**view)).astype(float)


def test_a_view_is_the_portraits_own_image(portrait):
    image = shown(portrait, yaw=30.0, pitch=10.0, head=(0.0, 20.0, 0.0), side=64)
    np.testing.assert_array_equal(image, np.asarray(portrait.render(yaw=30, pitch=10, head=(0, 20, 0), size=64)))


def test_zoom_enlarges_the_middle(portrait):
    whole, near = shown(portrait, side=256), shown(portrait, side=128, zoom=2.0)
    assert np.abs(whole[64:192, 64:192] - near).mean() < 1.0
    assert np.abs(whole[::2, ::2] - near).mean() > 5.0


def test_a_plain_background_is_replaced_exactly(portrait):
    studio, white, black = (shown(portrait, side=64, background=name) for name in ("studio", "white", "black"))
    assert white[0, 0].tolist() == [255.0] * 3
    assert black[0, 0].tolist() == [0.0] * 3
    # where nothing shines through, all are the same
    solid = np.abs(white - black).max(axis=2) < 1.0
    assert 0.1 < solid.mean() < 0.9
    assert np.abs(studio - white)[solid].max() <= 1.0


def test_a_network_s_background_is_cut_away(tiny):
    white, black = (shown(tiny, side=32, background=name) for name in ("white", "black"))
    assert white.mean() > black.mean() + 20.0


def test_drafts_leave_the_super_resolution_out(tiny):
    draft = shown(tiny, side=64, draft=True)
    assert len(draft) == tiny.renderer.default_resolution
    assert len(shown(tiny, side=64)) == tiny.renderer.own_side


def test_images_are_files_of_their_format(portrait):
    image = render_view(portrait, View(side=64))
    png, jpeg, draft = (
        encoded(image, View(format=name, draft=d)) for name, d in (("png", 0), ("jpeg", 0), ("jpeg", 1))
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert len(draft) < len(jpeg) < len(png)
