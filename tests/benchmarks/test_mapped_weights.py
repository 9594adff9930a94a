"""The comparison of mapped and copied weights runs, on a small checkpoint."""

import pytest

from benchmarks import mapped_weights


def test_mapped_and_copied_weights_give_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"hidden": 64, "layers": 2, "heads": 2, "inner": 128, "vocab": 512}
    monkeypatch.setattr(mapped_weights, "_SIZES", small)
    mapped_weights.main(["--repeat", "1", "--layers", "2"])  # its exit code depends on durations
    printed = capsys.readouterr().out
    assert "1 pairs, medians; all tokens are equal" in printed
    assert "mapped: anonymous memory" in printed
