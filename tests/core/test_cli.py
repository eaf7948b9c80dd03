"""Command lines: made of signatures and docstrings; a wrong call names the argument."""

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

import stages
from pipeline.core import params
from pipeline.core.cli import command_parser, run_stage, split_docstring
from pipeline.core.params import BadInput

ROOT = Path(__file__).parents[2]
DOCSTRING = """Stage `toy`: maps -> labels.

Reads:
    maps     parsing maps,
             one per image
Writes:
    out      labels

Params: lambda.
"""
DAG = params.load("dvc.yaml")["stages"]
MODULES = [f"stages.{module.name}" for module in pkgutil.iter_modules(stages.__path__)]
COMMANDS = [f"pipeline.command_line.{name}" for name in ("index", "query", "serve", "export", "convert")]
MODULES = [*sorted(set(MODULES) - {"stages.search", "stages.study"}), "pipeline.indexing.__main__", *COMMANDS]


def toy_stage(kind: Literal["a", "b"], maps: str, out: str, config: str = "params.yaml") -> None:
    if out == "bad":
        raise BadInput(f"{maps}: empty.")
    if out == "Ctrl-C":
        raise KeyboardInterrupt
    print(kind, maps, out, config)


@pytest.fixture
def toy(monkeypatch):
    module = ModuleType("stages.toy", DOCSTRING)
    monkeypatch.setitem(sys.modules, "stages.toy", module)
    monkeypatch.setattr(toy_stage, "__module__", "stages.toy")
    return toy_stage


def test_the_words_are_the_arguments_by_position_and_the_rest_options(toy, capsys):
    run_stage(toy, ["a", "maps.h5", "out.h5"])
    run_stage(toy, ["b", "maps.h5", "--config", "other.yaml", "out.h5"])
    assert capsys.readouterr().out == "a maps.h5 out.h5 params.yaml\nb maps.h5 out.h5 other.yaml\n"


def test_bad_input_ends_a_stage_with_its_message_and_status_1(toy):
    with pytest.raises(SystemExit) as error:
        run_stage(toy, ["a", "maps.h5", "bad"])
    assert error.value.code == "maps.h5: empty."


