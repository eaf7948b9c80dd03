"""Shapes and types in the signatures of `pipeline` are checked while the tests run; nobody's clock is.

What tests pretend about the machine is not remembered for others.
"""

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("pipeline", "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # the first example of a test may compile a kernel
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def users_folder(tmp_path_factory):
    """What was measured is remembered in a folder of the tests' own, not in the user's, which this gives."""
    from pipeline import machine

    with pytest.MonkeyPatch.context() as patch:
        own, users = tmp_path_factory.mktemp("measured"), machine.folder
        patch.setattr(machine, "folder", lambda: own)
        yield users
