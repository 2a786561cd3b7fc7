"""What the dense model makes of blocks, kept: the same as it makes anew, and read again where the file is whole."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from elder.compression import stages
from elder.compression.job import open_job
from elder.compression.stages import STAGES, SYNTHETIC
from elder.errors import UserError
from elder.model.head import states_of
from elder.model.layers import find_layers
from elder.model.load import load_model
from elder.settings import validate
from elder.training.synthesis import Writing, synthetic_blocks
from elder.training.teacher import known_states

WANTED = Writing(20, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_a_pass_through_the_dense_model_shows(
    trained: Any, text_blocks: torch.Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    dense, calibration = trained.to(dtype), text_blocks[:10]
    known = known_states(dense, calibration, WANTED, tmp_path / "kept.safetensors")
    # the same text as is written where nothing is kept
    written = synthetic_blocks(dense, calibration, WANTED)
    assert torch.equal(known.ids, torch.cat([written, calibration]))
    asked = torch.cat([calibration[3:5], written[7:9]])
    with torch.no_grad():
        anew = states_of(dense, asked)
    found = known(asked)
    assert found.dtype == dtype
    # a token at a time rounds in another way than all at once
    apart = (found - anew).float().norm() / anew.float().norm()
    assert apart < (1e-5 if dtype == torch.float32 else 0.02)
    assert torch.equal(known(asked[2:]), found[2:])


def test_a_file_that_is_whole_is_read_and_no_other(
    trained: Any, text_blocks: torch.Tensor, tmp_path: Path
) -> None:
    calibration, path = text_blocks[:10], tmp_path / "kept.safetensors"
    first = known_states(trained, calibration, WANTED, path)
    found = known_states(None, calibration, WANTED, path)  # no model is run
    assert torch.equal(found.ids, first.ids)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    known_states(trained, calibration, WANTED, path)
    assert path.read_bytes() == content
    fewer = known_states(trained, calibration, Writing(4, seed=0), path)
    assert len(fewer.ids) == 14
    # several processes read the text that one wrote
    assert torch.equal(
        synthetic_blocks(None, calibration, Writing(4, seed=0), path), fewer.ids[:4]
    )
    synthetic_blocks(trained, calibration, Writing(3, seed=0), path)  # none are kept
    assert len(known_states(trained, calibration, Writing(4, 0), path).ids) == 14


def test_without_written_text_the_calibration_text_is_looked_at_once(
    trained: Any, text_blocks: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "kept.safetensors"
    known = known_states(trained, text_blocks[:3], Writing(0, seed=0), path)
    assert torch.equal(known.ids, text_blocks[:3])
    with torch.no_grad():
        assert torch.equal(known(known.ids), states_of(trained, known.ids))


def test_a_disk_without_room_is_told_before_anything_is_kept(
    trained: Any,
    text_blocks: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"make room, or set recover\.distil\.states"):
        known_states(trained, text_blocks[:3], WANTED, tmp_path / "kept.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_layers_are_chosen(
    model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = validate(
        {
            "model": {"name": str(model_folder)},
            "calibration": {"samples": 8, "seq_len": 32},
            "select": {"layers": 2},
            "recover": {"epochs": 2, "distil": {"synthetic": 3}},
        }
    )
    monkeypatch.setattr(stages, "select_layers", None)
    with open_job(tmp_path / "work", settings, text_file, STAGES) as job:
        hidden = load_model(settings.model).model.config.hidden_size
        takes = 32 * 32 * (hidden * 4 + 8)
        free = SimpleNamespace(free=takes - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
        with pytest.raises(UserError, match="makes of 32 blocks takes"):
            job.run_all()
        free.free = takes
        with pytest.raises(TypeError):  # the choice begins
            job.run_all()


@pytest.mark.parametrize("adapter_rank", [0, 4])
def test_a_recovery_with_kept_states_learns_what_one_without_does(
    model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter_rank: int,
) -> None:
    """What it ends with is the same within rounding, and the dense model's own layers go before it begins."""
    real, left = stages.recovering, []

    def recovering(student: Any, *rest: Any) -> Any:
        left.append({each.device.type for each in layers_of(student.dense)})
        return real(student, *rest)

    monkeypatch.setattr(stages, "recovering", recovering)
    ends = {}
    for states in ("kept", "anew"):
        settings = validate(
            {
                "model": {"name": str(model_folder), "device": "cpu"},
                "calibration": {"samples": 8, "seq_len": 32},
                "select": {"method": "shortgpt", "layers": 2},
                "recover": {
                    "epochs": 2,
                    "lr": 1e-3,
                    "optimizer": "adamw",
                    "adapter_rank": adapter_rank,
                    "distil": {"synthetic": 1, "states": states},
                },
            }
        )
        with open_job(tmp_path / states, settings, text_file, STAGES) as job:
            job.run_all()
            curve = [point.loss for point in job.run("recover").spent.curve]
            loaded = load_model(
                settings.model.model_copy(update={"name": str(job.last_folder())})
            )
            ends[states] = curve, dict(loaded.model.named_parameters())
        assert (tmp_path / states / SYNTHETIC).exists()
    assert left == [{"cpu"} if adapter_rank else {"meta"}, {"cpu"}]
    (kept, mine), (anew, its) = ends["kept"], ends["anew"]
    assert kept == pytest.approx(anew, rel=1e-3)
    for name, weight in mine.items():
        assert torch.allclose(weight, its[name], atol=1e-4), name


def layers_of(model: nn.Module) -> list[nn.Parameter]:
    return list(find_layers(model).parameters())
