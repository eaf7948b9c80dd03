"""The command line of a stage, made of its function's signature and its module's docstring.

    Reads:
        index    one row per image
    Writes:
        out      occlusion labels, one row per image

Such lines describe the arguments.  What stands above them is the description, what stands below the epilogue.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from typing import Literal, get_args, get_origin

from pipeline.core.params import BadInput

SECTIONS = ("Takes", "Reads", "Writes")
OPTIONS = {"config": "the file of parameters"}
SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):\n((?: {{4}}.*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+) {2,}(.+(?:\n {5,}.+)*)", re.MULTILINE)


def run_stage(main: Callable[..., None], words: list[str]) -> None:
    """Call `main` with the words of a command line.

    A wrong call ends with the usage and status 2, bad input with its message and status 1.
    """
    arguments = vars(command_parser(main).parse_args(words))
    try:
        main(**arguments)
    except BadInput as error:
        sys.exit(str(error))


def command_parser(main: Callable[..., None]) -> argparse.ArgumentParser:
    """A parser of `main`'s parameters: those without a default by position, the others as options.

    A `Literal` lists the choices.
    """
    module = sys.modules[main.__module__]
    description, entries, epilogue = split_docstring(inspect.getdoc(module) or "")
    parser = argparse.ArgumentParser(
        prog=f"python -m {module_name(module)}",
        description=description,
        epilog=epilogue,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {section: parser.add_argument_group(section.lower()) for section in SECTIONS}
    for name, parameter in inspect.signature(main).parameters.items():
        section, text = entries.get(name, ("Takes", None))
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else None
        if parameter.default is parameter.empty:
            groups[section].add_argument(name, help=text, choices=choices)
        else:
            text = f"{text or OPTIONS.get(name)} (default: %(default)s)"
            parser.add_argument(f"--{name}", help=text, default=parameter.default, choices=choices)
    return parser


def split_docstring(text: str) -> tuple[str, dict[str, tuple[str, str]], str]:
    """The description, the section and text of each argument, and the epilogue."""
    entries = {
        name: (section, " ".join(line.split()))
        for section, block in SECTION.findall(text)
        for name, line in ENTRY.findall(block)
    }
    before, *after = SECTION.sub("\0", text).split("\0")
    return before.strip(), entries, "".join(after).strip("\n")


def module_name(module: object) -> str:
    """The name by which `python -m` runs a module."""
    spec = getattr(module, "__spec__", None)
    name = spec.name if spec else getattr(module, "__name__", "")
    return name.removesuffix(".__main__")
