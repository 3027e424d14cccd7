"""The tables of README.md and docs: a renderer makes lines of Markdown from a parsed JSON file.

To add one, write a function from the parsed JSON to lines (`table` draws them) and name it in `RENDERERS`. It need not
check its input: what it raises when something is missing or of another type becomes a sentence (`tables.render`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from portrait360.evaluation.measures import MEASURES, rounded, with_spread

Renderer = Callable[[Any], list[str]]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown of a table. Cells are Markdown, numbers or None (empty); pipes are escaped, line breaks become spaces.

    Raises:
        ValueError: a row has another number of cells than there are columns.
        TypeError: a cell is something else.
    """
    lines = [_line(columns), "|" + "---|" * len(columns)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} cells, not {len(columns)}")
        lines.append(_line(row))
    return lines


def _line(cells: Sequence[object]) -> str:
    if isinstance(cells, str):
        raise TypeError(f"expected a list of cells, not {cells!r}")
    texts = [_cell(cell) for cell in cells]
    return "".join(f"| {text} " if text else "| " for text in texts) + "|"


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str | int | float):
        return " ".join(str(cell).splitlines()).strip().replace("|", r"\|")
    raise TypeError(f"a cell is text or a number, not {cell!r}")


def plain(content: Any) -> list[str]:
    """{"about": {"machine", "command", "date"}, "columns": [...], "rows": [[...], ...]}."""
    for key in ("machine", "command", "date"):
        if not content["about"][key]:
            raise ValueError(f"{key!r} of 'about' is empty")
    return table(content["columns"], content["rows"])


_VIEWS = {
    "first view, posed": "first view, posed",
    "further, canonical": "further view, canonical",
    "further, posed": "further view, posed",
}
_STAGES = {
    "tri-grid": "tri-grid",
    "background": "background",
    "matter": "occupancy",
    "deformation": "deformation",
    "rendering, canonical": "rendering, canonical",
    "posed": "rendering, posed",
    "super-resolution": "super-resolution",
    "discriminator": "discriminator",
}


def bench_views(bench: Any) -> list[str]:
    """What `portrait360 bench` wrote: seconds for each view, each exact renderer below the fast one."""
    rows: list[list[str]] = []
    for name, found in _presets_in_use(bench).items():
        rays, fast, exact = f"{found['rays']}²", found["views"], found.get("exact")
        fast = _with_first_view(fast)
        times = [f"{fast[view]:.2f} s" if view in fast else "" for view in _VIEWS.values()]
        rows.append([f"`{name}`", rays, *times, f"{found['peak_mib']:.0f} MiB", _quality(exact) if exact else ""])
        if exact:
            slow = _with_first_view(exact["views"])
            pairs = [(slow[view], fast[view]) if view in slow else None for view in _VIEWS.values()]
            times = ["" if pair is None else f"{pair[0]:.1f} s ({pair[0] / pair[1]:.0f}x)" for pair in pairs]
            rows.append(["exact renderer", rays, *times, f"{exact['peak_mib']:.0f} MiB", ""])
    return table(["preset", "rays", *_VIEWS, "peak memory", "PSNR, canonical / posed"], rows)


def _with_first_view(views: dict[str, float]) -> dict[str, float]:
    """The same; the first view of a model that knows no body pose stands for a posed one."""
    first = views.get("first view, canonical")
    return views if first is None else {"first view, posed": first, **views}


def _quality(exact: Any) -> str:
    return " / ".join(f"{value:.0f}" for value in exact["psnr_db"].values()) + " dB"


def bench_stages(bench: Any) -> list[str]:
    """What `portrait360 bench` wrote: milliseconds for each stage; empty where a preset has no such stage."""
    rows: list[list[str]] = []
    for name, found in _presets_in_use(bench).items():
        times = [found["stages"].get(stage) for stage in _STAGES.values()]
        rows.append([f"`{name}`", *("" if time is None else f"{1000 * time:.0f}" for time in times)])
    return table(["milliseconds", *_STAGES], rows)


def bench_training(bench: Any) -> list[str]:
    """What `portrait360 bench --training` wrote: images per second in both forms, their ratio, and memory."""
    rows: list[list[str]] = []
    for name, found in bench["training"].items():
        ours, plain = found["ours"], found["original"]
        rates = ours["images_per_second"], plain["images_per_second"]
        peaks = f"{ours['peak_mib']:.0f} / {plain['peak_mib']:.0f} MiB"
        rows.append([f"`{name}`", f"{rates[0]:.2f}", f"{rates[1]:.2f}", f"{rates[0] / rates[1]:.1f}x", peaks])
    return table(["images per second", "ours", "published recipe, plain PyTorch", "ratio", "peak memory"], rows)


