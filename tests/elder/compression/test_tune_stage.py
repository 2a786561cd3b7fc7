"""The recovery's trials, a stage of their own: what they chose decides whether layers are mended, and what goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from elder.compression.compress import describe
from elder.compression.job import Job, open_job
from elder.compression.stages import STAGES
from elder.record import Spent, plain
from elder.settings import validate
from elder.training import tune as tuning
from elder.training.search import Values
from elder.training.tune import Tuning

TOKENS = 16 * 32
EPOCHS = 20
MADE = {
    "calibration": {"samples": 16, "seq_len": 32},
    "select": {"method": "shortgpt", "layers": 2},
    "recover": {"mode": "train", "epochs": EPOCHS, "batch": 4},
}


@pytest.fixture
def job(
    model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Job]:
    """Run a compression whose trials come out as they are told to, in ``tmp_path/work``."""
    try_really = Tuning.trial

    def made(winner: str, **sections: Any) -> Job:
        def trial(self: Tuning, values: Values, trials: int) -> tuple[float, Spent]:
            _, spent = try_really(self, values, trials)
            by_winner = values.get("optimizer", winner) == winner
            return 2 - by_winner - values["lr"], spent

        monkeypatch.setattr(Tuning, "trial", trial)
        settings = validate(
            {"model": {"name": str(model_folder), "device": "cpu"}} | MADE | sections
        )
        with open_job(tmp_path / "work", settings, text_file, STAGES) as opened:
            opened.run_all()
        return opened

    return made


def weights(folder: Path | None) -> dict[str, torch.Tensor]:
    assert folder is not None
    return load_file(folder / "model.safetensors")


def test_what_muon_learnt_in_its_trial_goes_on_and_nothing_is_mended(
    job: Callable[..., Job],
) -> None:
    done = job("muon")
    tried = done.run("tune")
    assert plain(tried)["values"] == {"optimizer": "muon", "lr": 0.01}
    assert done.run("compensate").compensation is None
    begun, after = weights(done.folder("tune")), weights(done.folder("remove"))
    assert any(not torch.equal(begun[name], after[name]) for name in begun)
    # trials and run: the whole budget, and no token more
    assert done.run("recover").spent.tokens_seen == (
        EPOCHS * TOKENS - tried.spent.tokens_seen
    )
    record = describe(done, "default", "tiny")
    assert record.tokens_seen == EPOCHS * TOKENS
    assert [one.chosen for one in record.search] == [False, False, False, True]
    assert record.compensation is None


def test_before_a_run_with_adamw_layers_are_mended_as_they_were_before_the_trials(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, float]] = []
    train = tuning.train

    def watched(model: Any, *given: Any) -> Spent:
        norm = sum(weight.double().sum().item() for weight in model.parameters())
        begun.append((given[3].label, norm))
        return train(model, *given)

    monkeypatch.setattr(tuning, "train", watched)
    done = job("adamw")
    assert done.run("tune").values == {"optimizer": "adamw", "lr": 0.01}
    assert done.folder("tune") is None
    mended = done.run("compensate")
    assert mended.compensation["method"] == "refit"
    assert mended.spent.tokens_seen > 0
    *trials, (label, last) = begun
    assert len({norm for _, norm in trials}) == 1
    assert label == "recover"
    kept = weights(done.folder("compensate"))
    total = sum(value.double().sum().item() for value in kept.values())
    assert last == pytest.approx(total, rel=1e-9)
    assert last != trials[0][1]
    spent = [done.run(name).spent for name in ("tune", "compensate", "recover")]
    # what was mended is rounded up to whole steps
    total_tokens = sum(one.tokens_seen for one in spent)
    assert EPOCHS * TOKENS - 4 * 32 < total_tokens <= EPOCHS * TOKENS


@pytest.mark.parametrize(
    ("sections", "method", "kept"),
    [
        # a compensation that was asked for stays, whoever wins
        ({"compensate": {"method": "merge"}}, "merge", False),
        # where there is none, AdamW's trial goes on, too
        ({"compensate": {"method": "none"}}, None, True),
    ],
)
def test_a_compensation_that_was_named_is_done(
    job: Callable[..., Job], sections: dict[str, Any], method: str | None, kept: bool
) -> None:
    done = job("muon" if method else "adamw", **sections)
    found = done.run("compensate").compensation
    assert (found["method"] if found else None) == method
    assert (done.folder("tune") is not None) is kept


def test_trials_that_are_done_are_not_run_again(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = job("muon")
    before = done.run("recover").files
    (tmp_path / "work" / "recover.json").unlink()

    def never(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "try_out", never)
        with open_job(
            tmp_path / "work", done.settings, done.calibration, STAGES
        ) as again:
            assert again.run("recover").files == before


def test_a_named_optimiser_tries_rates_and_begins_anew(
    job: Callable[..., Job],
) -> None:
    recover = MADE["recover"] | {"optimizer": "muon"}
    done = job("muon", recover=recover)
    assert done.run("tune").values == {"lr": 0.02}
    assert done.folder("tune") is None


def test_nothing_is_tried_where_all_is_given(job: Callable[..., Job]) -> None:
    done = job("muon", recover={"mode": "train", "epochs": 1, "lr": 1e-3})
    tried = done.run("tune")
    assert (tried.values, tried.spent, tried.files) == ({}, Spent(), {})
