"""Shapes and types in the signatures of `pipeline` are checked while the tests run; nobody's clock is.

What is measured while they run is not remembered for the user's own runs.
"""

import os
import tempfile

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("pipeline", "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # the first example of a test may compile a kernel
settings.load_profile("untimed")

_caches = tempfile.TemporaryDirectory(prefix="caches-")  # until Python ends
os.environ["XDG_CACHE_HOME"] = _caches.name  # of the processes that tests start, too
