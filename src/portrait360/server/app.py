"""The viewer's requests: the page, people, images of them, photos, and long work."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from portrait360.inversion.photos import MOST_PHOTOS
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.weights import WeightsInfo
from portrait360.server.guard import Guard
from portrait360.server.jobs import InvertPhotos, Job, Jobs, SaveFiles, free_folder
from portrait360.server.people import PORTRAIT_FILE, People, Person
from portrait360.server.pictures import View, encoded, render_view
from portrait360.types import InputError, Portrait360Error
from portrait360.viewer.page import served_page
from portrait360.viewer.payload import PagePortrait, can_show, model_payload, portrait_payload

MOST_PHOTO_BYTES = 64_000_000
"""Of one photo."""
_MOST_UPLOADS = 32
_MOST_JSON_BYTES = 10_000


class Viewer:
    """What the requests share.

    Args:
        model: makes the people.
        folder: where portraits are saved.
        uploads: where photos lie until the end.
    """

    def __init__(self, model: PortraitModel, folder: Path, uploads: Path) -> None:
        self.model, self.folder, self.uploads = model, folder, uploads
        self.people = People(model, folder)
        self.jobs = Jobs(self._finished)
        self.photos: dict[int, Path] = {}
        self.rendering = threading.Lock()
        """One image at a time: each uses all cores."""

    @property
    def info(self) -> WeightsInfo:
        return self.model.info

    def _finished(self, job: Job) -> None:
        """List who a job has made."""
        if isinstance(job.task, InvertPhotos):
            job.person = self.people.add_file(job.task.folder / PORTRAIT_FILE).number

    # ---- the page and the people ----

    async def page(self, request: Request) -> Response:
        """The page, with what a browser needs to render the model's portraits if it can."""
        return HTMLResponse(await run_in_threadpool(self._page))

    def _page(self) -> str:
        generator = self.model.generator
        shared = model_payload(generator) if can_show(generator.config) else None
        return served_page(shared, title=f"Portraits of {self.info.model}", folder=str(self.folder))

    async def list_people(self, request: Request) -> Response:
        return JSONResponse({"people": self.people.listing()})

    async def add_person(self, request: Request) -> Response:
        """The person of a seed."""
        wish = await _json(request)
        seed, truncation = _typed(wish, "seed", int), _typed(wish, "truncation", float)
        person = await run_in_threadpool(self.people.add_seed, seed, truncation)
        return JSONResponse(person.as_json())

    async def payload(self, request: Request) -> Response:
        """A portrait as browsers render it."""
        person = self._person(request)
        return JSONResponse(await run_in_threadpool(self._payload, person))

    def _payload(self, person: Person) -> dict[str, Any]:
        portrait = self.people.portrait(person)
        renderer, record = portrait.renderer, portrait.record.as_json()
        shown = PagePortrait(person.name, renderer.scene, renderer.cells, (), record, appearance=renderer.appearance)
        return portrait_payload(shown, renderer.generator)

    async def picture(self, request: Request) -> Response:
        """A portrait as the server renders it."""
        person, view = self._person(request), View.from_query(request.query_params)
        content = await run_in_threadpool(self._picture, person, view)
        return Response(content, media_type=f"image/{view.format}")

    def _picture(self, person: Person, view: View) -> bytes:
        with self.rendering:
            return encoded(render_view(self.people.portrait(person), view), view)

    async def mesh(self, request: Request) -> Response:
        """The mesh that was saved."""
        person = self._person(request)
        if person.mesh is None:
            raise InputError("this portrait has no mesh yet.", "Save its files first.")
        return FileResponse(person.mesh, media_type="model/gltf-binary")

    def _person(self, request: Request) -> Person:
        return self.people.find(request.path_params["person"])

    # ---- photos and long work ----

    async def save(self, request: Request) -> Response:
        """Write all files of a portrait."""
        person = self._person(request)
        return JSONResponse(self.jobs.add(SaveFiles(person.source, person.folder, self.info.path)).as_json())

    async def upload(self, request: Request) -> Response:
        """Keep a photo until it is inverted; it is not looked at here."""
        if len(self.photos) >= _MOST_UPLOADS:
            raise InputError("the viewer holds too many photos.", "Start it again.")
        number = len(self.photos)
        folder = self.uploads / str(number)
        folder.mkdir()
        path = folder / safe_name(request.query_params.get("name", ""))
        self.photos[number] = path
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MOST_PHOTO_BYTES:
                    raise InputError(
                        f"a photo may have {MOST_PHOTO_BYTES // 1_000_000} MB at most.", "Save a smaller copy."
                    )
                await run_in_threadpool(file.write, chunk)
        return JSONResponse({"photo": number})

    async def invert(self, request: Request) -> Response:
        """Make a portrait from photos that were uploaded."""
        wish = await _json(request)
        numbers = wish.get("photos")
        if not isinstance(numbers, list) or not all(n in self.photos for n in numbers if isinstance(n, int)):
            raise InputError("`photos` must name photos that were uploaded.", "Choose the photos again.")
        if not 0 < len(numbers) <= MOST_PHOTOS or not all(isinstance(n, int) for n in numbers):
            raise InputError(f"a portrait is made from 1 to {MOST_PHOTOS} photos.", "Choose the best ones.")
        photos = tuple(self.photos[n] for n in numbers)
        folder = free_folder(self.folder, photos[0].stem)
        task = InvertPhotos(photos, folder, self.info.path, wish.get("fast") is True, wish.get("force") is True)
        return JSONResponse(self.jobs.add(task).as_json())

    async def job(self, request: Request) -> Response:
        return JSONResponse(self.jobs.find(request.path_params["job"]).as_json())

    async def stop(self, request: Request) -> Response:
        job = self.jobs.find(request.path_params["job"])
        self.jobs.stop(job)
        return JSONResponse(job.as_json())


def viewer_app(viewer: Viewer, token: str) -> Starlette:
    """The application; everything lies under `/TOKEN/`."""

    @asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await run_in_threadpool(viewer.jobs.close)

    return Starlette(
        routes=[
            Route("/", viewer.page),
            Route("/people", viewer.list_people, methods=["GET"]),
            Route("/people", viewer.add_person, methods=["POST"]),
            Route("/people/{person:int}/payload", viewer.payload),
            Route("/people/{person:int}/picture", viewer.picture),
            Route("/people/{person:int}/mesh", viewer.mesh),
            Route("/people/{person:int}/files", viewer.save, methods=["POST"]),
            Route("/photos", viewer.upload, methods=["POST"]),
            Route("/inversions", viewer.invert, methods=["POST"]),
            Route("/jobs/{job:int}", viewer.job, methods=["GET"]),
            Route("/jobs/{job:int}", viewer.stop, methods=["DELETE"]),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={Portrait360Error: _explain},
        lifespan=lifespan,
    )


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, Portrait360Error)
    return JSONResponse({"error": error.message, "hint": error.hint}, 400)


async def _json(request: Request) -> dict[str, Any]:
    """The object that a request carries.

    Raises:
        InputError: it carries something else, or too much.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_JSON_BYTES:
            raise InputError("the request is too long.")
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError("the request must be a JSON object.")
    return found


def _typed(wish: dict[str, Any], name: str, kind: Callable[[Any], Any]) -> Any:
    value = wish.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise InputError(f"`{name}` must be a number.")
    return kind(value)


def safe_name(name: str) -> str:
    """A file name that stays in its folder and says what the user called the photo."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.replace("\\", "/").rpartition("/")[2]).strip(".-")
    return plain[-80:] or "photo"
