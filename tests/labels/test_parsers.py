"""One network over every image: its weights are checked before any worker starts."""

import dataclasses
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pipeline.core import params, resumable
from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.labels import parsers, segmentation
from pipeline.labels.pose_params import Pose
from pipeline.training.schedule import Schedule
from stages.index import main as index_stage
from tests.indexing.test_build import people, zipped

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """An index and its images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    zipped(tmp_path / "raw.zip", people())
    index_stage("folders", "raw.zip", "index.parquet", "images.h5", "truth.h5")


def parser(load) -> ModuleType:
    module = ModuleType("parser")
    module.KIND, module.load = "instances", load
    module.weights_file = lambda settings, path: Path(path)
    module.libraries = lambda settings: ()
    return module


@pytest.mark.parametrize("section", [segmentation.Segment, Pose, Schedule])
def test_the_number_of_processes_is_no_param_of_a_section(section):
    # so that neither a stage's result nor its place in DVC's cache depends on it
    assert "processes" not in {field.name for field in dataclasses.fields(section)}


def test_weights_that_do_not_fit_end_the_stage_before_a_worker_starts(dataset, monkeypatch):
    def refuse(settings, path):
        raise BadInput(f"{path}: made for another network")

    monkeypatch.setattr(resumable, "_run_workers", lambda *args: pytest.fail("a worker was started"))
    Path("weights").write_bytes(b"abc")
    settings = params.read(ROOT / "params.yaml", "segment", segmentation.Segment)
    with pytest.raises(BadInput, match="weights: made for another network"):
        parsers.run_parser(parser(refuse), settings, "index.parquet", "images.h5", "weights", "out.h5", 1)
    assert not Path("out.h5").exists()


def test_the_check_needs_no_gpu_and_the_file_records_weights_and_params(dataset, monkeypatch):
    devices = []

    def load(settings, path):
        devices.append(settings.device)
        return SimpleNamespace(attrs={"stride": 8})

    def run_here(out, kind, count, batch, make, attrs, *rest):
        write_label_file(out, kind, {"found": np.zeros(count, np.int32)}, attrs)

    monkeypatch.setattr(parsers, "compute_rows", run_here)
    Path("weights").write_bytes(b"abc")
    settings = params.read(ROOT / "params.yaml", "segment", segmentation.Segment)
    settings = dataclasses.replace(settings, device="cuda")
    parsers.run_parser(parser(load), settings, "index.parquet", "images.h5", "weights", "out.h5", 1)
    attrs = LabelFile("out.h5", "instances").attrs
    assert devices == ["cpu"] and attrs["stride"] == 8
    assert attrs["weights"].startswith("ba7816bf")
    assert attrs["params"] == params.load(ROOT / "params.yaml")["segment"] | {"device": "cuda"}
