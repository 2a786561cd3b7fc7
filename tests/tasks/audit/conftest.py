"""A version that is honest in everything: a dense model without its middle layer, published and registered."""

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from elder import params
from elder.compression.compress import save_with_record
from elder.evaluation.gate import judge
from elder.model.layers import remove_layers
from elder.model.load import parameter_count, weights_digest
from elder.model.save import save_model
from elder.record import CompressionRecord, Record, Row, Speed, plain
from elder.report.html import write_report
from elder.settings import validate
from tasks.provenance.keys import signer_if_any, signer_of
from tasks.record import publish_folder
from tasks.registry.client import Registry
from tests.tasks.audit.published import TEXT, Version, md5, parameters, words

PLAIN = {
    "trainable_parameters": 0,
    "tokens_seen": 0,
    "seconds": 1.0,
    "peak_memory_bytes": 0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project: a dense model of three layers, a text in DVC's cache, a git repository with one commit."""
    root = tmp_path_factory.mktemp("a project")
    torch.manual_seed(0)
    size = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4, num_hidden_layers=3, max_position_embeddings=16, **size
        )
    )
    save_model(model, words(), root / "models" / "dense")
    cached = root / ".dvc" / "cache" / "files" / "md5" / md5()[:2] / md5()[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text(TEXT)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    trust_a_key(root)
    return root


def trust_a_key(root: Path) -> None:
    """Make the project's key, and trust it from before the record was made."""
    signer_of(params.Signing(), root, "model")
    trusted = root / "keys" / "trusted.yaml"
    keys = yaml.safe_load(trusted.read_text())
    trusted.write_text(yaml.safe_dump([keys[0] | {"since": "2026-11-01"}]))


@pytest.fixture(scope="module")
def settings(root: Path) -> params.Params:
    return validate(parameters(root))


@pytest.fixture(scope="module")
def shallow(
    root: Path, settings: params.Params
) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Return the model without its middle layer, and a record of how that was done."""
    from elder.evaluation.perplexity import perplexity_of_text
    from elder.model.load import Loaded

    model = LlamaForCausalLM.from_pretrained(root / "models" / "dense").eval()
    before, sha256 = parameter_count(model), weights_digest(model)
    text = root / "text.txt"
    text.write_text(TEXT)

    def row(kind: str) -> dict[str, Any]:
        loaded = Loaded(model, words(), kind, None, torch.float32)
        found = plain(perplexity_of_text(loaded, text, 8, 256, 16))
        measured = {"in_domain": found, "out_of_domain": found}
        return {
            "name": kind,
            "kind": kind,
            "perplexity": measured,
            "tasks": {},
            "task_mean": None,
        } | PLAIN

    dense = row("dense")
    remove_layers(model, [1])
    rows = [dense, row("candidate")]
    typed_rows = [Row.model_validate(row) for row in rows]
    speed = {
        "dense": {"prompt_ms": 2.0},
        "ratio": {"prompt_speedup": 1.5},
        "weights": {"finite": True, "factor": 1.5, "matrix": "lm_head.weight"},
    }
    weights = {
        "name": "layer weight",
        "rounds": [{"removed": [1], "values": [0.5, 0.25, 0.75], "checked": []}],
    }
    data = {f"{domain}.txt": md5() for domain in ("in_domain", "out_of_domain")}
    outs = [
        {"path": f"build/data/{name}", "md5": value, "size": len(TEXT)}
        for name, value in data.items()
    ]
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lineage = {
        "git_commit": head,
        "git_clean": True,
        "data": data,
        "installed": {"torch": torch.__version__},
    }
    return model, {
        "run_id": "to be replaced",
        "created": "2026-11-24T02:15:00+00:00",
        "seconds": 1.5,
        "energy": {"kwh": 0.25},
        "model": {
            "name": "models/dense",
            "revision": None,
            "digest": sha256,
            "num_layers": 3,
            "parameters": before,
        },
        "method": "default",
        "num_layers": 3,
        "removed": [1],
        "kept": [0, 2],
        "scores": weights,
        "weights": weights,
        "curve": [
            {"stage": "recover", "step": step, "loss": 3.5 - step, "lr": 0.5}
            for step in (1, 2)
        ],
        "parameters_before": before,
        "parameters_after": parameter_count(model),
        "rows": rows,
        "speed": speed,
        "champion": None,
        "gate": plain(
            judge(settings.gate, *typed_rows, Speed.model_validate(speed), None)
        ),
        "data": {"source": {}, "stages": {"evaluation": {"outs": outs}}},
        "lineage": lineage | {"params": settings.model_dump(mode="json")},
    }


@pytest.fixture
def publish_version(
    root: Path,
    settings: params.Params,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    tmp_path: Path,
) -> Callable[..., Version]:
    """Publish the shallower model as a version of its own, as the flow does; a test may spoil it.

    Each test has a registered model to itself.
    """
    made: list[Version] = []
    name = tmp_path.name.replace("_", "-")

    def make(section: params.Signing = settings.signing) -> Version:
        named = settings.registry.model_copy(update={"name": name})
        own = settings.model_copy(update={"registry": named, "signing": section})
        run_id = f"{name}-{len(made)}"
        record = copy.deepcopy(shallow[1]) | {"run_id": run_id}
        record["lineage"]["params"] = own.model_dump(mode="json")
        made.append(publish(own, root, (shallow[0], record), tmp_path / run_id))
        made[-1].again = make
        made[-1].get, made[-1].put = reader(root / "store"), writer(root / "store")
        return made[-1]

    return make


def reader(store: Path) -> Callable[[str], bytes]:
    return lambda key: (store / key).read_bytes()


def writer(store: Path) -> Callable[[str, bytes | None], None]:
    """Return a function that replaces an object of the store, or takes it away."""

    def put(key: str, data: bytes | None) -> None:
        path = store / key
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    return put


def publish(
    settings: params.Params,
    root: Path,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    folder: Path,
) -> Version:
    """Publish and register as the flow does."""
    model, record = shallow
    save_with_record(model, words(), folder, CompressionRecord.model_validate(record))
    typed = Record.model_validate(record)
    published = publish_folder(folder, typed, settings, root)
    registry, signer = (
        Registry(settings.registry),
        signer_if_any(settings.signing, root),
    )
    run = registry.start_run(record["run_id"])
    registry.log_record(run, typed)
    number = registry.register_version(run, typed, published, signer)
    report = folder.with_name("report.html")
    write_report(typed, report)
    registry.log_files(run, typed, report, signer)
    return Version(
        name=settings.registry.name,
        number=number,
        run=run,
        place=Path(published.url),
        url=published.url,
        digest=published.digest,
        client=registry.client,
        root=root,
        settings=settings,
    )


@pytest.fixture
def version(publish_version: Callable[..., Version]) -> Version:
    return publish_version()