def _presets_in_use(bench: Any) -> dict[str, Any]:
    """Without the tiny ones, which are for tests."""
    return {name: found for name, found in bench["presets"].items() if not name.startswith("tiny")}


def parity(content: Any) -> list[str]:
    """What `official.parity --out` wrote: the largest error of each stage in each file; bold where it is too far."""
    files = list(dict.fromkeys(row["file"] for row in content["rows"]))
    stages: dict[str, list[Any]] = {}
    for row in content["rows"]:
        stages.setdefault(row["stage"], []).append(row)
    rows: list[list[str]] = []
    for stage, of_stage in stages.items():
        allowed = ", ".join(dict.fromkeys(_allowed(row) for row in of_stage))
        rows.append([stage, allowed, *(_worst([r for r in of_stage if r["file"] == file]) for file in files)])
    rows += [[f"**not compared**: {name}", "", *("" for _ in files)] for name in content["not_compared"]]
    return table(["stage", "tolerance", *(file.removesuffix(".npz") for file in files)], rows)


def _worst(rows: list[Any]) -> str:
    if not rows:
        return ""
    worst = _scientific(max(row["max_error"] for row in rows))
    return worst if all(row["ok"] for row in rows) else f"**{worst}**"


def _allowed(row: Any) -> str:
    mean = row["mean_tolerance"]
    limits = [_scientific(row["tolerance"]), *([] if mean is None else [f"mean {_scientific(mean)}"])]
    return ", ".join(limits).replace(".0e", "e")


