"""dvc.yaml tells the truth: a stage depends on what it imports and reads, and on nothing else."""

import ast
import itertools
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.stage.serialize import to_pipeline_file
from ruamel.yaml import YAML
from scmrepo.git import Git

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.indexing import datasets
from pipeline.labels import pose_params

ROOT = Path(__file__).parents[2]
DAG = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
METHODS = sorted(path.parent.name for path in (ROOT / "pipeline/methods").glob("*/__init__.py"))
LAYOUTS = sorted(p.stem for p in (ROOT / "pipeline/indexing/layouts").glob("*.py") if p.stem != "__init__")
STAGES = {name: stage.get("do", stage) for name, stage in DAG["stages"].items()}

# A chapter may import those before it, never those after it: the order in which data flows.
CHAPTERS = """
    core data drawing synthetic indexing labels batches model methods training inference ranking
    explanation search studies pretraining command_line __main__
""".split()  # noqa: SIM905
# Stages that cost hours: they must use all that they declare, or an edit elsewhere would run them again.
COSTLY = ("segment", "pose", "train", "embed")


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
    files: set[Path] = set()
    while roots:
        files |= roots
        roots = set().union(*(imported(path) for path in roots)) - files
    return files


def names_of(entries: list) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or []]


def code_deps(name: str, method: str) -> list[str]:
    """Files and folders of code that a stage declares."""
    deps = [fill(d, method=method) for d in names_of(STAGES[name]["deps"])]
    return [d for d in deps if lies_in(d, "stages") or lies_in(d, "pipeline")]


def code_used(name: str, method: str) -> set[str]:
    """The project's files that a stage imports, directly or not, its method's and every layout's included."""
    roots = {ROOT / "stages" / f"{name}.py"}
    if any("${method}" in d for d in names_of(STAGES[name]["deps"])):
        roots.add(ROOT / "pipeline" / "methods" / method / "__init__.py")
    if name == "index":
        roots |= {ROOT / "pipeline/indexing/layouts" / f"{layout}.py" for layout in LAYOUTS}
    return {str(path.relative_to(ROOT)) for path in closure(roots)}


def lies_in(path: str, declared: str) -> bool:
    return path == declared or path.startswith(f"{declared}/")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_every_module_that_it_imports(name, method):
    declared = code_deps(name, method)
    assert not {path for path in code_used(name, method) if not any(lies_in(path, d) for d in declared)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_stage_uses_all_that_it_declares(name, method):
    used = code_used(name, method)
    assert not [d for d in code_deps(name, method) if not any(lies_in(path, d) for path in used)]


def edit_table() -> dict[str, set[str]]:
    """The table of stages/README.md: an edited path -> the stages that run."""
    lines = (ROOT / "stages" / "README.md").read_text().splitlines()
    start = lines.index("| edit | these stages run |") + 2
    rows = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:]):
        path, stages = (cell.strip() for cell in line.strip("|").split("|"))
        names = {"all": set(STAGES), "none": set()}.get(stages, set(re.findall(r"`(\w+)`", stages)))
        rows[path.strip("`")] = names | {"check"}  # which every edit runs, as the page says
    return rows


def runs_after_edit(path: str) -> set[str]:
    """The stages that depend on a file, or on some file of a folder."""
    method = PARAMS["method"]
    deps = {name: code_deps(name, method) for name in STAGES}
    return {name for name in STAGES if any(lies_in(path, d) or lies_in(d, path) for d in deps[name])}


def test_every_edit_of_code_runs_the_check_which_the_table_leaves_out():
    assert all("check" in runs_after_edit(f"pipeline/{chapter}") for chapter in CHAPTERS)
    assert "`check` runs after every edit" in (ROOT / "stages" / "README.md").read_text().replace("\n", " ")


def test_the_stages_page_says_what_runs_after_an_edit():
    table = edit_table()
    assert table == {path: runs_after_edit(path) for path in table}
    assert not [path for path in table if not (ROOT / path).exists()]
    listed = {Path(path).parts[1] for path in table}
    assert listed == set(CHAPTERS) - {"data", "__main__"}  # `render` alone does not read `data`, as it says
    assert runs_after_edit("pipeline/data") == set(STAGES) - {"render"}


def test_every_stage_waits_for_the_check():
    """Else DVC may run it first, and a name that no dataset has ends it in an error of DVC."""
    for name in set(STAGES) - {"check"}:
        deps = names_of(STAGES[name]["deps"])
        over = DAG["stages"][name].get("foreach", "none")
        same = [stage for other, stage in STAGES.items() if DAG["stages"][other].get("foreach") == over]
        made = {out for stage in same for out in names_of(stage.get("outs"))}
        assert "data/checked.txt" in deps or set(deps) & made, name


@pytest.mark.parametrize("name", STAGES)
def test_paths_with_a_value_of_params_are_quoted_for_the_shell(name):
    for word in re.findall(r'"[^"]*"|\S+', STAGES[name]["cmd"]):
        assert ("${" in word) == (word[0] == word[-1] == '"'), word


