"""What the stages of a flow write is JSON that anyone reads, whatever was measured."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from elder.cli import stage
from elder.record import Evaluation, Perplexity


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_an_infinite_perplexity_is_written_as_null(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Perplexity(
        perplexity=math.inf, stderr=None, nll=1000.0, tokens=8, blocks=1
    )

    def measured(*_: Any) -> Evaluation:
        return Evaluation(
            perplexity={"in_domain": broken},
            protocol={"limit": None},
            protocol_digest="d" * 64,
            seconds=1.5,
            parameters=8,
        )

    monkeypatch.setattr("elder.evaluation.evaluate.evaluate", measured)
    settings, result = tmp_path / "params.yaml", tmp_path / "evaluation.json"
    settings.write_text("calibration: {seq_len: 8}", encoding="utf-8")
    stage.evaluate(str(model_folder), settings, result)
    told = json.loads(result.read_text(encoding="utf-8"), parse_constant=refuse)
    assert told["perplexity"]["in_domain"]["perplexity"] is None
    read = Evaluation.model_validate(told)
    assert (read.perplexity["in_domain"].nll, read.seconds) == (1000.0, 1.5)
