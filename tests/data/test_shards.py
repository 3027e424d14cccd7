"""Shards: the same samples as the dataset, readable by the webdataset library; broken ones are refused."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from portrait360.cli.main import main
from portrait360.data.dataset import PortraitDataset
from portrait360.data.shards import PortraitShards, is_shards, write_shards
from portrait360.types import DatasetError, InputError
from support.fake_portraits import write_fake_dataset


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_fake_dataset(folder / "d.zip", count=22, coarse=True)
    write_shards(folder / "d.zip", folder / "shards", per_shard=5, progress=False)
    return folder / "d.zip", folder / "shards"


def test_every_sample_lies_in_one_shard(packed):
    dataset, shards = PortraitDataset(packed[0]), PortraitShards(packed[1])
    assert is_shards(packed[1])
    assert not is_shards(packed[0])
    counts = [s.count for s in shards.shards]
    assert len(shards) == sum(counts) == len(dataset)
    assert max(counts) <= 5
    assert max(counts) - min(counts) <= 1
    assert shards.label_kind == dataset.label_kind == "coarse"
    images, masks = dataset.load_arrays()
    rows = torch.cat([dataset.cameras, dataset.body_poses], dim=1)
    seen = []
    for k, shard in enumerate(shards.shards):
        some, some_masks = shards.load(k, dataset.resolution)
        for i in range(shard.count):
            label = torch.cat([shards.cameras[shard.start + i], shards.body_poses[shard.start + i]])
            (index,) = (rows == label).all(dim=1).nonzero()[:, 0].tolist()
            assert torch.equal(some[i], images[index])
            assert torch.equal(some_masks[i], masks[index])
            seen.append(index)
    assert sorted(seen) == list(range(len(dataset)))
    assert seen != sorted(seen)


# the library leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_them(packed):
    dataset = PortraitDataset(packed[0])
    files = [str(file) for file in sorted(packed[1].glob("*.tar"))]
    found = {}
    for sample in webdataset.WebDataset(files, shardshuffle=False):
        label = json.loads(sample["json"])
        found[label["name"]] = (label, sample)
    assert sorted(found) == [dataset.name(i) for i in range(len(dataset))]
    for i in range(len(dataset)):
        label, sample = found[dataset.name(i)]
        assert torch.equal(torch.tensor(label["camera"]), dataset.cameras[i])
        assert torch.equal(torch.tensor(label["body_pose"]), dataset.body_poses[i])
        for key, expected in (("webp", dataset.image(i)), ("mask.png", dataset.mask(i))):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample[key]))), expected)


def test_images_are_averaged_down_like_those_of_a_dataset(packed):
    dataset, shards = PortraitDataset(packed[0]), PortraitShards(packed[1])
    side = dataset.resolution // 2
    images, _ = dataset.load_arrays(side)
    small, masks = shards.load(0, side)
    assert small.shape[-1] == masks.shape[-1] == side
    label = (dataset.cameras == shards.cameras[0]).all(dim=1).nonzero()[0, 0]
    assert torch.equal(small[0], images[label])


def rewrite(folder, change):
    index = json.loads((folder / "shards.json").read_text())
    change(index)
    (folder / "shards.json").write_text(json.dumps(index))


def copy_of(packed, tmp_path):
    write_shards(packed[0], tmp_path / "s", per_shard=5, progress=False)
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "shards.json").write_text("{"), "readable shards"),
        (lambda f: (f / "shards.json").unlink(), "readable shards"),
        (lambda f: rewrite(f, lambda i: i.update(version=9)), "another format"),
        (lambda f: rewrite(f, lambda i: i["shards"].pop()), "another number"),
        (lambda f: rewrite(f, lambda i: i["shards"][0].update(file="../../etc/passwd")), "missing or cut off"),
        (lambda f: (f / "labels.npy").write_bytes(b"\x93NUMPY"), "readable shards"),
        (lambda f: np.save(f / "labels.npy", np.array([{}]), allow_pickle=True), "readable shards"),
        (lambda f: np.save(f / "labels.npy", np.zeros((3, 31))), "another shape"),
        (lambda f: next(iter(sorted(f.glob("*.tar")))).unlink(), "missing or cut off"),
        (lambda f: next(iter(sorted(f.glob("*.tar")))).write_bytes(b"x"), "missing or cut off"),
    ],
)
def test_broken_folders_are_refused(packed, tmp_path, damage, said):
    folder = copy_of(packed, tmp_path)
    damage(folder)
    with pytest.raises(DatasetError, match=said):
        PortraitShards(folder)


def replaced_member(content: bytes, kind: bytes = tarfile.REGTYPE):
    """A tar like the one given, its first image replaced."""

    def damage(file):
        with tarfile.open(file) as tar:
            members = [(m, tar.extractfile(m).read()) for m in tar]
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for k, (member, old) in enumerate(members):
                new = content if k == 0 else old
                member.size = len(new)
                if k == 0 and kind != tarfile.REGTYPE:
                    member.type, member.linkname, member.size = kind, "/etc/passwd", 0
                tar.addfile(member, io.BytesIO(new))

    return damage


def image(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "damaged|holds|lacks|not a readable"),
        (lambda file: file.write_bytes(b"\x00" * 100), "damaged|holds 0"),
        (replaced_member(b"not an image"), "not a readable image"),
        (replaced_member(image(7)), "another size"),
        (replaced_member(b"", tarfile.SYMTYPE), "no image"),
    ],
)
def test_broken_shards_are_refused(packed, tmp_path, damage, said):
    folder = copy_of(packed, tmp_path)
    file = min(folder.glob("*.tar"))
    damage(file)
    rewrite(folder, lambda index: index["shards"][0].update(bytes=file.stat().st_size))
    with pytest.raises(DatasetError, match=said):
        PortraitShards(folder).load(0, 16)


def test_what_cannot_be_packed(packed, tmp_path):
    with pytest.raises(InputError, match="per_shard"):
        write_shards(packed[0], tmp_path / "s", per_shard=0)
    with pytest.raises(InputError, match="already holds shards"):
        write_shards(packed[0], packed[1])
    with pytest.raises(DatasetError, match="no dataset"):
        write_shards(tmp_path / "none.zip", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_command(packed, tmp_path, capsys):
    assert main(["dataset", "shard", str(packed[0]), "--out", str(tmp_path / "s"), "--per-shard", "4"]) == 0
    assert len(PortraitShards(tmp_path / "s")) == len(PortraitDataset(packed[0]))
    capsys.readouterr()
    assert main(["dataset", "shard", str(packed[0]), "--out", str(tmp_path / "s")]) == 2
    assert "already holds shards" in capsys.readouterr().err
