"""Listening on this machine, and saying where."""

from __future__ import annotations

import contextlib
import getpass
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from portrait360.portrait.model import PortraitModel
from portrait360.server.app import Viewer, viewer_app
from portrait360.types import InputError

ADDRESS = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket on this machine alone; port 0 takes a free one.

    Raises:
        InputError: the port is taken or not allowed.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
    except OSError as error:
        listening.close()
        raise InputError(
            f"port {port} cannot be used ({error.strerror or error}).", "Choose another `port`, or 0 for a free one."
        ) from error
    return listening


def serve(
    model: PortraitModel,
    folder: Path,
    portrait: Path | None,
    *,
    port: int,
    browser: bool,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the viewer until Ctrl-C.

    Args:
        model: makes the people.
        folder: where portraits are saved; those that it holds are listed.
        portrait: a portrait file to show first.
        port: 0 takes a free one.
        browser: whether to open the page.
        say: prints a line.

    Raises:
        InputError: the port cannot be used.
        CheckpointError: the portrait file cannot be shown.
    """
    listening = listen(port)
    with contextlib.closing(listening), tempfile.TemporaryDirectory(prefix="portrait360-view-") as uploads:
        # Whom to show
        viewer = Viewer(model, folder, Path(uploads))
        try:
            if portrait is not None:
                viewer.people.add_file(portrait)
            for problem in viewer.people.add_saved():
                say(f"left out: {problem}")
            if not len(viewer.people):
                viewer.people.add_seed(0, 0.7)
        except BaseException:
            viewer.jobs.close()
            raise

        # Where
        token, port = secrets.token_urlsafe(16), listening.getsockname()[1]
        address = f"http://{ADDRESS}:{port}/{token}/"
        say(f"{address}  the viewer; Ctrl-C ends it")
        say(f"on another machine, first: {tunnel(port)}")
        if browser:
            threading.Timer(0.5, webbrowser.open, (address,)).start()

        # Until Ctrl-C
        config = uvicorn.Config(
            viewer_app(viewer, token), log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listening])


def tunnel(port: int) -> str:
    """The command that brings the server's port to another machine."""
    return f"ssh -L {port}:{ADDRESS}:{port} {getpass.getuser()}@{socket.gethostname()}"
