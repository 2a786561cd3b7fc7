"""A checkpoint in several files: what its index names must be the model's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from elder.errors import UserError
from elder.model.load import Loaded, load_model, weights_digest
from elder.params import Model
from tests.elder.conftest import MakeLlama

PROJECT = Path(__file__).parents[3]
COMMIT = "0123456789" * 4
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(
    llama: MakeLlama, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    folder = tmp_path / "sharded"
    llama(2).save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> Loaded:
    return load_model(Model(name=str(folder), device="cpu"))


def one_shard(folder: Path) -> str:
    weights = json.loads((folder / INDEX).read_text())["weight_map"]
    return sorted(weights.values())[0]


def rename(folder: Path, old: str, new: str) -> None:
    """Have the index name another file in place of one."""
    tree = json.loads((folder / INDEX).read_text())
    weights = tree["weight_map"]
    tree["weight_map"] = {
        key: new if name == old else name for key, name in weights.items()
    }
    (folder / INDEX).write_text(json.dumps(tree))


def test_shards_are_loaded(sharded: Path, llama: MakeLlama) -> None:
    assert weights_digest(load(sharded).model) == weights_digest(llama(2))


@pytest.mark.parametrize("kind", ["../", "absolute", "sub/../../", "\\"])
def test_an_index_that_leads_out_of_the_model_is_refused(
    sharded: Path, tmp_path: Path, kind: str
) -> None:
    """The file is there and fits: before, it was loaded."""
    shard = one_shard(sharded)
    outside = tmp_path / "outside.safetensors"
    (sharded / "sub").mkdir()
    (sharded / shard).rename(outside)
    names = {
        "../": "../outside.safetensors",
        "absolute": str(outside),
        "sub/../../": "sub/../../outside.safetensors",
        "\\": "..\\outside.safetensors",
    }
    rename(sharded, shard, names[kind])
    with pytest.raises(UserError, match="index.json' names .*do not use this model"):
        load(sharded)


def test_a_shard_that_is_a_link_must_not_lead_out(
    sharded: Path, tmp_path: Path
) -> None:
    shard = one_shard(sharded)
    (sharded / shard).rename(tmp_path / "outside.safetensors")
    (sharded / shard).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(UserError, match="a link that leads out of the model"):
        load(sharded)


def test_a_snapshot_of_the_hubs_cache_is_loaded_through_its_links(
    sharded: Path, tmp_path: Path, llama: MakeLlama
) -> None:
    repository = tmp_path / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert weights_digest(load(snapshot).model) == weights_digest(llama(2))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{"]
)
def test_what_is_no_index_is_refused_in_a_sentence(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(UserError, match="has no weight_map|is not valid JSON"):
        load(sharded)


def test_an_index_of_the_hub_that_leads_out_of_the_cache_is_refused(
    sharded: Path, tmp_path: Path
) -> None:
    rename(sharded, one_shard(sharded), "../../../../outside.safetensors")
    repository = tmp_path / "home" / "hub" / "models--owner--tiny"
    shutil.copytree(sharded, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    code = (
        "from elder.model.load import load_model; from elder.params import Model;"
        " load_model(Model(name='owner/tiny', device='cpu'))"
    )
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | home,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'../../../../outside.safetensors', which leads outside" in done.stderr


def test_a_folder_that_was_downloaded_with_links_into_the_cache_is_loaded(
    sharded: Path, tmp_path: Path
) -> None:
    blobs = tmp_path / "hub" / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.glob("*.safetensors"))):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert load(sharded).num_layers == 2


def test_an_index_without_metadata_is_named(sharded: Path) -> None:
    tree = json.loads((sharded / INDEX).read_text())
    del tree["metadata"]
    (sharded / INDEX).write_text(json.dumps(tree))
    with pytest.raises(UserError, match="index.json' has no metadata"):
        load(sharded)