@pytest.mark.parametrize("name", ["x", "Occluded-Duke_2", "a" * 40, "true"])
def test_dvc_takes_every_name_that_check_takes(tmp_path, name):
    labels = {name: {"source": "lip", "path": "data/raw/labels.zip"}}
    entry = {name: PARAMS["datasets"]["embedded"]}
    names = {"datasets": entry, "labels_from": labels, "parse_on": [], "train_on": name, "test_on": [name]}
    stages = stages_with(tmp_path, **names)
    assert datasets.name_faults([name]) == []
    assert f"data/{name}/index.parquet" in stages[f"index@{name}"][f"index@{name}"]["outs"]
    assert f"labels_from.{name}" in stages[f"adopt@{name}"][f"adopt@{name}"]["params"]


@pytest.mark.parametrize("weights", ["", None, "segmentation.safetensors", "../mine.safetensors"])
def test_weights_that_are_not_read_may_be_left_empty(tmp_path, weights):
    """DVC knows no empty path: it ends every command in an error without a reason."""
    changed = {"segment": PARAMS["segment"] | {"weights": weights}}
    stage = stages_with(tmp_path, **changed)["segment@embedded"]["segment@embedded"]
    assert f"models/embedded/{weights}" in [dep for dep in stage["deps"] if dep.startswith("models/")]


def test_dvc_sees_code_alone_below_the_chapters(tmp_path):
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    kept, left = ["a.py", "b.yaml", "sub/c.py"], ["README.md", ".a.py.swp", "a.py~", "sub/__pycache__/c.pyc"]
    for name in kept + left:
        path = tmp_path / "pipeline" / "chapter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        visible = {
            str(Path(p).relative_to(tmp_path / "pipeline/chapter"))
            for p in repo.dvcignore.find(repo.fs, str(tmp_path / "pipeline"))
        }
    assert visible == set(kept)


def test_the_committed_lock_is_of_these_stages_and_of_code_that_exists(tmp_path):
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    stages = stages_with(tmp_path)
    assert set(lock) == set(stages)
    for name, stage in lock.items():
        (declared,) = stages[name].values()
        assert sorted(d["path"] for d in stage["deps"]) == sorted(names_of(declared["deps"]))
        code = [d["path"] for d in stage["deps"] if d["path"].startswith(("stages/", "pipeline/"))]
        assert not [path for path in code if not (ROOT / path).exists()]


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
    unread = ("stages/", "pipeline", "data/checked.txt", "params.yaml")
    data = [d for d in names_of(stage["deps"]) if not d.startswith(unread)]
    outs = names_of(stage.get("metrics")) + names_of(stage.get("outs"))
    names = [word for before, word in itertools.pairwise(words[2:]) if before != "--trained"]  # not read
    paths = [word for word in names if "/" in word or word.startswith("${")]
    paths = [path for path in paths if path != "${item.layout}"]
    assert paths[: len(data)] == data and sorted(paths[len(data) :]) == sorted(outs)


def test_every_stage_is_a_file_and_every_file_a_stage():
    by_hand = {"__init__", "compare", "init", "pretrain", "search", "study"}
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} - by_hand == set(STAGES)


def chapter_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


def test_imports_run_with_the_flow_of_data():
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        if path == ROOT / "pipeline" / "__init__.py":
            continue
        chapter = CHAPTERS.index(chapter_of(path))
        for other in imported(path):
            assert "stages" not in other.relative_to(ROOT).parts, f"{path} imports a stage"
            assert CHAPTERS.index(chapter_of(other)) <= chapter, (
                f"{path} imports {other}, which lies downstream"
            )


def test_methods_do_not_import_each_other():
    methods = ROOT / "pipeline" / "methods"
    for path in methods.glob("*/*.py"):
        assert not {f for f in imported(path) if f.parent.parent == methods and f.parent != path.parent}


def test_every_output_is_a_named_artifact():
    artifacts = {entry["path"] for entry in DAG["artifacts"].values()}
    for stage in STAGES.values():
        for out in names_of(stage.get("outs")):
            assert re.sub(r"\$\{(key|item)\}", "embedded", out) in artifacts


def test_only_labels_and_what_follows_depend_on_lambda():
    assert {n for n, stage in STAGES.items() if "lambda" in stage.get("params", [])} == {"label", "score"}


@pytest.mark.parametrize("name", ["segment", "pose"])
def test_a_parser_depends_on_its_own_section_of_the_params(name):
    assert STAGES[name]["params"] == ["parsers", name]


def test_parsers_are_imported_by_their_stages_alone_and_by_check_where_they_are_installed():
    for name in STAGES:
        files = closure({ROOT / "stages" / f"{name}.py"})
        text = "\n".join(path.read_text() for path in files)
        assert ("import openpifpaf" in text) == (name in ("pose", "check"))


def test_a_network_is_looked_up_only_where_openpifpaf_is_installed(monkeypatch):
    pose = replace(params.read(ROOT / "params.yaml", "pose", pose_params.Pose), network="bar")
    with pytest.raises(BadInput, match=r"pose\.network = 'bar' is no network of openpifpaf"):
        pose_params.check_network(pose)
    monkeypatch.setattr(pose_params, "find_spec", lambda name: None)
    pose_params.check_network(pose)


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
    assert "pipeline/indexing" in new["deps"]
    assert "models/trained" in after["embed@occreid"]["embed@occreid"]["deps"]


def test_the_cmc_curve_is_that_of_the_first_test_set():
    curve = DAG["plots"][0]
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
