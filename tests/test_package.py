"""The wheel: the library under the name `occluded_reid`, anywhere, beside a user's own `pipeline`."""

import ast
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hatch_build import RenamedPackage, renamed
from pipeline import inference, search
from pipeline.core.label_file import LabelFile
from tests import toy

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

RENAMED = {  # a line of the library: what the wheel has
    "from pipeline.core import params": "from occluded_reid.core import params",
    "    from pipeline import inference": "    from occluded_reid import inference",
    "import pipeline.core.params": "import occluded_reid.core.params",
    'import_module(f"pipeline.methods.{name}")': 'import_module(f"occluded_reid.methods.{name}")',
    "`python -m pipeline.indexing pack FOLDER`": "`python -m occluded_reid.indexing pack FOLDER`",
    "run `python -m pipeline index`": "run `python -m occluded_reid index`",
    "see pipeline/data/parts.py, the pipeline": "see pipeline/data/parts.py, the pipeline",
    "sklearn.pipeline.Pipeline": "sklearn.pipeline.Pipeline",
}


@pytest.mark.parametrize("line", RENAMED)
def test_mentions_of_the_package_are_renamed_and_those_of_its_folder_stay(line):
    assert renamed(line) == RENAMED[line]


def test_no_import_of_the_old_name_is_left():
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(renamed(path.read_text()))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pipeline", "stages", "tests"}, path


def test_an_editable_install_is_refused():
    with pytest.raises(ValueError, match="No editable install"):
        RenamedPackage(str(ROOT), {}, None, None, str(ROOT), "wheel").initialize("editable", {})


@pytest.mark.parametrize("extra", PROJECT["project"]["optional-dependencies"])
def test_an_extra_is_in_the_group_of_its_name(extra):
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    assert set(project["optional-dependencies"][extra]) <= set(groups[extra])


def test_what_builds_the_package_is_installed_with_the_tests():
    assert PROJECT["build-system"]["requires"][0] in PROJECT["dependency-groups"]["dev"]


def test_dvc_is_installed_by_default_and_the_library_does_not_need_it():
    assert "dvc" in PROJECT["tool"]["uv"]["default-groups"]
    assert not [name for name in PROJECT["project"]["dependencies"] if name.startswith("dvc")]
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert "import dvc" not in path.read_text() and "from dvc" not in path.read_text()


# ------------------------------------------------------------------ installed


def run(*words, folder, target):
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder as `pip install --no-deps --target` leaves it, of a wheel that was made of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    build = (sys.executable, "-m", "hatchling", "build", "-d", str(folder))
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("*/pyproject.toml")).parent
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "target")
    return folder / "target"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's folder: a trained model, pictures, and a `pipeline` and `stages` of their own."""
    folder = tmp_path_factory.mktemp("mine")
    toy.trained(folder / "trained")
    (folder / "people").mkdir()
    for n, image in enumerate(toy.people().image[:5]):
        Image.fromarray(image).save(folder / "people" / f"{n}.png")
    (folder / "pipeline.py").write_text("MINE = True\n")
    (folder / "stages").mkdir()
    return folder


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_all_of_the_library(target):
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"occluded_reid"}
    library, package = ROOT / "pipeline", target / "occluded_reid"
    kinds = ("*.py", "*.yaml", "*.html", "*.js", "*.css")
    files = {path.relative_to(library) for kind in kinds for path in library.rglob(kind)}
    assert files == {path.relative_to(package) for path in package.rglob("*") if path.is_file()}


SCRIPT = """
import json, sys
import numpy as np
import pipeline
from occluded_reid import inference, search
from occluded_reid.core.resumable import compute_rows

def make():
    return lambda start, stop: {"square": np.arange(start, stop) ** 2}

if __name__ == "__main__":
    model = inference.load("trained")
    np.save("parts.npy", model.embed("people").parts.numpy())
    search.index("people", search.Embedder(model), "script.h5", "trained")
    compute_rows("squares.h5", "squares", 300, 4, make, {"index": ""}, workers=2)
    print(pipeline.MINE, sorted(name for name in sys.modules if name.split(".")[0] in ("pipeline", "dvc")))
"""


@pytest.mark.slow
def test_a_script_anywhere_embeds_to_the_bit_as_the_checkout_does(target, mine):
    (mine / "script.py").write_text(SCRIPT)
    assert run("script.py", folder=mine, target=target) == "True ['pipeline']\n"
    wanted = inference.load(mine / "trained").embed(mine / "people").parts.numpy()
    assert np.array_equal(np.load(mine / "parts.npy"), wanted)
    guessed = inference.load(mine / "trained").embed(mine / "people", guess=True).parts
    assert torch.equal(search.Gallery(mine / "script.h5").embedding(slice(None)).parts, guessed)
    squares = LabelFile(mine / "squares.h5", "squares")["square"][:]
    assert np.array_equal(squares, np.arange(300) ** 2)  # by workers that were spawned


COMMAND = "from importlib.metadata import entry_points as e; e(group='console_scripts', name='occluded-reid')"


@pytest.mark.slow
def test_the_console_command_indexes_and_searches(target, mine):
    # as the installer's own script does it
    call = f"import sys; sys.argv[0] = 'bin/occluded-reid'; {COMMAND}['occluded-reid'].load()()"
    words = ("-c", call, "index", "people", "--model", "trained", "--out", "command.h5")
    assert run(*words, folder=mine, target=target).startswith("command.h5: 5 pictures, 5 embedded now")
    near = run("-c", call, "query", "command.h5", "people/0.png", folder=mine, target=target)
    assert len(near.splitlines()) == 5
    said = run("-m", "occluded_reid.indexing", "--help", folder=mine, target=target)
    assert "python -m occluded_reid.indexing pack" in said and "pipeline.indexing" not in said


IMPORTS = """
import importlib, json, pkgutil, sys
import occluded_reid
names = [m.name for m in pkgutil.walk_packages(occluded_reid.__path__, "occluded_reid.")]
for name in names:
    if name.split(".")[-1] not in ("__main__", "detectron2"):
        importlib.import_module(name)
print(json.dumps([len(names), sorted({name.split(".")[0] for name in sys.modules})]))
"""


@pytest.mark.slow
def test_every_module_of_the_wheel_imports_without_the_checkout(target, mine):
    number, packages = json.loads(run("-c", IMPORTS, folder=mine, target=target))
    assert number > 100 and not {"pipeline", "stages", "dvc"} & set(packages)
