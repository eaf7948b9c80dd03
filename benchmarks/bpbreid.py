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
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.pictures import Picture, pack, unpack
from benchmarks.worlds import CHAIN, World, silent
from pipeline import datasets, parsing, store

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
        raise store.BadInput(f"{script}: no such file. Give the folder of a checkout of VlSomers/bpbreid.")
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

    def channels(self, row: int) -> np.ndarray:
        """What the script wrote for an image."""
        name = os.path.relpath(self.files[row], self.folder)
        return np.load(self.folder / "masks" / "pifpaf_maskrcnn_filtering" / f"{name}.npy")


def recorded(world: World) -> tuple[list, list]:
    """Our instances and fields as detectron2 and openpifpaf return them, an image a call."""
    from detectron2.structures import Boxes, Instances

    index = datasets.read_index(world.path("index.parquet"))
    found = store.Rows(world.path("instances.h5"), "instances")
    confidence = store.Rows(world.path("fields.h5"), "fields")["confidence"]
    instances, fields = [], []
    for i, size in enumerate(index[["height", "width"]].to_numpy().tolist()):
        count = int(found["found"][i])
        box, mask = found["box"][i][:count], found["mask"][i][:count]
        whole = [parsing.paste(m, b, tuple(size), tuple(size)) > 0.5 for m, b in zip(mask, box, strict=True)]
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
    index = datasets.read_index(world.path("index.parquet"))
    return [f"{folders[key.split('/', 1)[0]]}/{key.split('/', 1)[1]}" for key in index["key"]]


# ------------------------------------------------------------------ side by side


def compare(
    checkout: Path, extra: list[str], folder: Path, pictures: list[Picture], rounds: int
) -> dict[str, Any]:
    """Both sides in turn on the pictures in which somebody was found; CPU seconds, one process, one thread.

    The script cannot handle an image without a person.
    """
    script = load(checkout, extra)
    world = World(folder / "ours")
    pictures = _with_person(world, pictures)
    answers = {stage: world.run(stage, keep=True)[1] for stage in CHAIN}
    unpack(folder / "theirs", pictures)
    theirs = Published(script, folder / "theirs", world)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        taken = (theirs.run(), theirs.run(own_size=False), *_ours(world, answers))
        for side, spent in zip(SIDES, taken, strict=True):
            seconds[side].append(spent)
    return {
        "images": len(pictures),
        "rounds": rounds,
        "what": SIDES,
        "cpu_ms_per_image": {side: _summary(s, len(pictures)) for side, s in seconds.items()},
        "theirs_to_ours": {
            f"{a} / {b}": _ratio(seconds[a], seconds[b])
            for a in ("theirs", "theirs_at_our_size")
            for b in ("ours_to_the_same_point", "ours_in_full")
        },
        "same_person_chosen": _agreement(theirs, world),
    }


def _with_person(world: World, pictures: list[Picture]) -> list[Picture]:
    pack(world.path("raw.zip"), pictures)
    for stage in ("index", "segment"):
        world.run(stage)
    index, found = datasets.read_index(world.path("index.parquet")), store.Rows(world.path("instances.h5"))
    keys = {key for key, count in zip(index["key"], found["found"][:], strict=True) if count}
    pictures = [picture for picture in pictures if picture[0] in keys]
    pack(world.path("raw.zip"), pictures)
    world.run("index")
    return pictures


def _ours(world: World, answers: dict[str, list]) -> tuple[float, float]:
    """CPU seconds of the four stages without their networks: to the script's point, and in full."""
    costs = {}
    with _map_timed() as spent:
        for stage in CHAIN:
            costs[stage] = world.run(stage, answers[stage])[0]
    full = sum(cost.images for cost in costs.values()) - spent.product
    return full - costs["label"].images - spent.map + spent.product, full


@contextlib.contextmanager
def _map_timed() -> Iterator[SimpleNamespace]:
    """Times `parsing.fuse`, and beside it the bare product of mask and confidences, cell by cell."""
    original, spent = parsing.fuse, SimpleNamespace(map=0.0, product=0.0)

    def fuse(confidence: np.ndarray, mask: np.ndarray, *rest: Any) -> np.ndarray:
        begin = time.process_time()
        confidence * cv2.resize(mask, confidence.shape[:0:-1], interpolation=cv2.INTER_AREA)
        middle = time.process_time()
        answer = original(confidence, mask, *rest)
        spent.product += middle - begin
        spent.map += time.process_time() - middle
        return answer

    with mock.patch.object(parsing, "fuse", fuse):
        yield spent


def _summary(seconds: list[float], images: int) -> dict[str, float]:
    return {
        "minimum": round(1e3 * min(seconds) / images, 3),
        "median": round(1e3 * median(seconds) / images, 3),
    }


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    return {
        "of_minima": round(min(theirs) / min(ours), 2),
        "of_medians": round(median(theirs) / median(ours), 2),
    }


def _agreement(theirs: Published, world: World) -> float:
    """Share of the images in which both kept the same person: theirs is nonzero where its mask is."""
    chosen = store.Rows(world.path("parsing.h5"), "parsing")["instance"][:]
    same = []
    for i, answer in enumerate(theirs.instances):
        masks = answer[0]["instances"].pred_masks.numpy().astype(np.uint8)
        kept = theirs.channels(i)
        mask = cv2.resize(masks[chosen[i]], kept.shape[:0:-1])
        same.append(chosen[i] >= 0 and np.array_equal(mask * _confidence(theirs.fields[i]), kept))
    return round(float(np.mean(same)), 4)


def _confidence(heads: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([head[0, :, 1] for head in heads]).numpy()
