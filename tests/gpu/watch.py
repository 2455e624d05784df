# SPDX-License-Identifier: Apache-2.0
"""What `in_processes.py` adds to pytest: a case that hangs or loses the GPU ends its process.

After an illegal access every call of the process fails, and a kernel without end blocks it for good. The
cases behind then run in another process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import Any

import pytest

_SECONDS = float(os.environ["SOFTDIFF_GPU_TESTS_SECONDS"])  # of one case
# pytest's own capture takes the usual place, so that the stacks would be lost with the process.
_STDERR = os.fdopen(os.dup(2), "w")


def _lost() -> str:
    """Why nothing more can run on the GPU here; empty if it can, or if nothing has."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def pytest_runtest_logstart() -> None:
    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=_STDERR)


def pytest_runtest_logfinish() -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool:
    """Calls the test; what its kernels did wrong afterwards is its own failure, not the next one's."""
    pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    if why := _lost():
        raise RuntimeError(f"after the test: {why}")
    return True


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: Any) -> None:
    if report.failed and (why := _lost()):
        pytest.exit(f"the GPU is lost to this process: {why}", returncode=2)
