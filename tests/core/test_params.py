"""params.yaml: typed values, no unknown names, read as DVC reads it."""

from datetime import date
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core import params
from pipeline.core.params import STRICT, BadInput
from pipeline.methods.base import load_method


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    epochs: int = Field(gt=0)
    rate: float = Field(gt=0)
    size: tuple[int, int]
    rule: Literal["cosine", "steps"]


GOOD = "{epochs: 3, rate: 1e-3, size: [256, 128], rule: cosine}"


def read(tmp_path, text, section="train", schema=Train):
    (tmp_path / "params.yaml").write_text(text)
    return params.read(tmp_path / "params.yaml", section, schema)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_than_utf_8_is_refused_by_name(tmp_path, encoding):
    (tmp_path / "params.yaml").write_text("seed: 1  # für alle\n", encoding=encoding)
    with pytest.raises(BadInput, match=r"params\.yaml: not in UTF-8 .* Save it in UTF-8"):
        params.load(tmp_path / "params.yaml")


def test_a_section_becomes_a_frozen_dataclass(tmp_path):
    train = read(tmp_path, f"train: {GOOD}")
    assert train == Train(epochs=3, rate=0.001, size=(256, 128), rule="cosine")
    with pytest.raises(AttributeError):
        train.epochs = 4


def test_a_number_written_1e_3_is_a_number_as_for_dvc(tmp_path):
    assert read(tmp_path, "lambda: 1e-3", "lambda", float) == 0.001


def test_an_integer_may_stand_where_a_float_is_wanted(tmp_path):
    assert read(tmp_path, "lambda: 10", "lambda", float) == 10.0


FAULTS = {  # a change to the good section: what the message must name
    "epochs: 3": (
        "epoch: 3",
        ["train.epoch is not a parameter", "did you mean 'epochs'", "train.epochs is missing"],
    ),
    "epochs: 3, ": ("epochs: 0, ", ["train.epochs = 0", "greater than 0"]),
    "rate: 1e-3": ("rate: fast", ["train.rate = 'fast'", "number"]),
    "rate: 1e-3,": ("rate: .nan,", ["train.rate"]),
    "size: [256, 128]": ("size: [256, wide]", ["train.size.1 = 'wide'", "integer"]),
    "rule: cosine": ("rule: off", ["train.rule = 'off'", "'cosine' or 'steps'"]),
    "epochs: 3,": ("epochs: true,", ["train.epochs = True", "integer"]),
}


@pytest.mark.parametrize("right", FAULTS)
def test_a_fault_is_named_with_file_value_and_remedy(tmp_path, right):
    wrong, words = FAULTS[right]
    with pytest.raises(BadInput) as error:
        read(tmp_path, f"train: {GOOD.replace(right, wrong)}")
    assert all(word in str(error.value) for word in [str(tmp_path / "params.yaml"), *words])


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("-3", params.Amount),
        (".nan", params.Amount),
        (".inf", params.Amount),
        ("-1", params.Count),
        ("0.5", params.Count),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(tmp_path, text, schema):
    with pytest.raises(BadInput, match=r"params\.yaml: seed = .*: input should be"):
        read(tmp_path, f"seed: {text}", "seed", schema)


