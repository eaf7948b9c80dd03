"""A test set as the stages leave it, and trained models as the stage `embed` uses them: what `draw` reads.

Both raise `BadInput` for files that are not there, or that belong to another index.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer

from pipeline.batches.views import Batch, stream_eval_batches
from pipeline.core import distributed, params
from pipeline.core.files import sha256
from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.core.workers import progress_bar
from pipeline.data.index import Images, index_hash, read_index
from pipeline.inference.extract import Embed, model_cameras, rows_to_embed
from pipeline.methods.base import load_trained, read_record
from pipeline.model.compute import Compute, inference_mode
from pipeline.model.vit import OcclusionAwareViT
from pipeline.ranking import Embedded, Ranking, rank, report


class EvaluatedSet:
    """A test set that `evaluate` has ranked, with the params that `embed` and `evaluate` have."""

    def __init__(self, folder: Path, config: str):
        self.folder = folder
        self.embed = params.read(config, "embed", Embed)
        self.evaluate = params.read(config, "evaluate", report.Evaluate)
        self.index = read_index(folder / "index.parquet")
        self.key = index_hash(self.index)
        self.images = Images(folder / "images.h5", self.key)
        self.parsing = LabelFile(folder / "parsing.h5", "parsing", self.key)
        self.labels = LabelFile(folder / "occlusion.h5", "occlusion", self.key)

    @property
    def hidden(self) -> Integer[np.ndarray, "N C"]:
        """z of every image."""
        return self.labels["occluded"][:]

    @property
    def queries(self) -> pd.DataFrame:
        """The table of `evaluate`."""
        path = self.folder / "queries.parquet"
        if not path.is_file():
            raise BadInput(f"{path}: no such file. Run `dvc repro evaluate`, or `dvc pull` to fetch it.")
        table = pd.read_parquet(path)
        if table["key"].tolist() != self.index.loc[self.index["split"] == "query", "key"].tolist():
            raise BadInput(f"{path}: not the queries of index.parquet beside it. Run `dvc repro evaluate`.")
        return table

    def rankings(self, model: str, beside: str, top: int) -> dict[str, Ranking]:
        """How two systems rank the gallery for every query, each by its name in `embedded`."""
        if model == beside:
            raise BadInput(f"--beside = {beside}: the same as --model. Name another system.")
        options, device = self.evaluate, distributed.local_device().type
        sides = {name: self.embedded(name) for name in (model, beside)}
        return {
            name: rank(*side, options.metric, options.ap, options.memory, top, device, title=f"rank {name}")
            for name, side in sides.items()
        }

    def embedded(self, name: str) -> tuple[Embedded, Embedded]:
        """Queries and gallery by a system of `features.h5`, by another such file, or by a trained folder."""
        if Path(name).is_dir():
            return TrainedModel(name, self).embedded()
        if Path(name).is_file():
            return report.embedded(LabelFile(name, "features", self.key), self.index, "model")
        features = LabelFile(self.folder / "features.h5", "features", self.key)
        systems = features.attrs["systems"]
        if name not in systems:
            raise BadInput(
                f"{name}: no such file or folder, and no system that `evaluate` ranks "
                f"({', '.join(systems)}). Name one of these, a features.h5, or a folder of a trained model."
            )
        return report.embedded(features, self.index, name)


class TrainedModel:
    """The trained model in a folder, as the stage `embed` uses it."""

    def __init__(self, folder: str, test_set: EvaluatedSet):
        self.folder, self.test_set = folder, test_set
        self.device = distributed.local_device()
        self.model = load_trained(folder).to(self.device)
        self.encoder = cast(OcclusionAwareViT, self.model.encoder)  # which every method has
        record = read_record(folder)
        self.method = record["method"]
        self.title = f"{self.method} ({folder})"
        self.camid = model_cameras(
            test_set.index, record, sha256(test_set.folder / "index.parquet"), test_set.embed.cameras
        ).camid

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it the model computes as `embed` says, and what it lacks is said of its folder."""
        options = self.test_set.embed
        settings = Compute(options.precision, options.matmul, options.attention)
        try:
            with torch.inference_mode(), inference_mode(self.model, self.device, settings):
                yield
        except BadInput as error:
            raise BadInput(f"{self.folder}: {error}") from None

    def batches(self, rows: Integer[np.ndarray, "n"], count: int) -> Iterator[Batch]:
        """Batches of these rows of the index, on the device."""
        test_set, size = self.test_set, self.encoder.size
        table = test_set.index.assign(camid=self.camid)
        sources = test_set.images, test_set.parsing, test_set.labels
        for batch in stream_eval_batches(table, *sources, rows, size, count):
            yield batch.to(self.device)

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows of the index as one batch."""
        return next(self.batches(np.asarray(rows), len(rows)))

    def embedded(self) -> tuple[Embedded, Embedded]:
        """Queries and gallery as the model embeds them."""
        index = self.test_set.index
        rows = rows_to_embed(index)
        with self.computing(), progress_bar(total=len(rows), desc=f"embed {self.folder}") as bar:
            embeddings = []
            for batch in self.batches(rows, self.test_set.embed.batch):
                embeddings.append(self.model.embed(batch))
                bar.update(len(batch.pid))
        parts, visibility, gate = (
            None if column[0] is None else torch.cat([tensor.float().cpu() for tensor in column])
            for column in zip(*((e.parts, e.visibility, e.gate) for e in embeddings), strict=True)
        )
        tested, queries = index.iloc[rows], int((index["split"] == "query").sum())
        camid = tested["camid"].to_numpy() if len(report.camera_sides(index)) == 2 else np.full(len(rows), -1)
        images = Embedded(parts, visibility, tested["pid"].to_numpy(), camid, keys=tested["key"].tolist())
        return replace(images[:queries], gate=None if gate is None else gate[:queries]), images[queries:]
