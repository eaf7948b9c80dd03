"""The command line of a stage, made of its function's signature and its module's docstring.

    Reads:
        index    one row per image
    Writes:
        out      occlusion labels, one row per image

Such lines describe the arguments.  What stands above them is the description, what stands below the epilogue.
"""

import argparse
import errno
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args, get_origin

from pipeline.core import interrupt
from pipeline.core.params import BadInput
from pipeline.core.workers import stop_workers

SECTIONS = ("Takes", "Reads", "Writes")
OPTIONS = {"config": "the file of parameters"}
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED, BROKEN_PIPE = 130, 141  # exit status, as of a shell's own commands
SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):\n((?: {{4}}.*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+) {2,}(.+(?:\n {5,}.+)*)", re.MULTILINE)


def run_stage(main: Callable[..., None], words: list[str], program: str | None = None) -> None:
    """Call `main` with the words of a command line.

    A wrong call ends with the usage and status 2, everything else as `command_line` says.
    """
    with command_line():
        main(**vars(command_parser(main, program).parse_args(words)))


@contextmanager
def command_line() -> Iterator[None]:
    """Around a command: where there is nothing to debug, it ends with a sentence and without a traceback.

    Bad input ends with its message and status 1; so does a file or folder that this user may not read or
    write.  Ctrl-C ends with status 130, a closed pipe (`| head`) with 141.  What the encoding of the terminal
    lacks is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BadInput as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        stop_workers()
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # else the process that runs torchrun says it
            print(f"\n{interrupt.SENTENCE}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in FORBIDDEN or error.filename is None:
            raise
        remedy = "Name a place that this user may read and write, or run in one."
        sys.exit(f"{error.filename}: {error.strerror}. {remedy}")


def command_parser(main: Callable[..., None], program: str | None = None) -> argparse.ArgumentParser:
    """A parser of `main`'s parameters: those without a default by position, the others as options.

    A `Literal` lists the choices, a `list[str]` takes one word or more, an `int` is read as one, a `bool`
    is an option without a value.  Usage names the `program`, or the module of `main`.
    """
    module = sys.modules[main.__module__]
    description, entries, epilogue = split_docstring(inspect.getdoc(module) or "")
    parser = argparse.ArgumentParser(
        prog=program or f"python -m {module_name(module)}",
        description=description,
        epilog=epilogue,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {section: parser.add_argument_group(section.lower()) for section in SECTIONS}
    for name, parameter in inspect.signature(main).parameters.items():
        section, text = entries.get(name, ("Takes", None))
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else None
        if parameter.annotation == list[str]:
            groups[section].add_argument(name, help=text, nargs="+")
        elif parameter.default is parameter.empty:
            groups[section].add_argument(name, help=text, choices=choices)
        elif parameter.annotation is bool:
            parser.add_argument(f"--{name}", help=text, action="store_true")
        else:
            text = text or OPTIONS.get(name)
            text += " (default: %(default)s)" if parameter.default != "" else ""
            kind = int if parameter.annotation is int else None
            parser.add_argument(f"--{name}", help=text, default=parameter.default, choices=choices, type=kind)
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
