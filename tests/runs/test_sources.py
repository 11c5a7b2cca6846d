"""The commands of docs/sources.md run as written, on small data sets in the layouts that the page names."""

import argparse
import glob
import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest
from helpers.image_sources import WNIDS, imagenet, imagenet_row, picture, write_parquet, write_tar, write_tree
from helpers.launch import ROOT

from pipelines.records.reader import Records
from tools import convert

PAGE = (ROOT / "docs" / "sources.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


def lay_out_imagenet(root: Path) -> None:
    """Its own archives, Kaggle's download, the hub's Parquet files, shards, and the lists of ImageNet-LT."""
    train = imagenet()
    wnids = list(WNIDS)
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": picture(100 + number) for number in range(6)}
    tars = {}
    for wnid in wnids:
        inner = {name.split("/")[1]: data for name, data in train.items() if name.startswith(wnid)}
        tars[f"{wnid}.tar"] = write_tar(root / "inner.tar", inner).read_bytes()
    write_tar(root / "ILSVRC2012_img_train.tar", tars)
    write_tar(root / "ILSVRC2012_img_val.tar", val)
    write_tree(root / "ILSVRC/Data/CLS-LOC/train", train)
    write_tree(root / "ILSVRC/Data/CLS-LOC/val", val)
    with zipfile.ZipFile(root / "imagenet-object-localization-challenge.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in train.items():
            archive.writestr(f"ILSVRC/Data/CLS-LOC/train/{name}", data)
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {names}\n" for wnid, names in WNIDS.items()))
    solution = [f"{name[:-5]},{wnids[number % 3]} 1 2 3 4\n" for number, name in enumerate(val)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(solution))
    (root / "ImageNet_LT_train.txt").write_text(
        "".join(f"train/{n} {i // 4}\n" for i, n in enumerate(train) if i % 4 < 3)
    )
    lines = [f"val/{wnids[number % 3]}/{name} {number % 3}\n" for number, name in enumerate(val)]
    (root / "ImageNet_LT_test.txt").write_text("".join(lines))
    rows = [imagenet_row(*image) for image in train.items()]
    for number in range(2):
        path = root / f"data/train-{number:05d}-of-00002.parquet"
        write_parquet(path, rows[6 * number : 6 * number + 6], list(WNIDS.values()))
    rows = [imagenet_row(f"{wnids[number % 3]}/{name}", data) for number, (name, data) in enumerate(val.items())]
    write_parquet(root / "data/validation-00000-of-00001.parquet", rows, list(WNIDS.values()))
    for number in range(2):
        shard: dict[str, bytes] = {}
        for name, data in list(train.items())[6 * number : 6 * number + 6]:
            key, label = name.split("/")[1][:-5], wnids.index(name.split("/")[0])
            shard |= {f"{key}.cls": b"%d" % label, f"{key}.jpg": data, f"{key}.json": b'{"label": %d}' % label}
        write_tar(root / f"shards/imagenet-train-{number:06d}.tar", shard)


def lay_out_inaturalist(root: Path) -> None:
    images = {f"train_val2018/Aves/{number % 3}/{number:03x}.jpg": picture(number) for number in range(9)}
    write_tar(root / "train_val2018.tar.gz", images, "w:gz")
    write_tree(root / "INATURALIST", images)
    categories = [{"id": number, "name": f"species {number}"} for number in range(3)]
    for split, names in (("train", list(images)[:6]), ("val", list(images)[6:])):
        listed = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        labels = [{"image_id": number, "category_id": int(name.split("/")[2])} for number, name in enumerate(names)]
        content = {"images": listed, "annotations": labels, "categories": categories}
        (root / f"{split}2018.json").write_text(json.dumps(content))
    names = list(images)[:6]
    (root / "iNaturalist18_train.txt").write_text("".join(f"{name} {name.split('/')[2]}\n" for name in names))
    rows = [{"fpath": f"/data/iNat18/{name}", "category_id": int(name.split("/")[2])} for name in names]
    (root / "iNat18_train.json").write_text(json.dumps({"annotations": rows, "num_classes": 3}))


def lay_out_places(root: Path) -> None:
    images = {f"{folder}/{number:08d}.jpg": picture(number) for number, folder in enumerate(("a/arch", "b/bar/inside"))}
    write_tree(root / "PLACES", {f"data_256/{name}": data for name, data in images.items()})
    easy = {re.sub(r"/(?=.*/)", "-", name[2:]): data for name, data in images.items()}
    write_tar(
        root / "places365standard_easyformat.tar", {f"places365_standard/train/{n}": data for n, data in easy.items()}
    )
    (root / "Places_LT_train.txt").write_text("".join(f"data_256/{name} {i}\n" for i, name in enumerate(images)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    mine = {f"{name}/{number}.jpg": picture(number) for name in ("ant", "bee") for number in range(5)}
    write_tree(root / "MY_IMAGES", mine)
    write_tar(root / "MY_IMAGES.tar", mine)
    write_tar(root / "EVERYTHING.tar", {f"images/train/{name}": data for name, data in mine.items()})
    lay_out_imagenet(root)
    lay_out_inaturalist(root)
    lay_out_places(root)
    return root


EXPECTED = {  # images of each file that the page's commands write
    "mine": 10,
    "mine_tar": 10,
    "mine_split/train": 8,
    "mine_split/val": 2,
    "imagenet/train": 12,
    "imagenet_lt/train": 9,
    "imagenet_lt/test": 6,
    "kaggle/train": 12,
    "kaggle/train_zip": 12,
    "kaggle/val": 6,
    "kaggle/test": 6,
    "hub/train": 12,
    "hub/train_lt": 9,
    "hub/test_lt": 6,
    "inat18/train": 6,
    "inat18/val": 3,
    "inat18/train_txt": 6,
    "inat18/train_fpath": 6,
    "places_lt/train": 2,
    "places_lt/train_easy": 2,
    "shards/train": 12,
    "shards/train_json": 12,
    "shards/train_lt": 9,
}
SAME = [  # files whose names, labels and images are the same, whatever order they have
    ("mine", "mine_tar"),
    ("imagenet/train", "hub/train", "kaggle/train", "kaggle/train_zip"),
    ("imagenet_lt/train", "hub/train_lt", "shards/train_lt"),
    ("imagenet_lt/test", "kaggle/test", "hub/test_lt"),
    ("inat18/train", "inat18/train_txt", "inat18/train_fpath"),
    ("places_lt/train", "places_lt/train_easy"),
    ("shards/train", "shards/train_json"),
]


def test_every_command_of_the_page_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, apart from the number of workers; a copy of the same images gives the same digest."""
    monkeypatch.chdir(root)
    for command in COMMANDS:
        python, script, *words = shlex.split(command)
        assert (python, script) == ("python", "tools/convert.py")
        expanded = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert convert.main([*expanded, "--workers", "0"]) == 0, command
    made = {
        str(path.relative_to(root / "data").with_suffix("")): Records(path) for path in (root / "data").rglob("*.beton")
    }
    assert {name: len(records) for name, records in made.items()} == EXPECTED
    for names in SAME:
        assert len({made[name].digest for name in names}) == 1, names
    assert made["kaggle/train"].class_names == made["kaggle/val"].class_names == list(WNIDS)
    assert made["inat18/train"].class_names == made["inat18/val"].class_names == [f"species {n}" for n in range(3)]


def test_every_option_of_these_commands_is_documented() -> None:
    """Here or in storage.md."""
    used = {shlex.split(command)[2] for command in COMMANDS}
    assert used == {"folder", "list", "parquet", "webdataset"}
    pages = PAGE + (ROOT / "docs" / "storage.md").read_text()
    documented = set(re.findall(r"--[a-z][a-z-]*", pages)) | {"--help", "--force"}
    commands = next(found for found in convert.build_parser()._actions if isinstance(found, argparse._SubParsersAction))
    for name in used:
        options = {option for found in commands.choices[name]._actions for option in found.option_strings}
        assert {option for option in options if option.startswith("--")} <= documented, name
