"""The short form of `python -m benchmarks.migration`."""

import sys

import pytest

from benchmarks import migration


def test_a_migration_that_is_killed_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["migration", "--exchanges", "200", "--kills", "2"])
    assert migration.main() == 0
    assert "lost 0, answered twice 0, old plaintext in the files at the end 0" in capsys.readouterr().out
