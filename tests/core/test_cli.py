"""Command lines: bad input ends in one message."""

import pytest

from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput


def test_bad_input_ends_a_stage_with_its_message_and_status_1():
    def stage(path):
        raise BadInput(f"{path}: empty.")

    with pytest.raises(SystemExit) as error:
        run_stage(stage, ["a.h5"])
    assert error.value.code == "a.h5: empty."
    with pytest.raises(SystemExit, match="usage: path"):
        run_stage(stage, [])