def _scientific(value: float) -> str:
    """As 4.2e-7, and 0."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def evaluation(content: Any) -> list[str]:
    """What `portrait360 evaluate` wrote: every measure of the model beside those of held-out portraits."""
    rows: list[list[str]] = []
    for name, record in content["measures"].items():
        about = MEASURES[name]
        floor = "" if record["floor"] is None else with_spread(record["floor"], record["floor_spread"])
        model = with_spread(record["value"], record["spread"])
        rows.append([about.group, f"{about.title} (`{name}`)", model, floor, about.unit, about.better])
    return table(["", "measure", "model", "held-out portraits", "unit", "better"], _once(rows))


HEADLINES = {
    "same_person_truncated": "pairs of people that dlib's network takes for one, truncation 0.7",
    "same_person": "the same, truncation 1",
    "faces_found_truncated": "faces found from the front, truncation 0.7",
    "faces_found": "the same, truncation 1",
    "frechet_random": "Fréchet distance in our encoder's features, images (lower is better)",
    "frechet_head_random": "Fréchet distance in our encoder's features, heads (lower is better)",
    "recall_random": "recall (improved precision/recall, k = 3)",
    "yaw_error": "predicted against rendered yaw: median error, degrees",
    "back_faces": "back-face rate, share of the images from behind",
    "identity_similarity": "the same portrait from another side, cosine of identities",
    "whole_meshes": "watertight meshes of one piece, share",
    "d_neck_error_real": "predicted neck pose error on held-out portraits: mean, degrees",
    "coarse_neck_error_real": "noisy neck pose labels of these portraits: mean error, degrees",
    "d_head_error_real": "predicted head pose error on held-out portraits: mean, degrees",
    "coarse_head_error_real": "noisy head pose labels of these portraits: mean error, degrees",
}


def evaluation_headlines(content: Any) -> list[str]:
    """What `portrait360 evaluate` wrote, in short: `HEADLINES` without their deviations."""
    rows: list[list[str]] = []
    for name, words in HEADLINES.items():
        record = content["measures"][name]
        rows.append([words, rounded(record["value"]), "" if record["floor"] is None else rounded(record["floor"])])
    return table(["measure", "model", "held-out synthetic portraits"], rows)


FIRST_LOOK = ("same_person_truncated", "same_person", "frechet_head_random", "recall_random", "back_faces")
"""The headlines of `evaluation_first_look`."""


def evaluation_first_look(content: Any) -> list[str]:
    """What `portrait360 evaluate` wrote, for the README: few of `HEADLINES`, and body poses in two rows."""
    lines = evaluation_headlines(content)
    rows = dict(zip(HEADLINES, lines[2:], strict=True))
    found = content["measures"]
    pose = "body pose error, neck / head: mean, degrees"
    poses = [
        [f"predicted {pose}", _neck_and_head(found, "d"), None],
        ["noisy labels, as for training: the same", None, _neck_and_head(found, "coarse")],
    ]
    return [*lines[:2], *(rows[name] for name in FIRST_LOOK), *table(["", "", ""], poses)[2:]]


def evaluation_poses(content: Any) -> list[str]:
    """What `portrait360 evaluate` wrote: errors of body poses on held-out portraits, as predicted and by labels."""
    found = content["measures"]
    rows = []
    for kind, words in _POSES.items():
        records = [found[f"{kind}_{part}_error_real"] for part in ("neck", "head")]
        rows.append([words, *(f"{with_spread(record['value'], record['spread'])}°" for record in records)])
    return table(["body pose of held-out synthetic portraits", "neck", "head"], rows)


_POSES = {
    "d": "predicted by the discriminator, calibrated",
    "coarse": "noisy labels of these portraits, as for training",
    "mean": "always the mean of the exact poses",
}


def _neck_and_head(found: Any, kind: str) -> str:
    return " / ".join(rounded(found[f"{kind}_{part}_error_real"]["value"]) for part in ("neck", "head"))


def _once(rows: list[list[str]]) -> list[list[str]]:
    """Groups are named in their first row only."""
    return [[("" if k and rows[k - 1][0] == row[0] else row[0]), *row[1:]] for k, row in enumerate(rows)]


def evaluation_sectors(content: Any) -> list[str]:
    """What `portrait360 evaluate` wrote: errors of the predicted yaw, by sector."""
    rows = [
        [name, _degrees(entry["yaw_error"]), _degrees(entry["yaw_error_real"]), str(entry["pictures"])]
        for name, entry in content["sectors"].items()
    ]
    return table(["camera", "generated", "held-out", "generated images"], rows)


def _degrees(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}°"


def corruption(part: str) -> Renderer:
    """A part of what `tools.corruptions` wrote: measures down, corruptions across.

    Bold: worse than without corruption (or, where the data is the aim, different) by more than three times the larger
    of both deviations over the seeds.
    """

    def render(content: Any) -> list[str]:
        scores = content[part]
        plain, *others = scores
        rows = []
        for name, about in MEASURES.items():
            if name in scores[plain]:
                base, *values = (scores[column].get(name) for column in (plain, *others))
                cells = ["" if value is None else _noticed(base, value, about.better) for value in values]
                rows.append([f"`{name}`", with_spread(*base), *cells])
        return table(["measure", f"{plain} ± deviation", *others], rows)

    return render


def _noticed(base: Sequence[float], value: Sequence[float], better: str) -> str:
    text = rounded(value[0])
    return f"**{text}**" if _is_worse(base, value, better) else text


def _is_worse(base: Sequence[float], value: Sequence[float], better: str) -> bool:
    """Whether a value is worse than another, by more than three times the larger of their deviations."""
    change = value[0] - base[0]
    worse = {"lower": change, "higher": -change, "as data": abs(change)}[better]
    return worse > 3.0 * max(base[1], value[1]) and worse > 1e-6


def encoder(kind: str) -> Renderer:
    """What `tools.encoder_accuracy` wrote, medians by sector: of `plain` images, of those encoded `both_ways`,
    or of `photo_like` ones."""

    def render(content: Any) -> list[str]:
        rows = []
        for name, row in content[kind]["sectors"].items():
            angles = [_degrees(row[key]) for key in ("yaw", "pitch", "roll", "neck", "head")]
            rows.append([name, *angles, f"{row['scale']:.1f} %", f"{row['offset']:.1f} %", f"{row['overlap']:.3f}"])
        columns = ["camera", "yaw", "pitch", "roll", "neck", "head", "scale", "offset", "mask overlap"]
        return table(columns, rows)

    return render


def encoder_summary(content: Any) -> list[str]:
    """What `tools.encoder_accuracy` wrote, medians over all cameras: a row per kind of image."""
    rows = []
    for kind, words in _ENCODED.items():
        row = content[kind]["sectors"]["all"]
        angles = [_degrees(row[key]) for key in ("yaw", "pitch", "roll", "neck", "head")]
        rows.append([words, *angles, f"{row['overlap']:.3f}", f"{100 * content[kind]['retrieval']:.1f} %"])
    return table(["images", "yaw", "pitch", "roll", "neck", "head", "mask overlap", "found again"], rows)


_ENCODED = {
    "plain": "held-out synthetic portraits",
    "both_ways": "the same, each with its mirror image",
    "photo_like": "the same, changed to look like photos",
}


def encoder_photos(content: Any) -> list[str]:
    """What `tools.encoder_accuracy` wrote about photos."""
    rows = []
    for photo in content["photos"]:
        angles = [_degrees(photo[key]) for key in ("yaw", "pitch", "roll")]
        rows.append([photo["photo"], *angles, *(", ".join(f"{a}°" for a in photo[part]) for part in ("neck", "head"))])
    return table(["photo", "yaw", "pitch", "roll", "neck: nod, turn, tilt", "head: nod, turn, tilt"], rows)


def photo_labels(content: Any) -> list[str]:
    """What `tools.photo_accuracy` wrote: share accepted and median errors by sector."""
    rows = []
    for name, row in content["sectors"].items():
        angles = [_degrees(row[key]) for key in ("yaw", "pitch", "neck", "head")]
        shares = [f"{row['neck_joint']:.1f} %", f"{row['side']:.1f} %", f"{row['overlap']:.3f}"]
        rows.append([name, str(row["photos"]), f"{100 * row['accepted']:.0f} %", *angles, *shares])
    columns = ["camera", "photos", "accepted", "yaw", "pitch", "neck", "head", "neck joint", "side", "mask overlap"]
    return table(columns, rows)


def photo_summary(content: Any) -> list[str]:
    """What `tools.photo_accuracy` wrote, in short: the rows of `photo_labels` for the front half and for all."""
    lines = photo_labels(content)
    return [*lines[:2], *(line for line in lines[2:] if line.startswith(("| front half ", "| all ")))]


ABLATED = {
    "frechet_random": "Fréchet",
    "frechet_head_random": "of heads",
    "frechet_face_random": "of faces",
    "recall_random": "recall",
    "yaw_error": "yaw error",
    "reprojection_colour": "colour between views",
    "d_neck_error_real": "neck",
    "d_head_error_real": "head",
}


def ablations(content: Any) -> list[str]:
    """What `tools.ablations` wrote: a row per arm. Bold: worse than the recipe, by whichever of its seeds, by more
    than three times the larger of both deviations over the evaluation's seeds; italic: better than it by as much."""
    same = [arm["measures"] for arm in content["arms"] if arm["arm"] in ("recipe", "again")]
    rows = []
    for arm in content["arms"]:
        found = {name: arm["measures"].get(name) for name in ABLATED}
        cells = [_against([m[name] for m in same], value, MEASURES[name].better) for name, value in found.items()]
        rows.append([f"{arm['about']} (`{arm['arm']}`)", f"{arm['images'] / 1000:.1f}", *cells])
    return table(["trained", "kimg", *ABLATED.values()], rows)


