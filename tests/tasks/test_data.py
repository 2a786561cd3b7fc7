"""A run's own parameters reach DVC without a change to params.yaml."""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from elder.errors import UserError
from elder.settings import load_params
from tasks import data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a copy of what the pipeline needs, with a model whose tokenizer knows one word."""
    for name in ("tasks", "elder", ".dvc"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp"),
        )
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("calibration", "in_domain", "held_out"):
        (tmp_path / "data" / f"{name}.txt").write_text(f"{name}\n" * 5000)
    folder = tmp_path / "models" / "novels-llama"
    backend = Tokenizer(
        models.BPE(
            vocab={letter: i for i, letter in enumerate("calibrtion\n")}, merges=[]
        )
    )
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    LlamaConfig(max_position_embeddings=16).save_pretrained(folder)
    return tmp_path


def test_stages_use_only_data_parameters():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    used = data.used_params(
        load_params(None, ["calibration.seed=7", "select.ratio=0.5"]), stages
    )
    assert used["calibration.seed"] == 7
    assert not [
        key for key in used if key.startswith(("select", "recover", "gate", "store"))
    ]


def test_own_pipeline_keeps_the_stages_and_points_at_its_own_parameters(tmp_path):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    path = data.write_pipeline(
        load_params(None, ["calibration.seed=7"]),
        stages,
        tmp_path,
        Path("build/pipelines/x"),
    )
    own = yaml.safe_load((tmp_path / path).read_text())["stages"]
    assert list(own) == list(stages)
    assert own["blocks"]["outs"] == ["build/pipelines/x/data/calibration.safetensors"]
    assert own["blocks"]["params"] == [
        {"build/pipelines/x/params.yaml": stages["blocks"]["params"]}
    ]
    assert own["blocks"]["cmd"].endswith(
        "blocks --params build/pipelines/x/params.yaml --output build/pipelines/x/data"
    )
    assert own["blocks"]["wdir"] == "../../.."
    assert load_params(tmp_path / "build/pipelines/x/params.yaml").calibration.seed == 7


def test_parameters_that_the_file_leaves_out_are_not_stated(tmp_path):
    path = tmp_path / "params.yaml"
    assert data.stated_params(path, ["calibration.seed"]) is None
    path.write_text("calibration:\n  seed: 7\nmodel:\n")
    assert data.stated_params(path, ["calibration.seed"]) == {"calibration.seed": 7}
    assert data.stated_params(path, ["calibration.seed", "calibration.split"]) is None
    assert data.stated_params(path, ["model.name"]) is None


def test_no_password_reaches_the_pipelines_parameters(tmp_path):
    params = load_params(None, ["registry.tracking_uri=postgresql://me:hunter2@db/x"])
    path = data.write_pipeline(params, {}, tmp_path, Path("build/pipelines/x"))
    assert "hunter2" not in (tmp_path / path).with_name("params.yaml").read_text()


def test_refusal_of_a_stage_becomes_one_sentence(clone):
    with pytest.raises(UserError) as caught:
        data.reproduce(
            load_params(
                clone / "params.yaml", ["calibration.source=data/calibratoin.txt"]
            ),
            clone,
        )
    assert str(caught.value).startswith(
        "there is no calibration text 'data/calibratoin.txt'; did you mean"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_rebuild_from_nothing_equals_the_first_and_own_parameters_leave_it_alone(
    clone,
):
    first = data.reproduce(load_params(clone / "params.yaml"), clone)
    assert Path(first["folder"]) == clone / "build" / "data"
    lock = (clone / "dvc.lock").read_text()
    blocks = (clone / "build" / "data" / "calibration.safetensors").read_bytes()
    assert (
        first["digests"]["calibration.safetensors"] == hashlib.md5(blocks).hexdigest()
    )
    other = data.reproduce(
        load_params(clone / "params.yaml", ["calibration.seed=7"]), clone
    )
    assert other["digests"]["calibration.txt"] == first["digests"]["calibration.txt"]
    assert (
        other["digests"]["calibration.safetensors"]
        != first["digests"]["calibration.safetensors"]
    )
    assert (clone / "build" / "data" / "calibration.safetensors").read_bytes() == blocks
    assert (clone / "dvc.lock").read_text() == lock
    shutil.rmtree(clone / "build")
    shutil.rmtree(clone / ".dvc" / "cache")
    (clone / "dvc.lock").unlink()
    assert data.reproduce(load_params(clone / "params.yaml"), clone) == first
    assert (clone / "dvc.lock").read_text() == lock
