"""What depends on the whole folder: which images came before, and how often to show each person."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.data.sampling import yaw_histogram, yaw_repeats
from portrait360.photos.records import PersonOutcome, PhotoOutcome
from portrait360.photos.report import Report
from portrait360.photos.units import PhotoJob, read_photos

DUPLICATE = "duplicate"


# ---- the same image twice ----


def perceptual_hash(image: UInt8[ndarray, "H W 3"]) -> int:
    """64 bits that stay nearly the same when an image is encoded again, resized or slightly brightened.

    Which of the 8×8 lowest frequencies (cosine transform of the grey image at 64×64 pixels) are above their median.
    """
    grey = Image.fromarray(image).convert("L").resize((64, 64), Image.Resampling.BOX)
    waves = scipy.fft.dctn(np.asarray(grey, np.float64), norm="ortho")[:8, :8].ravel()  # pyright: ignore
    bits = waves > np.median(waves[1:])  # the first is the mean, far above all
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_duplicates(hashes: Sequence[int], bits: int) -> list[int | None]:
    """For each of the 64-bit `hashes`, the first earlier one that is kept and differs in at most `bits` bits, or None.

    Those with None are the ones that are kept. Two numbers that differ in n bits agree wholly in one of n + 1 groups of
    bits: only numbers that do are compared, so that the time grows about as the count.
    """
    if bits < 0:
        raise ValueError(f"bits must be at least 0, not {bits}")
    if bits >= 64:
        return [0 if index else None for index in range(len(hashes))]
    groups = bits + 1
    masks = [sum(1 << bit for bit in range(start, 64, groups)) for start in range(groups)]
    kept: list[dict[int, list[int]]] = [{} for _ in masks]
    repeats: list[int | None] = []
    for index, value in enumerate(map(int, hashes)):
        places = [known.setdefault(value & mask, []) for known, mask in zip(kept, masks, strict=True)]
        near = [i for i in itertools.chain(*places) if (int(hashes[i]) ^ value).bit_count() <= bits]
        repeats.append(min(near, default=None))
        if not near:
            for place in places:
                place.append(index)
    return repeats


@dataclass(frozen=True)
class Decisions:
    """Totals; duplicates with their sentence and repeats of the others, by (photo, person)."""

    report: Report
    duplicates: dict[tuple[int, int], str]
    repeats: dict[tuple[int, int], int]

    def decided(self, number: int, photo: PhotoOutcome) -> PhotoOutcome:
        """A photo with its duplicates rejected."""
        people = [self._person((number, index), person) for index, person in enumerate(photo.people)]
        return dataclasses.replace(photo, people=tuple(people))

    def _person(self, key: tuple[int, int], person: PersonOutcome) -> PersonOutcome:
        if key not in self.duplicates:
            return person
        return dataclasses.replace(person, reason=DUPLICATE, detail=self.duplicates[key])


def decide(job: PhotoJob, balance: int | None) -> Decisions:
    """Go through all outcomes, without images: some 200 bytes of memory for a person."""
    # Count the reasons, and collect hashes and cameras of those accepted.
    keys: list[tuple[int, int]] = []
    hashes: list[int | None] = []
    cameras: list[np.ndarray] = []
    reasons: Counter[str] = Counter()
    people = 0
    for number, kept in enumerate(read_photos(job)):
        photo = kept.outcome
        people += len(photo.people)
        if photo.reason is not None:
            reasons[photo.reason] += 1
        for index, person in enumerate(photo.people):
            if person.reason is not None:
                reasons[person.reason] += 1
                continue
            assert person.camera is not None
            keys.append((number, index))
            hashes.append(person.hash)
            cameras.append(person.camera)

    # Leave duplicates out, and repeat persons from rare sides.
    duplicates = _duplicates(job, keys, hashes)
    if duplicates:
        reasons[DUPLICATE] += len(duplicates)
    used = [i for i, key in enumerate(keys) if key not in duplicates]
    labels = torch.from_numpy(np.stack([cameras[i] for i in used])) if used else torch.zeros(0, 25)
    times = yaw_repeats(labels, balance or 1).tolist()

    # Sum up.
    report = Report(
        photos=len(job.files),
        photos_used=len({keys[i][0] for i in used}),
        people=people,
        accepted=len(used),
        images=sum(times),
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        yaw_before=_histogram(labels, [1] * len(used)),
        yaw_after=_histogram(labels, times),
    )
    repeats = {keys[i]: count for i, count in zip(used, times, strict=True)}
    return Decisions(report, duplicates, repeats)


def _duplicates(
    job: PhotoJob, keys: Sequence[tuple[int, int]], hashes: Sequence[int | None]
) -> dict[tuple[int, int], str]:
    """Persons whose image came before, with the name of the photo where it is."""
    hashed = [(key, value) for key, value in zip(keys, hashes, strict=True) if value is not None]
    earlier = find_duplicates([value for _, value in hashed], job.limits.duplicate_bits)
    found = {}
    for (key, _), first in zip(hashed, earlier, strict=True):
        if first is not None:
            found[key] = f"the same image is in {job.files[hashed[first][0][0]].name}."
    return found


def _histogram(cameras: Float[Tensor, "N 25"], times: Sequence[int]) -> tuple[int, ...]:
    repeated = cameras.repeat_interleave(torch.tensor(times, dtype=torch.long), dim=0)
    return tuple(yaw_histogram(repeated).tolist())
