"""What the tests of commands share."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def confcascade():
    """Runs ``confcascade ARGUMENTS`` in a process of its own; gives its return code, stdout and stderr."""

    def run(*arguments, env=None, **options):
        environment = {**os.environ, "COLUMNS": "160", "HF_HUB_OFFLINE": "1", **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "confcascade.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            check=False,
            **options,
        )

    return run
