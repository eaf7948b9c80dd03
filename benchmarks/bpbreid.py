"""Everything around the networks, beside the label script that BPBReID publishes.

Its file `torchreid/scripts/get_labels.py` is run as it is, at batch size 1 (at others it mixes images up).
Only what it calls is replaced: its two networks answer with the instances and fields that our stages
recorded, in the forms of detectron2 and openpifpaf. Our stages run with their networks' own answers replayed.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.pictures import Picture, pack, spread, unpack
from benchmarks.worlds import CHAIN, World, silent
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import read_index
from pipeline.labels import parsing

SCRIPT = "torchreid/scripts/get_labels.py"
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"  # the script's default
SIDES = {
    "theirs": "list and decode loose image files, resize and normalise for both networks (Mask R-CNN's short "
    "side to 800, as its configuration has it), choose the person, multiply its mask into 36 confidences, "
    "write two .npy files an image",
    "theirs_at_our_size": "the same, its configuration's 800 set to the short side of our segment.size",
    "ours_to_the_same_point": "segment and pose around their networks, and of parse: read both files, paste "
    "the masks, group the confidences, choose the person, multiply its mask into the parts' confidences; "
    "checksums, compression and fsync of all files included; images come packed from stage index",
    "ours_in_full": "the same, and the map of K + 1 labels on parse.grid, and label: y(c) and l_c",
}

FEW = 16  # pictures


class Answers(nn.Module):
    """Stands for a network: the next recorded answer at each call."""

    def __init__(self, answers: list[Any]):
        super().__init__()
        self.answers, self.next = answers, 0

    def forward(self, batch: Any) -> Any:
        """The answer to the image whose turn it is."""
        self.next += 1
        return self.answers[self.next - 1]


# ------------------------------------------------------------------ the published script


def load(checkout: Path, extra: list[str]) -> ModuleType:
    """The published script as a module; `extra` are folders that hold detectron2 and what it needs."""
    sys.path.extend(extra)
    script = checkout / SCRIPT
    if not script.is_file():
        raise params.BadInput(f"{script}: no such file. Give the folder of a checkout of VlSomers/bpbreid.")
    spec = importlib.util.spec_from_file_location("bpbreid_get_labels", script)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


class Published:
    """The script's two passes over a folder of images."""

    def __init__(self, script: ModuleType, folder: Path, world: World):
        self.script, self.folder = script, folder
        self.side = min(world.values["segment"]["size"])
        self.files = [str(folder / name) for name in _loose(world)]
        self.instances, self.fields = recorded(world)

    def run(self, own_size: bool = True) -> float:
        """CPU seconds of both passes, without building the networks.

        Without `own_size`, Mask R-CNN's short side is ours instead of the 800 of its configuration.
        """
        config = self.script.build_config_maskrcnn(CONFIG)
        if not own_size:
            config.INPUT.MIN_SIZE_TEST = self.side
        shutil.rmtree(self.folder / "masks", ignore_errors=True)
        with silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pose, mask = self._built(config)
            start = time.process_time()
            listed = self.script.get_image_paths(str(self.folder))
            assert sorted(listed) == sorted(self.files), "the script sees other images"
            for step in (pose, mask):
                step(imagery=self.files, dataset_dir=str(self.folder), is_overwrite=False)
            return time.process_time() - start

    def _built(self, config: Any) -> tuple[Any, Any]:
        import openpifpaf

        answers = Answers(self.fields)
        answers.head_metas = openpifpaf.plugins.coco.CocoKp().head_metas
        for number, meta in enumerate(answers.head_metas):
            meta.head_index, meta.base_stride = number, 16
        factory = openpifpaf.network.Factory
        with mock.patch.object(factory, "factory", lambda self, **_: (answers, 0)):
            pose = self.script.BatchPifPaf(batch_size=1, workers=0)
        factory.checkpoint = None
        with (
            mock.patch.object(self.script, "build_model", lambda _: Answers(self.instances)),
            mock.patch.object(self.script, "DetectionCheckpointer"),
        ):
            return pose, self.script.BatchMask(config, batch_size=1, workers=0)

    def kept(self, row: int) -> np.ndarray:
        """What the script wrote for an image."""
        name = os.path.relpath(self.files[row], self.folder)
        return np.load(self.folder / "masks" / "pifpaf_maskrcnn_filtering" / f"{name}.npy")


def recorded(world: World) -> tuple[list, list]:
    """Our instances and fields as detectron2 and openpifpaf return them, an image a call."""
    from detectron2.structures import Boxes, Instances

    index = read_index(world.path("index.parquet"))
    found = LabelFile(world.path("instances.h5"), "instances")
    confidence = LabelFile(world.path("fields.h5"), "fields")["confidence"]
    instances, fields = [], []
    for i, size in enumerate(index[["height", "width"]].to_numpy().tolist()):
        count = int(found["found"][i])
        box, mask = found["box"][i][:count], found["mask"][i][:count]
        whole = [
            parsing.paste_mask(m, b, tuple(size), tuple(size)) > 0.5 for m, b in zip(mask, box, strict=True)
        ]
        one = Instances(tuple(size))
        one.pred_boxes, one.scores = Boxes(torch.from_numpy(box)), torch.from_numpy(found["score"][i][:count])
        one.pred_classes = torch.zeros(count, dtype=torch.int64)
        one.pred_masks = torch.from_numpy(np.stack(whole))
        instances.append([{"instances": one}])
        fields.append(_heads(torch.from_numpy(confidence[i]).float() / 255))
    return instances, fields


