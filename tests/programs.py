"""Programs of the machine that single tests need beside Python."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def needed(name: str) -> str:
    """The program's path; without it the test is skipped, or fails where CI=true. Those of wheels are beside Python."""
    places = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/bin"
    found = shutil.which(name, path=places)
    if found is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
