"""How the tests of the command line run it: each module has a `world`, the folder."""

import sys

import pytest

from pipeline import __main__


@pytest.fixture
def run(world, monkeypatch, capsys):
    """Runs the words of a command line in the world's folder; returns what it printed, or its exit code."""

    def run(*words, program="/usr/bin/occluded-reid"):
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        try:
            __main__.main()
        except SystemExit as error:
            return error.code or capsys.readouterr().out
        return capsys.readouterr().out

    monkeypatch.chdir(world)
    return run