WRONG = {  # words: what the user reads behind the usage
    "a maps.h5": "error: the following arguments are required: out",
    "": "error: the following arguments are required: kind, maps, out",
    "a maps.h5 out.h5 more": "error: unrecognized arguments: more",
    "c maps.h5 out.h5": "error: argument kind: invalid choice: 'c' (choose from",
    "a maps.h5 out.h5 --config": "error: argument --config: expected one argument",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_call_names_the_argument(toy, capsys, words):
    with pytest.raises(SystemExit) as error:
        run_stage(toy, words.split())
    said = capsys.readouterr().err
    assert error.value.code == 2 and WRONG[words] in said
    assert said.startswith("usage: python -m stages.toy [-h] [--config CONFIG] {a,b} maps out")


def test_help_is_the_docstring_with_its_lines_beside_the_arguments(toy, capsys):
    with pytest.raises(SystemExit) as error:
        run_stage(toy, ["--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert error.value.code == 0
    for line in (
        "Stage `toy`: maps -> labels.",
        "maps parsing maps, one per image",
        "out labels",
        "--config CONFIG the file of parameters (default: params.yaml)",
        "Params: lambda.",
    ):
        assert line in lines
    assert lines.index("reads:") < lines.index("writes:")


def test_a_docstring_without_sections_is_the_description():
    assert split_docstring("What it does.\n\nMore.") == ("What it does.\n\nMore.", {}, "")


# ------------------------------------------------------------------ every stage


@pytest.mark.parametrize("name", MODULES)
def test_every_argument_of_a_command_is_described(name):
    parser = command_parser(importlib.import_module(name).main)
    assert parser.prog == f"python -m {name.removesuffix('.__main__')}" and parser.description
    arguments = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    assert arguments and not [action.dest for action in arguments if not action.help]
    assert all(len(line) <= 110 for line in parser.format_help().splitlines())


@pytest.mark.parametrize("name", DAG)
def test_the_help_of_a_stage_names_the_params_that_dvc_tracks(name):
    stage = DAG[name].get("do", DAG[name])
    text = command_parser(importlib.import_module(f"stages.{name}").main).epilog
    tracked = {
        re.match(r"[a-z_]+", param)[0] for param in stage.get("params", []) if not param.startswith("$")
    }
    assert tracked <= set(re.findall("[a-z_]+", text))


@pytest.mark.parametrize("name", sorted({*MODULES} - {"stages.check"}))  # which needs none
def test_a_call_without_words_names_every_argument(name, capsys):
    main = importlib.import_module(name).main
    with pytest.raises(SystemExit) as error:
        run_stage(main, [])
    required = [action.dest for action in command_parser(main)._actions if action.required]
    assert error.value.code == 2
    assert capsys.readouterr().err.endswith(f"arguments are required: {', '.join(required)}\n")


def test_studies_say_what_each_verb_does(capsys):
    with pytest.raises(SystemExit) as error:
        importlib.import_module("stages.study").main(["--help"])
    said = capsys.readouterr().out
    assert error.value.code == 0 and all(
        f"python -m stages.study {verb} " in said for verb in ("queue", "run")
    )


# ------------------------------------------------------------------ how a command ends


def run_script(script: str, **changes: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **changes}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, cwd=ROOT)


def test_ctrl_c_ends_with_a_sentence_and_status_130(toy, capsys):
    with pytest.raises(SystemExit) as error:
        run_stage(toy, ["a", "maps.h5", "Ctrl-C"])
    assert error.value.code == 130
    assert (
        capsys.readouterr().err == "\nInterrupted. No result is half-written: run the same command again.\n"
    )


INTERRUPTED_POOL = """
import os, signal, sys, threading, time
from pipeline.core.cli import command_line
from pipeline.core.workers import WorkerPool

if __name__ == "__main__":
    with command_line(), WorkerPool(2) as pool:
        futures = [pool.submit(time.sleep, 0.01) for _ in range(2)]
        [future.result() for future in futures]  # both run
        futures = [pool.submit(time.sleep, 60) for _ in range(9)]
        threading.Timer(0.3, os.killpg, (0, signal.SIGINT)).start()
        futures[0].result()
"""


@pytest.mark.slow
def test_ctrl_c_ends_workers_at_once_and_without_a_word(tmp_path):
    """A terminal sends it to all processes: each worker printed a traceback of its own."""
    (tmp_path / "script.py").write_text(INTERRUPTED_POOL)
    process = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True, text=True, timeout=150, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 130
    assert process.stderr == "\nInterrupted. No result is half-written: run the same command again.\n"


@pytest.mark.slow
def test_ctrl_c_during_slow_imports_ends_with_the_sentence_too():
    process = run_script("import stages\nraise KeyboardInterrupt")
    assert process.returncode != 0
    assert process.stderr == b"\nInterrupted. No result is half-written: run the same command again.\n"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_printed_as_an_escape(encoding):
    name = "'Jos\\u00e9/\\u738b\\udcff.png'"
    script = f"from pipeline.core.cli import command_line\nwith command_line(): print({name})"
    process = run_script(script, PYTHONIOENCODING=encoding)
    assert process.returncode == 0, process.stderr
    assert (
        process.stdout.decode(encoding).rstrip("\n")
        == {
            "ascii": "Jos\\xe9/\\u738b\\udcff.png",
            "latin-1": "José/\\u738b\\udcff.png",
            "utf-8": "José/王\\udcff.png",
        }[encoding]
    )


@pytest.mark.slow
def test_a_reader_that_stops_early_ends_a_command_without_a_word():
    script = "from pipeline.core.cli import command_line\nwith command_line(): print('line\\n' * 99999)"
    shell = f'{sys.executable} -c "$SCRIPT" | head -1; echo ${{PIPESTATUS[0]}}'
    process = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "SCRIPT": script}
    )
    assert (process.stdout, process.stderr) == ("line\n141\n", "")
