"""The page as a file: whole, small enough, and forbidden to ask the network for anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re

import numpy as np
import pytest

from portrait360.portrait.model import PortraitModel
from portrait360.types import InputError
from portrait360.viewer.page import page_path, write_page


@pytest.fixture(scope="module")
def person(shown_weights):
    return PortraitModel.from_pretrained(shown_weights).sample(1)


@pytest.fixture(scope="module")
def page(person, tmp_path_factory) -> str:
    path = person.page(tmp_path_factory.mktemp("page") / "person.html")
    return path.read_text(encoding="utf-8")


def payload_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_a_person_of_the_packaged_model_takes_at_most_one_and_a_half_megabytes(tmp_path):
    person = PortraitModel.from_pretrained().sample(1, truncation=1.0)
    assert person.page(tmp_path / "person.html").stat().st_size <= 1_500_000


def test_it_forbids_itself_every_request(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    directives = dict(part.split(maxsplit=1) for part in html.unescape(policy).split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data: blob:"
    assert directives["form-action"] == directives["base-uri"] == "'none'"
    assert set(directives) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


def test_only_its_own_script_and_style_run(page):
    policy = html.unescape(page)
    for tag, directive in (('<script type="module">', "script-src"), ("<style>", "style-src")):
        (content,) = re.findall(re.escape(tag) + r"(.*?)</(?:script|style)>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", page.split('id="payload"')[0])


def test_it_names_no_address(page):
    assert not re.findall(r"https?://", page)
    assert set(re.findall(r'(?:src|href)="([^",]*)', page)) == {"data:image/webp;base64"}


def test_only_people_of_a_seed_are_said_not_to_be_real(person, page, tmp_path):
    assert "Not a real person." in page
    path = tmp_path / "p.html"
    record = dataclasses.replace(person.record, seed=None)
    dataclasses.replace(person, record=record).page(path)
    assert "Not a real person." not in path.read_text(encoding="utf-8")


def test_images_have_alternatives_in_words(page):
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 8
    texts = [re.search(r'alt="([^"]+)"', image)[1] for image in images]
    assert texts[0] == "Seed 1 from the front"
    assert len(set(texts)) == 8


def test_the_payload_says_what_it_is(page, person):
    payload = payload_of(page)
    assert (payload["format"], payload["version"]) == ("portrait360-page", 1)
    assert payload["generator"] is None
    (portrait,) = payload["portraits"]
    assert portrait["record"] == person.record.as_json()
    assert portrait["mesh"] is None
    assert portrait["photos"] is None


def test_a_mesh_can_be_embedded(person, tmp_path, monkeypatch):
    class Mesh:
        def to_glb(self) -> bytes:
            return b"glTF of the person"

    monkeypatch.setattr(type(person), "mesh", lambda self: Mesh())
    path = person.page(tmp_path / "with.html", mesh=True)
    (portrait,) = payload_of(path.read_text(encoding="utf-8"))["portraits"]
    assert base64.b64decode(portrait["mesh"]) == b"glTF of the person"


def test_the_same_portrait_gives_the_same_page(person, page, tmp_path):
    assert person.page(tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_titles_are_escaped(person, tmp_path):
    path = tmp_path / "p.html"
    write_page(path, person.renderer.generator, [person.for_page()], title="<b>Ada & Co</b>")
    assert "<title>&lt;b&gt;Ada &amp; Co&lt;/b&gt;</title>" in path.read_text(encoding="utf-8")


def test_other_endings_are_refused(person, tmp_path):
    with pytest.raises(InputError, match=r"must be an \.html file") as error:
        person.page(tmp_path / "person.png")
    assert "person.html" in error.value.hint
    assert list(tmp_path.iterdir()) == []
    assert page_path("a.HTM").name == "a.HTM"


def test_views_are_those_of_the_portrait(person):
    shown = person.for_page()
    assert len(shown.views) == 8
    front = np.asarray(person.render(size=256))
    assert np.array_equal(shown.views[0], front)
