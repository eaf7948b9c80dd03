"""The gallery, the client and the model of the tests of the server."""

import pytest

from tests import toy
from tests.search import served


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return served.gallery(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ask(world):
    return served.client(*world)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.trained(tmp_path_factory.mktemp("hostile") / "model")
