# SPDX-License-Identifier: Apache-2.0
"""What results say of the machine and the sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from softdiff_kernels import _machine


def test_the_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: sources that are not a clone have no commit and no changes; nothing fails."""
    monkeypatch.setattr(_machine, "ROOT", tmp_path)
    assert _machine.commit() == (None, False)