IN_SHORT = ("no-r2", "nonsaturating", "one-view", "conditioned", "published")
"""The arms of `ablation_summary`, the recipe first."""


def ablation_summary(content: Any) -> list[str]:
    """What `tools.ablations` wrote, in five rows: the first run of each arm of `IN_SHORT`, without marks."""
    arms: dict[str, Any] = {}
    for arm in content["arms"]:
        arms.setdefault(arm["arm"], arm)
    rows = []
    for name in IN_SHORT:
        cells = [rounded(arms[name]["measures"][measure]["value"]) for measure in ABLATED]
        words = "the recipe" if name == IN_SHORT[0] else arms[name]["about"]
        rows.append([f"{words} (`{name}`)", f"{arms[name]['images'] / 1000:.1f}", *cells])
    return table(["trained", "kimg", *ABLATED.values()], rows)


def _against(bases: list[Any], value: Any, better: str) -> str:
    if value is None:
        return ""
    own, others = (value["value"], value["spread"]), [(base["value"], base["spread"]) for base in bases]
    text = rounded(own[0])
    if all(_is_worse(other, own, better) for other in others):
        return f"**{text}**"
    return f"*{text}*" if all(_is_worse(own, other, better) for other in others) else text


def label_checks(content: Any) -> list[str]:
    """Per kind of wrong labels how often they are found and named, and the numbers of `summary.json`."""
    columns = ("labels and images", "warned", "cause named", "`bodies_met`", "`yaw_agrees`", "`mirrored`")
    rows = []
    for name, case in content["images"].items():
        named = None if case["named"] is None else f"{case['named']:.0%}".replace("%", " %")
        numbers = [f"{case[key]:.2f}" for key in ("bodies_met", "yaw_agrees", "mirrored")]
        rows.append([name, f"{case['warned']:.0%}".replace("%", " %"), named, *numbers])
    return table(columns, rows)


RENDERERS: dict[str, Renderer] = {
    "label-checks": label_checks,
    "ablations": ablations,
    "ablation-summary": ablation_summary,
    "plain": plain,
    "evaluation": evaluation,
    "evaluation-headlines": evaluation_headlines,
    "evaluation-first-look": evaluation_first_look,
    "evaluation-poses": evaluation_poses,
    "evaluation-sectors": evaluation_sectors,
    "corruptions-pictures": corruption("pictures"),
    "corruptions-faces": corruption("faces"),
    "corruptions-consistency": corruption("consistency"),
    "corruptions-geometry": corruption("geometry"),
    "encoder-plain": encoder("plain"),
    "encoder-both-ways": encoder("both_ways"),
    "encoder-photo-like": encoder("photo_like"),
    "encoder-summary": encoder_summary,
    "encoder-photos": encoder_photos,
    "photo-labels": photo_labels,
    "photo-summary": photo_summary,
    "bench-views": bench_views,
    "bench-stages": bench_stages,
    "bench-training": bench_training,
    "parity": parity,
}
"""By the name that a marker gives after `#`; `plain` where it gives none."""
