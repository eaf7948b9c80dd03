"""dvc.yaml tells the truth: a stage depends on what it imports and reads, and on nothing else."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.stage.serialize import to_pipeline_file
from ruamel.yaml import YAML
from scmrepo.git import Git

ROOT = Path(__file__).parent.parent
DAG = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
METHODS = sorted(p.stem for p in (ROOT / "pipeline" / "methods").glob("*.py") if p.stem != "__init__")
LAYOUTS = sorted(p.stem for p in (ROOT / "pipeline/datasets/layouts").glob("*.py") if p.stem != "__init__")
STAGES = {name: stage.get("do", stage) for name, stage in DAG["stages"].items()}

# A module may import those before it, never those after it: the order data flows.
FLOW = """
    params machine arithmetic store processes weights parts synthetic obstacles datasets segmentation pose
    parsing outside occlusion survey scoring sheets audit batches resident vit losses method methods
    training features ranking inference export figures studies pretraining
""".split()  # noqa: SIM905


def fill(text: str, **chosen: str | dict[str, str]) -> str:
    """`${name.of.a.param}` as in params.yaml or `chosen`; what only a foreach knows stays."""

    def value(match: re.Match) -> str:
        node = PARAMS | chosen
        for part in match[1].split("."):
            if not isinstance(node, dict) or part not in node:
                return match[0]
            node = node[part]
        return str(node)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, wherever in it the import stands; empty ones aside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] in ("pipeline", "stages")]
    prefixes = {tuple(p[: n + 1]) for p in parts for n in range(len(p))}
    files = {ROOT.joinpath(*p).with_suffix(".py") for p in prefixes}
    files |= {ROOT.joinpath(*p, "__init__.py") for p in prefixes}
    return {f for f in files if f.is_file() and f.stat().st_size > 0}


def closure(roots: set[Path]) -> set[Path]:
    seen: set[Path] = set()
    while roots:
        seen |= roots
        roots = set().union(*(imported(path) for path in roots)) - seen
    return seen


def names_of(entries: list) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or []]


CHOICES = [(m, LAYOUTS[0]) for m in METHODS] + [(METHODS[0], layout) for layout in LAYOUTS[1:]]


@pytest.mark.parametrize(("method", "layout"), CHOICES)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(name, method, layout):
    declared = [d for d in names_of(STAGES[name]["deps"]) if d.endswith(".py")]
    named = {d: fill(d, method=method, item={"layout": layout}) for d in declared}
    by_name = {ROOT / path for d, path in named.items() if "${" in d}  # a param gives the name
    wanted = closure({ROOT / "stages" / f"{name}.py"} | by_name)
    assert sorted(named.values()) == sorted(str(p.relative_to(ROOT)) for p in wanted)


def test_training_depends_on_the_params_of_the_chosen_method_alone():
    assert set(METHODS) <= set(PARAMS)
    for method in METHODS:
        tracked = {fill(name, method=method) for name in STAGES["train"]["params"]}
        assert tracked & set(METHODS) == {method}


@pytest.mark.parametrize("name", STAGES)
def test_the_words_of_a_command_are_its_data_dependencies_then_its_outputs(name):
    stage = STAGES[name]
    words = shlex.split(stage["cmd"])
    assert words[:3] == ["python", "-m", f"stages.{name}"]  # -m: an experiment's copy imports itself
    data = [d for d in names_of(stage["deps"]) if not d.endswith(".py")]
    outs = names_of(stage.get("metrics")) + names_of(stage.get("outs"))
    paths = [word for word in words[3:] if "/" in word or word.startswith("${")]
    paths = [path for path in paths if path != "${item.layout}"]
    assert paths[: len(data)] == data and sorted(paths[len(data) :]) == sorted(outs)


def test_every_stage_is_a_file_and_every_file_a_stage():
    files = {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__", "export", "pretrain", "study"}
    assert files == set(STAGES)


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def test_imports_run_with_the_flow_of_data():
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        if path.parent == ROOT / "pipeline" and path.stem == "__init__":
            continue
        own = FLOW.index(module_of(path))
        for other in imported(path):
            assert "stages" not in other.relative_to(ROOT).parts, f"{path} imports a stage"
            assert FLOW.index(module_of(other)) <= own, f"{path} imports {other}, which lies downstream"


def test_methods_do_not_import_each_other():
    methods = ROOT / "pipeline" / "methods"
    for path in methods.glob("*.py"):
        assert not {f for f in imported(path) if f.parent == methods and f != path}


def test_every_output_is_a_named_artifact():
    artifacts = {entry["path"] for entry in DAG["artifacts"].values()}
    for stage in STAGES.values():
        for out in names_of(stage.get("outs")):
            assert re.sub(r"\$\{(key|item)\}", "embedded", out) in artifacts


def test_only_labels_and_what_follows_depend_on_lambda():
    assert {name for name, stage in STAGES.items() if "lambda" in stage["params"]} == {"label", "score"}


@pytest.mark.parametrize("name", ["segment", "pose"])
def test_a_parser_depends_on_all_of_its_params_but_how_many_processes_share_it(name):
    assert set(STAGES[name]["params"]) == {"parsers"} | {f"{name}.{p}" for p in PARAMS[name]} - {
        f"{name}.processes"
    }


def test_parsers_are_imported_by_their_stages_alone():
    for name in STAGES:
        files = closure({ROOT / "stages" / f"{name}.py"})
        text = "\n".join(path.read_text() for path in files)
        assert ("openpifpaf" in text and "import openpifpaf" in text) == (name == "pose")


def stages_with(folder: Path, **changed: object) -> dict[str, dict]:
    """Every stage as DVC resolves it, for params.yaml with other values."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    YAML().dump(PARAMS | changed, folder / "params.yaml")
    with Repo.init(str(folder), no_scm=True, force=True) as repo:
        return {stage.name: to_pipeline_file(stage) for stage in repo.index.stages}


def test_another_dataset_and_test_set_leave_the_training_as_it_is(tmp_path):
    before = stages_with(tmp_path)
    added = PARAMS["datasets"] | {"occreid": {"layout": "occluded_reid", "archive": "data/raw/occreid.zip"}}
    after = stages_with(tmp_path, datasets=added, parse_on=list(added), test_on=["embedded", "occreid"])
    chain = ("index", "segment", "pose", "parse", "label", "score", "embed", "evaluate", "draw")
    assert after.keys() - before.keys() == {f"{name}@occreid" for name in chain}
    assert {name: after[name] for name in before} == before
    new = after["index@occreid"]["index@occreid"]
    assert "pipeline/datasets/layouts/occluded_reid.py" in new["deps"]
    assert "models/trained" in after["embed@occreid"]["embed@occreid"]["deps"]


def test_the_cmc_curve_is_that_of_the_first_test_set(tmp_path):
    (curve,) = DAG["plots"]
    assert list(curve["CMC"]["y"]) == ["data/${test_on[0]}/cmc.csv"]


def test_archives_are_ignored_by_git_and_what_dvc_knows_of_them_is_not():
    # DVC does not look into a folder that is ignored as such
    git = Git(str(ROOT))
    ignored = [path for path in ("", "a.zip", "a.zip.dvc", "a/b.png") if git.is_ignored(f"data/raw/{path}")]
    assert ignored == ["a.zip", "a/b.png"]


def test_training_follows_train_on(tmp_path):
    other = {"market1501": {"layout": "market1501", "archive": "data/raw/market1501.zip"}}
    stage = stages_with(tmp_path, datasets=other, train_on="market1501", test_on=["market1501"])["train"]
    assert "data/market1501/index.parquet" in stage["train"]["deps"]
