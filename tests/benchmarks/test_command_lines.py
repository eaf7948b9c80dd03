"""Command lines of the benchmarks: the usual help, quickly, and errors that name the argument."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(benchmarks.__file__).parent
NAMES = sorted(path.parent.name for path in ROOT.glob("*/__main__.py"))


def module(name):
    return importlib.import_module(f"benchmarks.{name}.__main__")


def test_every_folder_is_a_benchmark():
    folders = sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file())
    assert folders == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_read_and_printed_and_describes_every_argument(name):
    parser = module(name).build_parser()
    assert parser.prog == f"python -m benchmarks.{name}" and parser.description == module(name).__doc__
    text = " ".join(parser.description.split())
    assert "Prints one JSON object" in text and ("Reads " in text or "Takes " in text)
    for action in parser._actions[1:]:
        assert action.help and ("(default: " in action.help) != action.required


def test_help_waits_for_no_slow_library():
    imports = "".join(f"import benchmarks.{name}.__main__\n" for name in NAMES)
    command = [sys.executable, "-c", f"import sys\n{imports}print('torch' in sys.modules)"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)
    assert process.stdout == "False\n"


FAULTS = {
    "a number that is none": ("agent", ["--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
    "no such variant": ("agent", ["--variants", "x"], "argument --variants: invalid choice: 'x'"),
    "too few images": ("labels", ["--images", "3"], "argument --images: 3 is too few"),
    "sizes that are none": ("labels", ["--sizes", "192"], "argument --sizes: '192' is no list such as"),
    "no such size": ("ranking", ["--size", "x"], "argument --size: invalid choice: 'x'"),
    "no checkout": (
        "ranking",
        ["--bpbreid", "none"],
        "argument --bpbreid: none: no torchreid/metrics/distance.py; give the folder of a checkout of VlSom",
    ),
    "a checkout of something else": (
        "official",
        ["--fed", "none"],
        "argument --fed: none: no configs/OCC_Duke/vit_base.yml; give the folder of a checkout of Zachary",
    ),
    "a missing argument": ("training", [], "the following arguments are required: --transreid"),
    "an argument too many": ("complexity", ["x"], "unrecognized arguments: x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_call_names_the_argument(fault, capsys):
    name, words, message = FAULTS[fault]
    with pytest.raises(SystemExit) as error:
        module(name).build_parser().parse_args(words)
    assert error.value.code == 2 and message in capsys.readouterr().err
