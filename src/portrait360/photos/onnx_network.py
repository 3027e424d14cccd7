"""Networks of the user's as ONNX files: images in, numbers out, on one thread of the CPU.

A network takes one RGB image as float32 [1, 3, S, S]; S is a number, to which images are resized, or free, and then
they are resized to what the caller asks for. Channels go from 0 to 1 unless the file's metadata say otherwise under
`normalisation`: "unit" (0 to 1), "signed" (-1 to 1), or "imagenet" (less ImageNet's means, over its deviations).
Of several outputs the first counts. `onnx_check` refuses what is not data alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from portrait360.photos.onnx_check import MOST_BYTES, check_onnx, not_onnx
from portrait360.runtime.files import explain_os_error
from portrait360.types import InputError

NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""What is taken from channels between 0 and 1, and what they are divided by then."""
NORMALISATION_KEY = "normalisation"
_FLOAT = "(float)"
_FATAL = 4


class OnnxNetwork:
    """Callable: the first output for an image."""

    def __init__(self, path: Path, side: int) -> None:
        """Load a network.

        Args:
            path: the file.
            side: of the images, where the network leaves it open.

        Raises:
            InputError: onnxruntime is not installed, the file is missing or refused (see `check_onnx`), or the network
                takes something else than one image.
        """
        self.path = Path(path)
        self._session = _session(_content(self.path), self.path)
        try:
            inputs, metadata = self._session.get_inputs(), self._session.get_modelmeta().custom_metadata_map
            takes = [(one.name, one.type.removeprefix("tensor"), list(one.shape)) for one in inputs]
        except UnicodeDecodeError as error:
            raise not_onnx(self.path, "a name in it is no text") from error
        self._input, fixed = _image_input(takes, self.path)
        self.is_free, self.side = fixed is None, fixed or side
        self._mean, self._deviation = _normalisation(metadata, self.path)

    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> Any:
        """Raises what onnxruntime raises where the network does not work."""
        if image.shape[:2] != (self.side, self.side):
            resized = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        values = (image.astype(np.float32) / 255.0 - self._mean) / self._deviation
        return self._session.run(None, {self._input: np.ascontiguousarray(values.transpose(2, 0, 1)[None])})[0]

    def try_out(self) -> Float[ndarray, "*shape"]:
        """The output for an image of no person.

        Raises:
            InputError: the network fails, or gives something else than finite float32 numbers.
        """
        ramp = np.linspace(0.0, 255.0, self.side)
        image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), axis=2).astype(np.uint8)
        try:
            output = self(image)
        except Exception as error:
            hint = "Export it with a fixed side." if self.is_free else "Try it in onnxruntime."
            sentence = f"{self.path} fails for an image of {self.side} pixels: {first_line(error)}."
            raise InputError(sentence, hint) from error
        if not isinstance(output, ndarray) or output.dtype != np.float32 or not np.isfinite(output).all():
            raise InputError(f"{self.path} does not give finite float32 numbers.", "Export it in float32.")
        return output


def first_line(error: Exception) -> str:
    """What an error of onnxruntime says, without the lines that name its source."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(". ")


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise not_onnx(path, "it is larger than 2 GB")
        return path.read_bytes()
    except OSError as error:
        raise explain_os_error(error, path) or InputError(
            f"there is no network at {path}.", "Check the path."
        ) from error


def _session(data: bytes, path: Path) -> Any:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"networks as ONNX need {package}.", 'Install it: pip install "portrait360[onnx]"')
    check_onnx(data, path)
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never its own format, which is not checked
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise not_onnx(path, first_line(error)) from error


def _image_input(takes: list[tuple[str, str, list[Any]]], path: Path) -> tuple[str, int | None]:
    """The name of the input and the side of its images, None when it is free."""
    found = ", ".join(f"{kind}{shape}" for _, kind, shape in takes)
    wrong = InputError(
        f"{path} takes {found or 'nothing'}; expected one image, (float)[1, 3, S, S].",
        "Export it for one square RGB image in float32 (docs/photos.md).",
    )
    if len(takes) != 1 or takes[0][1] != _FLOAT or len(takes[0][2]) != 4:
        raise wrong
    name, _, shape = takes[0]
    count, channels, height, width = (size if isinstance(size, int) else None for size in shape)
    if count not in (1, None) or channels != 3 or height != width or height == 0:
        raise wrong
    return name, height


def _normalisation(metadata: dict[str, str], path: Path) -> tuple[Float[ndarray, " 3"], Float[ndarray, " 3"]]:
    name = metadata.get(NORMALISATION_KEY, "unit")
    if name not in NORMALISATIONS:
        raise InputError(
            f"{path} asks for the normalisation {name!r}.", f"Known are {', '.join(NORMALISATIONS)} (docs/photos.md)."
        )
    mean, deviation = NORMALISATIONS[name]
    return np.array(mean, np.float32), np.array(deviation, np.float32)
