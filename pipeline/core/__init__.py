"""Values and files: what every chapter builds on.

A process without a home folder gets one that does not exist: matplotlib, which many chapters import, ends at
once where it cannot name one, but goes on where it cannot write to it.
"""

import os
from pathlib import Path

try:
    Path.home()
except RuntimeError:  # a user without an entry in the system's list, as in a container
    os.environ["HOME"] = "/nonexistent"
