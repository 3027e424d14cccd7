"""What the viewer's server answers: the page, people, images, photos, and work that takes its time."""

from __future__ import annotations

import html
import io
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from starlette.testclient import TestClient

from portrait360.portrait.model import PortraitModel
from portrait360.server import app as server_app
from portrait360.server.app import Viewer, safe_name, viewer_app
from portrait360.server.jobs import free_folder

TOKEN = "token"
PATIENCE = 300.0


@pytest.fixture(scope="module")
def model(tiny_weights) -> PortraitModel:
    return PortraitModel.from_pretrained(tiny_weights)


@pytest.fixture
def viewer(model, tmp_path) -> Viewer:
    for name in ("portraits", "uploads"):
        (tmp_path / name).mkdir()
    return Viewer(model, tmp_path / "portraits", tmp_path / "uploads")


@pytest.fixture
def client(viewer) -> Iterator[TestClient]:
    with TestClient(viewer_app(viewer, TOKEN), base_url=f"http://127.0.0.1:8080/{TOKEN}/") as client:
        yield client


def person(client: TestClient, seed: int = 3, truncation: float = 0.7) -> int:
    return client.post("people", json={"seed": seed, "truncation": truncation}).json()["id"]


def image(response) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(float)


def finished(client: TestClient, job: dict) -> dict:
    end = time.monotonic() + PATIENCE
    while job["state"] in ("waiting", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.1)
        job = client.get(f"jobs/{job['id']}").json()
    return job


# ---- the page ----


def test_the_page_may_ask_its_own_server_alone(client):
    response = client.get("")
    assert response.status_code == 200
    policy = html.unescape(re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', response.text)[0])
    assert "connect-src 'self';" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"


def test_without_the_token_there_is_nothing(client):
    assert client.get("http://127.0.0.1:8080/people").status_code == 404
    assert client.get("http://evil.example:8080/token/people").status_code == 403


# ---- people ----


def test_the_person_of_a_seed_joins_the_list_once(client):
    first = person(client)
    assert person(client) == first
    assert person(client, truncation=1.0) != first
    assert [entry["name"] for entry in client.get("people").json()["people"]] == ["Seed 3", "Seed 3"]


@pytest.mark.parametrize("wish", [{"seed": -1, "truncation": 0.7}, {"seed": 1, "truncation": 2.0}, {"seed": 1.5}])
def test_a_bad_wish_is_explained(client, wish):
    response = client.post("people", json=wish)
    assert response.status_code == 400
    assert response.json()["error"].startswith("`")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"1" * 20_000])
def test_what_is_no_wish_is_explained(client, content):
    response = client.post("people", content=content)
    assert response.status_code == 400
    assert "request" in response.json()["error"]


def test_images_are_those_of_the_portrait(client, model):
    number = person(client)
    shown = image(client.get(f"people/{number}/picture?side=32&yaw=30&head=0,20,0&format=png"))
    expected = model.sample(3).render(yaw=30, head=(0.0, 20.0, 0.0))
    np.testing.assert_array_equal(shown, np.asarray(expected).astype(float))
    draft = client.get(f"people/{number}/picture?side=32&yaw=30&head=0,20,0&draft=1")
    assert draft.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "query",
    ["side=5000", "side=abc", "yaw=nan", "zoom=100", "head=1,2", "head=0,0,999", "background=red", "format=gif"],
)
def test_bad_views_are_explained(client, query):
    response = client.get(f"people/{person(client)}/picture?{query}")
    assert response.status_code == 400
    assert response.json()["error"]


def test_nobody_is_not_shown(client):
    for path in ("people/99/picture", "people/99/payload", "people/99/mesh", "jobs/99"):
        assert client.get(path).status_code == 400


def test_the_payload_is_that_of_a_page(client):
    payload = client.get(f"people/{person(client)}/payload").json()
    assert {"triGrid", "cells", "warp", "photos"} <= set(payload)


# ---- files ----