def _heads(confidence: torch.Tensor) -> list[torch.Tensor]:
    heads = []
    for part, components in ((confidence[:17], 5), (confidence[17:], 8)):
        head = torch.zeros(1, len(part), components, *part.shape[1:])
        head[0, :, 1] = part
        heads.append(head)
    return heads


def _loose(world: World) -> list[str]:
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    index = read_index(world.path("index.parquet"))
    return [f"{folders[key.split('/', 1)[0]]}/{key.split('/', 1)[1]}" for key in index["key"]]


# ------------------------------------------------------------------ side by side


class Contest:
    """Both sides on the same pictures, with the same instances and fields."""

    def __init__(self, script: ModuleType, folder: Path, pictures: list[Picture]):
        self.count, self.world = len(pictures), World(folder / "ours")
        pack(self.world.path("raw.zip"), pictures)
        self.world.run("index")
        self.answers = {stage: self.world.run(stage, keep=True)[1] for stage in CHAIN}
        unpack(folder / "theirs", pictures)
        self.theirs = Published(script, folder / "theirs", self.world)

    def round(self) -> np.ndarray:
        """CPU seconds of each of `SIDES`, one after the other."""
        return np.array([self.theirs.run(), self.theirs.run(own_size=False), *self._ours()])

    def _ours(self) -> tuple[float, float]:
        """The four stages without their networks: to the script's point, and in full."""
        with _map_timed() as spent:
            costs = {stage: self.world.run(stage, self.answers[stage])[0].images for stage in CHAIN}
        full = sum(costs.values()) - spent.product
        return full - costs["label"] - spent.map + spent.product, full

    def bytes(self) -> dict[str, float]:
        """What both sides wrote."""
        written = {"theirs": self.theirs.folder.rglob("*.npy")}
        written["ours"] = (
            self.world.path(f"{n}.h5") for n in ("instances", "fields", "parsing", "occlusion")
        )
        return {s: round(sum(p.stat().st_size for p in w) / self.count, 1) for s, w in written.items()}

    def agreement(self) -> float:
        """Share of the images in which both kept the same person's confidences."""
        chosen, same = LabelFile(self.world.path("parsing.h5"), "parsing")["instance"][:], []
        for i, (heads, answer) in enumerate(zip(self.theirs.fields, self.theirs.instances, strict=True)):
            kept, masks = self.theirs.kept(i), answer[0]["instances"].pred_masks.numpy().astype(np.uint8)
            mask = cv2.resize(masks[chosen[i]], kept.shape[:0:-1])
            confidence = torch.cat([head[0, :, 1] for head in heads]).numpy()
            same.append(chosen[i] >= 0 and np.array_equal(mask * confidence, kept))
        return round(float(np.mean(same)), 4)


def compare(
    checkout: Path, extra: list[str], folder: Path, pictures: list[Picture], rounds: int
) -> dict[str, Any]:
    """CPU ms an image of both sides, in turn, in one process with one thread.

    Only pictures in which somebody was found, as the script cannot handle others.  A run on a few of them
    is taken off, so that beginning and end, which do not grow with the images, count for neither side.
    """
    script = load(checkout, extra)
    pictures = _with_person(folder / "all", pictures)
    few = Contest(script, folder / "few", spread(pictures, FEW))
    many = Contest(script, folder / "many", pictures)
    few.round()  # whatever is built at the first use
    turns = [(few.round(), many.round()) for _ in range(rounds)]
    each = np.array(turns) * 1e3  # rounds, few or many, sides
    figures = {}
    for name, middle in (("minimum", np.min), ("median", np.median)):
        short, long = middle(each, 0)
        figures[name] = dict(zip(SIDES, (long - short) / (many.count - few.count), strict=True))
    return {
        "images": many.count,
        "rounds": rounds,
        "what": SIDES,
        "cpu_ms_per_image": {n: {s: round(float(v), 3) for s, v in f.items()} for n, f in figures.items()},
        "theirs_to_ours": {name: _ratios(figure) for name, figure in figures.items()},
        "same_person_chosen": many.agreement(),
        "bytes_per_image": many.bytes(),
    }


def _ratios(figure: dict[str, float]) -> dict[str, float]:
    theirs, ours = list(SIDES)[:2], list(SIDES)[2:]
    return {f"{a} / {b}": round(float(figure[a] / figure[b]), 2) for a in theirs for b in ours}


def _with_person(folder: Path, pictures: list[Picture]) -> list[Picture]:
    world = World(folder)
    pack(world.path("raw.zip"), pictures)
    for stage in ("index", "segment"):
        world.run(stage)
    index, found = read_index(world.path("index.parquet")), LabelFile(world.path("instances.h5"))
    keys = {key for key, count in zip(index["key"], found["found"][:], strict=True) if count}
    return [picture for picture in pictures if picture[0] in keys]


@contextlib.contextmanager
def _map_timed() -> Iterator[SimpleNamespace]:
    """Times `parsing.fuse`, and beside it the bare product of mask and confidences, cell by cell."""
    original, spent = parsing.fuse, SimpleNamespace(map=0.0, product=0.0)

    def fuse(confidence: np.ndarray, mask: np.ndarray, *rest: Any) -> np.ndarray:
        begin = time.process_time()
        np.multiply(confidence, cv2.resize(mask, confidence.shape[:0:-1], interpolation=cv2.INTER_AREA))
        middle = time.process_time()
        answer = original(confidence, mask, *rest)
        spent.product += middle - begin
        spent.map += time.process_time() - middle
        return answer

    with mock.patch.object(parsing, "fuse", fuse):
        yield spent