UNIONS = {  # a param that may be one of several kinds, and what its value should have been
    "taps: some": "train.taps = 'some': input should be a valid array or 'proportional'.",
    "taps: [1, a]": (
        "train.taps = [1, 'a']: input should be a valid integer in place of 'a' or 'proportional'."
    ),
    "rate: -1": "train.rate = -1: input should be greater than 0 or 'auto'.",
    "rate: fast": "train.rate = 'fast': input should be a valid integer or 'auto'.",
    "sizes: [[1, 2], big]": "train.sizes.1 = 'big': input should be a valid array or 'small'.",
    "sizes: [[1]]": "train.sizes.0 = [1]: input should be complete or 'small'.",
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Unions:
    taps: tuple[int, ...] | Literal["proportional"] = ()
    rate: Annotated[int, Field(gt=0)] | Literal["auto"] | None = None
    sizes: list[tuple[int, int] | Literal["small"]] = Field(default_factory=list)


@pytest.mark.parametrize("text", UNIONS)
def test_a_param_of_several_kinds_is_named_once_with_all_of_them(tmp_path, text):
    with pytest.raises(BadInput) as error:
        read(tmp_path, f"train: {{{text}}}", schema=Unions)
    assert str(error.value) == f"{tmp_path / 'params.yaml'}: {UNIONS[text]}"


def test_taps_of_dpm_are_named_as_they_are_written():
    section = params.load("params.yaml")["dpm"] | {"taps": "some"}
    with pytest.raises(BadInput) as error:
        params.validate(section, load_method("dpm").Params, "params.yaml: ", "dpm")
    message = "params.yaml: dpm.taps = 'some': input should be a valid array or 'proportional'."
    assert str(error.value) == message


def test_what_yaml_takes_for_a_date_is_a_text(tmp_path):
    assert read(tmp_path, "weights: 2024-05-01", "weights", str) == "2024-05-01"


def test_all_faults_are_listed_at_once(tmp_path):
    with pytest.raises(BadInput) as error:
        read(tmp_path, "train: {epochs: -1, rate: 0, size: [1, 2], rule: cosine}")
    assert "train.epochs" in str(error.value) and "train.rate" in str(error.value)


@pytest.mark.parametrize(
    ("count", "named"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c, and 1 more"), (6, "a, b, c, and 3 more")],
)
def test_a_message_names_a_few_things_and_counts_the_rest(count, named):
    assert ", ".join(params.shorten(list("abcdef")[:count], 3)) == named


def test_a_noun_is_plural_unless_there_is_one():
    assert [params.plural(n, "fault") for n in (0, 1, 2)] == ["0 faults", "1 fault", "2 faults"]
    assert [params.plural(n, "query") for n in (0, 1, 2)] == ["0 queries", "1 query", "2 queries"]


@pytest.mark.parametrize("value", ["linear", "", None, 0, ["cosine"]])
def test_an_argument_is_one_of_its_choices(value):
    params.check_choice("rule", "steps", Literal["cosine", "steps"])
    with pytest.raises(BadInput) as error:
        params.check_choice("rule", value, Literal["cosine", "steps"])
    assert str(error.value) == f"rule = {value!r}: no such choice. Choose one of cosine, steps."


@pytest.mark.parametrize("value", [0, -1, 1.0, np.float32(2), "2", None])
def test_a_count_is_a_whole_number_of_python_or_numpy(value):
    for count in (1, 2, np.int32(1), np.uint8(2)):
        params.check_count("batch", count, 1)
    with pytest.raises(BadInput) as error:
        params.check_count("batch", value, 1)
    assert str(error.value) == f"batch = {value!r}: give a whole number, 1 or more."


def test_a_check_of_several_params_speaks_for_itself():
    @dataclass(frozen=True, config=STRICT)
    class Range:
        low: int
        high: int

        @model_validator(mode="after")
        def _check(self):
            if self.low > self.high:
                raise ValueError("range.low is above range.high. Swap them.")
            return self

    with pytest.raises(BadInput) as error:
        params.validate({"low": 2, "high": 1}, Range, "params.yaml: ", "range")
    assert str(error.value) == "params.yaml: range.low is above range.high. Swap them."


def test_all_sections_of_a_file_are_checked_together():
    schemas = {"train": Train, "lambda": params.Amount, "seed": int}
    values = {"lambda": -1, "sed": 1, "train": {"epochs": 3, "rate": 1e-3, "size": [1, 2], "rule": "steps"}}
    assert params.section_faults(values, schemas) == {
        "sed": ["sed is not a parameter; did you mean 'seed'?"],
        "lambda": ["lambda = -1: input should be greater than or equal to 0."],
        "seed": ["seed is missing."],
    }


def test_a_key_that_yaml_takes_for_a_date_is_a_text_too():
    assert params.validate({date(2024, 5, 1): {1: None}}, dict, "") == {"2024-05-01": {"1": None}}


def test_a_missing_section_suggests_the_nearest(tmp_path):
    with pytest.raises(BadInput, match=r"lambda is missing; rename 'lamda'"):
        read(tmp_path, "lamda: 5", "lambda", float)


@pytest.mark.parametrize("text", ["train: [1, 2", "- a\n- b", ""])
def test_a_file_that_holds_no_parameters_is_refused(tmp_path, text):
    with pytest.raises(BadInput, match=r"params\.yaml"):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        params.read(tmp_path / "params.yaml", None, dict)


def test_a_folder_is_no_file_of_params(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be read \(Is a directory\)\. Name a file of params"):
        params.load(tmp_path)


PATHS = {
    "a b/ü.zip": None,
    "": "path = '': name the file",
    'a"b': "none of the characters",
    "a\nb": "no line break",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_dvc_yaml_quotes_has_no_character_that_a_shell_reads(path):
    if PATHS[path] is None:
        assert params.validate(path, params.QuotedPath, "", "path") == path
    else:
        with pytest.raises(BadInput, match=PATHS[path]):
            params.validate(path, params.QuotedPath, "", "path")
