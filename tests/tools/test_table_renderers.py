"""Tables of evaluations, corruptions and the encoder, from files of their form."""

from __future__ import annotations

from tools.table_renderers import ABLATED, HEADLINES, RENDERERS


def record(value: float, floor: float | None = None) -> dict:
    return {"value": value, "spread": 0.1, "floor": floor, "floor_spread": None if floor is None else 0.2}


def test_evaluation():
    content = {
        "measures": {"frechet": record(12.0, 3.0), "kernel": record(1.0), "yaw_error": record(5.0, 4.0)},
        "sectors": {
            "front": {"yaw_error": 4.25, "yaw_error_real": None, "pictures": 7},
            "back": {"yaw_error": None, "yaw_error_real": 3.0, "pictures": 0},
        },
    }
    lines = RENDERERS["evaluation"](content)
    assert lines[2] == "| fidelity | Fréchet distance (`frechet`) | 12.0 ± 0.1 | 3.00 ± 0.20 | | lower |"
    assert lines[3] == "| | kernel distance (`kernel`) | 1.00 ± 0.10 | | x1000 | lower |"
    assert lines[4].startswith("| camera | yaw, median error")
    assert RENDERERS["evaluation-sectors"](content)[2:] == ["| front | 4.2° | | 7 |", "| back | | 3.0° | 0 |"]


def test_headlines_of_an_evaluation():
    content = {"measures": {name: record(5.0) for name in HEADLINES} | {"recall_random": record(0.5, 0.91)}}
    lines = RENDERERS["evaluation-headlines"](content)
    assert len(lines) == 2 + len(HEADLINES)
    assert lines[8] == "| recall (improved precision/recall, k = 3) | 0.500 | 0.910 |"
    assert lines[-1] == "| noisy head pose labels of these portraits: mean error, degrees | 5.00 | |"


def test_measures_that_a_corruption_worsens_are_bold():
    content = {
        "pictures": {
            "nothing": {"frechet": [2.0, 0.1], "recall": [0.9, 0.01], "head_depth": [0.5, 0.01]},
            "blur": {"frechet": [2.2, 0.1], "recall": [0.5, 0.01], "head_depth": [0.9, 0.01]},
            "other": {"frechet": [9.0, 0.1], "recall": [0.99, 0.01]},
        }
    }
    lines = RENDERERS["corruptions-pictures"](content)
    assert lines[0] == "| measure | nothing ± deviation | blur | other |"
    assert lines[2:] == [
        "| `frechet` | 2.00 ± 0.10 | 2.20 | **9.00** |",
        "| `recall` | 0.900 ± 0.010 | **0.500** | 0.990 |",
        "| `head_depth` | 0.500 ± 0.010 | **0.900** | |",
    ]


def test_encoder():
    row = {"pictures": 3, "yaw": 4.0, "pitch": 3.0, "roll": 1.0, "neck": 6.0, "head": 7.0, "scale": 2.0, "offset": 1.0}
    content = {
        "plain": {"sectors": {"front": row | {"overlap": 0.97}}},
        "photos": [
            {"photo": "a.jpg", "yaw": 1.0, "pitch": -2.0, "roll": 0.0, "neck": [1, 2, 3], "head": [4, 5, 6]},
        ],
    }
    assert RENDERERS["encoder-plain"](content)[2] == (
        "| front | 4.0° | 3.0° | 1.0° | 6.0° | 7.0° | 2.0 % | 1.0 % | 0.970 |"
    )
    assert RENDERERS["encoder-photos"](content)[2] == ("| a.jpg | 1.0° | -2.0° | 0.0° | 1°, 2°, 3° | 4°, 5°, 6° |")


def test_training_speed():
    def form(rate: float, peak: float) -> dict:
        return {"images_per_second": rate, "peak_mib": peak}

    content = {"training": {"cpu-64": {"ours": form(12.0, 900.4), "original": form(1.5, 2000.0)}}}
    lines = RENDERERS["bench-training"](content)
    assert lines[-1] == "| `cpu-64` | 12.00 | 1.50 | 8.0x | 900 / 2000 MiB |"


def test_labels_of_photos():
    row = {"photos": 60, "accepted": 0.95, "yaw": 3.21, "pitch": 4.0, "neck": 9.1, "head": None}
    row |= {"neck_joint": 1.44, "side": 3.0, "overlap": 0.9512}
    (line,) = RENDERERS["photo-labels"]({"sectors": {"front": row}})[2:]
    assert line.startswith("| front | 60 | 95 % | 3.2° | 4.0° | 9.1° |")
    assert line.endswith("| 1.4 % | 3.0 % | 0.951 |")


def test_ablations():
    def arm(name: str, frechet: float, recall: float) -> dict:
        measures = {name: {"value": 5.0, "spread": 1.0} for name in ABLATED}
        measures["frechet_random"] = {"value": frechet, "spread": 0.5}
        measures["recall_random"] = {"value": recall, "spread": 0.01}
        return {"arm": name, "about": f"about {name}", "images": 30_416, "measures": measures}

    arms = [arm("recipe", 40.0, 0.8), arm("again", 41.0, 0.81), arm("worse", 44.0, 0.7), arm("better", 30.0, 0.9)]
    arms.append(arm("little", 41.6, 0.83))
    del arms[3]["measures"]["yaw_error"]
    lines = RENDERERS["ablations"]({"arms": arms})
    assert lines[2:] == [
        "| about recipe (`recipe`) | 30.4 | 40.0 | 5.00 | 5.00 | 0.800 | 5.00 | 5.00 | 5.00 | 5.00 |",
        "| about again (`again`) | 30.4 | 41.0 | 5.00 | 5.00 | 0.810 | 5.00 | 5.00 | 5.00 | 5.00 |",
        "| about worse (`worse`) | 30.4 | **44.0** | 5.00 | 5.00 | **0.700** | 5.00 | 5.00 | 5.00 | 5.00 |",
        "| about better (`better`) | 30.4 | *30.0* | 5.00 | 5.00 | *0.900* | | 5.00 | 5.00 | 5.00 |",
        "| about little (`little`) | 30.4 | 41.6 | 5.00 | 5.00 | 0.830 | 5.00 | 5.00 | 5.00 | 5.00 |",
    ]
