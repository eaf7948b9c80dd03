"""`params.yaml`: each stage reads its sections into frozen dataclasses, which lie beside the code they set.

Unusual here:
- YAML 1.2, as DVC reads it: `1e-3` is a number, `off` is a string.
- There are no defaults in the code.
- An unknown name is an error that suggests the nearest one.

Every module raises `BadInput` for what a user can mend.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from numbers import Integral
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, overload

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MAX_NAMED = 5  # items that a message lists
MISSING = ("missing", "missing_argument")  # pydantic's names of a fault
UNQUOTED = re.compile(r'["$`\\\n]')  # what a shell reads inside double quotes


def _check_path(path: str) -> str:
    if not path:
        raise PydanticCustomError("path", "Name the file")
    if UNQUOTED.search(path):
        raise PydanticCustomError(
            "path",
            "dvc.yaml quotes paths for the shell, so a path has none of the characters "
            '" $ ` \\ and no line break. Rename the file',
        )
    return path


QuotedPath = Annotated[str, AfterValidator(_check_path)]  # that dvc.yaml hands to a stage


class BadInput(ValueError):
    """A user's file, parameter or argument cannot be used; the message names it, the value and the remedy."""


def shorten(items: Sequence[str], limit: int = MAX_NAMED) -> list[str]:
    """The first `limit` items, and how many more there are."""
    rest = len(items) - limit
    return [*items[:limit], f"and {rest} more"] if rest > 0 else list(items)


def tally(kinds: Iterable[str]) -> str:
    """How many there are of each kind, the most frequent first: `3 .jpg, 1 .txt`."""
    return ", ".join(shorten([f"{number} {kind}" for kind, number in Counter(kinds).most_common()]))


def plural(number: int, thing: str) -> str:
    """`1 fault`, `2 faults`; `1 query`, `2 queries`."""
    many = f"{thing.removesuffix('y')}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number} {thing if number == 1 else many}"


def one_line(error: object) -> str:
    """What an error says, in a line of at most 160 characters; its class if it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise `BadInput` unless a value is one of the choices, a `Literal`; the message lists them."""
    names = get_args(choices)
    if not isinstance(value, str) or value not in names:
        raise BadInput(f"{name} = {value!r}: no such choice. Choose one of {', '.join(names)}.")


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Raise `BadInput` unless a value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise BadInput(f"{name} = {value!r}: give a whole number, {least} or more.")


def load(path: str | Path) -> dict[str, Any]:
    """All values of a parameter file.  Raises `BadInput` if it cannot be read or is no YAML."""
    try:
        values = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file. Run from the project's root, or name the file.") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}). Name a file of params.") from None
    except YAMLError as error:
        raise BadInput(f"{path}: not readable as YAML ({' '.join(str(error).split())}).") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not in UTF-8 ({error}). Save it in UTF-8.") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: holds no parameters. Restore it with `git checkout {path}`.")
    return values


@overload
def read(path: str | Path, section: str | None, schema: type[T]) -> T: ...
@overload
def read(path: str | Path, section: str | None, schema: Any) -> Any: ...
def read(path, section, schema):
    """The parameters of a section, or of the whole file if None, validated as `schema`.

    `schema` is a plain type (`Amount`, `list[str]`) or a frozen pydantic dataclass with `STRICT`.
    Raises `BadInput` that lists every misspelt, missing, wrongly typed or out-of-range value.
    """
    values = load(path)
    if section is not None and section not in values:
        near = get_close_matches(section, [str(key) for key in values], n=1)
        raise BadInput(f"{path}: {section} is missing" + (f"; rename '{near[0]}'?" if near else "."))
    value = values if section is None else values[section]
    return validate(value, schema, f"{path}: ", section)


@overload
def validate(value: Any, schema: type[T], source: str, section: str | None = None) -> T: ...
@overload
def validate(value: Any, schema: Any, source: str, section: str | None = None) -> Any: ...
def validate(value, schema, source, section=None):
    """`value` as `schema`.  Raises `BadInput` with a line for each fault: `source`, dotted name, reason."""
    try:  # by way of JSON: lists may become tuples and dates strings, and nothing else is converted
        text = json.dumps(_with_text_keys(value), default=str)
        return TypeAdapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        faults = _faults(error.errors(), json.loads(text), section, schema)
        raise BadInput("\n".join(source + fault for fault in faults)) from None


def _with_text_keys(value: Any) -> Any:
    # JSON has no key that is a date
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


def section_faults(values: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, list[str]]:
    """The faults of all values of a parameter file, by section; a key that `schemas` lacks is one, too."""
    faults = {str(key): [_unknown(str(key), schemas)] for key in values if key not in schemas}
    for section, schema in schemas.items():
        try:
            if section not in values:
                raise BadInput(f"{section} is missing.")
            validate(values[section], schema, "", section)
        except BadInput as error:
            faults[section] = str(error).splitlines()
    return faults


def _faults(
    errors: Sequence[Mapping[str, Any]], value: Any, section: str | None, schema: Any
) -> Iterator[str]:
    """A line for each value at fault; of a union pydantic has an error for each alternative."""
    unions: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for error in errors:
        unions.setdefault(_place(error, value), []).append(error)
    for place, alternatives in unions.items():
        if len(alternatives) == 1:
            yield _fault(alternatives[0], section, schema)
        else:
            whole = reduce(getitem, place, value)
            texts = dict.fromkeys(_alternative(error, whole) for error in alternatives)
            name = ".".join([*([section] if section else []), *map(str, place)])
            yield f"{name} = {whole!r}: input should be {' or '.join(texts)}."


def _place(error: Mapping[str, Any], value: Any) -> tuple[str | int, ...]:
    """The keys and indices that lead to a value at fault; those within a union end at the union."""
    for depth, part in enumerate(error["loc"]):
        try:
            value = value[part]
        except (LookupError, TypeError):
            is_missing = error["type"] in MISSING and depth == len(error["loc"]) - 1
            return error["loc"] if is_missing else error["loc"][:depth]
    return error["loc"]


def _alternative(error: Mapping[str, Any], whole: Any) -> str:
    text = "complete" if error["type"] in MISSING else error["msg"].removeprefix("Input should be ")
    return text if error["input"] == whole else f"{text} in place of {error['input']!r}"


def _fault(error: Mapping[str, Any], section: str | None, schema: Any) -> str:
    path = [str(p) for p in error["loc"]]
    name = ".".join(([section] if section else []) + path)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(name, getattr(schema, "__dataclass_fields__", {}))
    if error["type"] in MISSING:
        return f"{name} is missing."
    if error["type"] == "value_error":  # raised by a check of ours, which names the parameters
        return str(error["ctx"]["error"])
    return f"{name} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}."


def _unknown(name: str, known: Any) -> str:
    near = get_close_matches(name.split(".")[-1], [str(k) for k in known], n=1)
    return f"{name} is not a parameter" + (f"; did you mean '{near[0]}'?" if near else ".")