def test_saving_writes_what_generate_writes_and_the_next_viewer_lists_it(client, viewer, model, tmp_path):
    number = person(client)
    assert client.get(f"people/{number}/mesh").status_code == 400
    job = finished(client, client.post(f"people/{number}/files").json())
    assert job["state"] in ("done", "failed"), job
    # untrained weights may have nothing solid; all else must be there
    if job["state"] == "failed":
        assert "solid" in job["error"]
        return
    folder = tmp_path / "portraits" / "seed0003"
    assert {"views.png", "turntable.mp4", "portrait.safetensors", "portrait.json"} <= {p.name for p in folder.iterdir()}
    again = Viewer(model, viewer.folder, viewer.uploads)
    assert again.people.add_saved() == []
    assert [entry["name"] for entry in again.people.listing()] == ["seed0003"]
    again.jobs.close()


def test_portraits_of_other_weights_are_left_out_with_a_word(viewer, tmp_path):
    PortraitModel.from_pretrained().sample(0).save(tmp_path / "portraits" / "other", video=False, mesh=False, size=64)
    problems = viewer.people.add_saved()
    assert len(problems) == 1
    assert "other weights" in problems[0]
    assert len(viewer.people) == 0
    viewer.jobs.close()


# ---- photos ----


def photo_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(astronaut()).save(buffer, "PNG")
    return buffer.getvalue()


def upload(client: TestClient, content: bytes, name: str = "eileen.png") -> int:
    return client.post(f"photos?name={name}", content=content).json()["photo"]


def test_a_photo_becomes_a_portrait_that_is_saved_and_shown(client, tmp_path):
    photo = upload(client, photo_bytes())
    job = finished(client, client.post("inversions", json={"photos": [photo], "fast": True}).json())
    if job["state"] == "failed":
        assert "solid" in job["error"]
        return
    assert (tmp_path / "portraits" / "eileen" / "comparison.png").is_file()
    assert client.get(f"people/{job['person']}/picture?side=64").status_code == 200


def test_a_file_that_is_no_photo_is_refused_with_a_sentence(client, tmp_path):
    photo = upload(client, b"#!/bin/sh\necho no\n", "..%2F..%2Fevil.sh")
    job = finished(client, client.post("inversions", json={"photos": [photo], "fast": True}).json())
    assert job["state"] == "failed"
    assert "cannot be used" in job["error"]
    assert job["hint"]
    assert not list((tmp_path / "portraits").iterdir())


def test_photos_that_are_too_large_are_refused(client, monkeypatch):
    monkeypatch.setattr(server_app, "MOST_PHOTO_BYTES", 1000)
    response = client.post("photos?name=large.png", content=b"x" * 2000)
    assert response.status_code == 400
    assert "MB" in response.json()["error"]


@pytest.mark.parametrize("photos", [None, [], [5], ["0"], "0", [0] * 9])
def test_photos_that_are_not_there_are_refused(client, photos):
    upload(client, b"x")
    assert client.post("inversions", json={"photos": photos}).status_code == 400


def test_a_job_can_be_stopped(client, tmp_path):
    photo = upload(client, photo_bytes())
    jobs = [client.post("inversions", json={"photos": [photo], "fast": True}).json() for _ in range(2)]
    stopped = [client.delete(f"jobs/{job['id']}").json() for job in reversed(jobs)]
    assert stopped[0]["state"] == "stopped"
    assert finished(client, jobs[0])["state"] in ("stopped", "done", "failed")


# ---- names ----


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("ada.jpg", "ada.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\my photo.jpg", "my-photo.jpg"),
        ("", "photo"),
        ("..", "photo"),
        ("Ada Lovelace ☺.png", "Ada-Lovelace-.png"),
        ("x" * 200, "x" * 80),
    ],
)
def test_names_of_photos_stay_in_their_folder(name, safe):
    assert safe_name(name) == safe


def test_an_earlier_portrait_is_not_written_over(tmp_path):
    assert free_folder(tmp_path, "ada") == tmp_path / "ada"
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "portrait.safetensors").touch()
    assert re.fullmatch("ada-2", free_folder(tmp_path, "ada").name)
