"""An audit finds nothing wrong with an honest version, and names each of many ways to tamper with one."""

import hashlib
import json
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from elder import params
from elder.compression.compress import save_with_record
from elder.errors import UserError
from elder.evaluation.gate import judge
from elder.model.layers import remove_layers
from elder.model.load import parameter_count, weights_digest
from elder.model.save import save_model
from elder.record import CompressionRecord, Record, Row, Speed, plain
from elder.settings import validate
from tasks.audit.run import audit
from tasks.provenance import signing
from tasks.provenance.signing import SIGNATURE
from tasks.record import publish
from tasks.registry.client import Registry
from tasks.store.manifest import MANIFEST, describe, digest, dump

TEXT = "a b c a b b c a " * 60
PLAIN = {"trainable_parameters": 0, "tokens_seen": 0, "seconds": 1.0, "peak_memory_bytes": 0}


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
        LlamaConfig(vocab_size=4, num_hidden_layers=3, max_position_embeddings=16, **size)
    )
    save_model(model, words(), root / "models" / "dense")
    cached = root / ".dvc" / "cache" / "files" / "md5" / md5()[:2] / md5()[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text(TEXT)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    return root


def md5() -> str:
    return hashlib.md5(TEXT.encode()).hexdigest()


def words() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


def parameters(root: Path) -> dict[str, Any]:
    """Return parameters with which the gate refuses everything and only says so; the model has no task of lm-eval."""
    return {
        "model": {"name": "models/dense"},
        "calibration": {"seq_len": 8},
        "evaluate": {"tasks": [], "max_tokens": 256},
        "gate": {
            "mode": "dry-run",
            "max_perplexity_ratio_in_domain": 1e-3,
            "max_task_mean_loss": None,
        },
        "store": {"url": str(root / "store")},
        "registry": {"name": "shallow", "tracking_uri": f"sqlite:///{root}/mlflow.db"},
    }


@pytest.fixture(scope="module")
def settings(root: Path) -> params.Params:
    return validate(parameters(root))


@pytest.fixture(scope="module")
def shallow(root: Path, settings: params.Params) -> tuple[LlamaForCausalLM, dict[str, Any]]:
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
    speed = {"dense": {"prompt_ms": 2.0}, "ratio": {"prompt_speedup": 1.5}}
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
            {"stage": "recover", "step": step, "loss": 3.5 - step, "lr": 0.5} for step in (1, 2)
        ],
        "parameters_before": before,
        "parameters_after": parameter_count(model),
        "rows": rows,
        "speed": speed,
        "champion": None,
        "gate": plain(
            judge(
                settings.gate,
                *(Row.model_validate(row) for row in rows),
                Speed.model_validate(speed),
                None,
            )
        ),
        "data": {"source": {}, "stages": {"evaluation": {"outs": outs}}},
        "lineage": lineage | {"params": settings.model_dump(mode="json")},
    }


Version = SimpleNamespace


@pytest.fixture
def publish_version(
    root: Path,
    settings: params.Params,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    tmp_path: Path,
) -> Callable[..., Version]:
    """Publish the shallower model as a version of its own, as the flow does; a test may spoil it."""
    made: list[Version] = []

    def make(section: params.Signing = settings.signing) -> Version:
        model, record = shallow
        run_id = f"{tmp_path.name}-{len(made)}"
        record, folder = record | {"run_id": run_id}, tmp_path / run_id
        save_with_record(model, words(), folder, CompressionRecord.model_validate(record))
        with_key = settings.model_copy(update={"signing": section})
        published = publish.fn(folder, record, with_key, root)
        registry, typed = Registry(settings.registry), Record.model_validate(record)
        run = registry.start_run(run_id)
        registry.log_record(run, typed)
        number = registry.register(run, typed, published)
        later = {
            "artifact": published.model_dump(exclude={"uploaded_bytes"}),
            "model_version": number,
        }
        registry.log_files(run, typed.model_copy(update=later))
        client = registry.client
        place = Path(published.url)
        made.append(
            Version(
                number=number,
                run=run,
                place=place,
                url=published.url,
                client=client,
                again=make,
                root=root,
            )
        )
        return made[-1]

    return make


@pytest.fixture
def version(publish_version: Callable[..., Version]) -> Version:
    return publish_version()


def broken(
    settings: params.Params, root: Path, version: Version, **options: Any
) -> dict[str, str]:
    """Audit; return what does not hold, and what was said of it."""
    result = audit(settings, root, f"shallow/{version.number}", **options)
    faults = {check.name: check.detail for check in result.checks if check.ok is False}
    assert result.ok is (not faults)
    return faults


def test_an_honest_version_holds_in_everything(
    settings: params.Params, root: Path, version: Version
) -> None:
    result = audit(settings, root, "shallow@challenger", measure=True)
    assert [check for check in result.checks if check.ok is not True] == []
    assert (result.ok, result.name, result.version) == (True, "shallow", version.number)
    assert len(result.checks) == 16


def test_a_run_that_publishes_again_publishes_the_same_bytes(
    root: Path,
    settings: params.Params,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    tmp_path: Path,
) -> None:
    model, record = shallow
    save_with_record(
        model, words(), tmp_path / "model", CompressionRecord.model_validate(record)
    )
    first = publish.fn(tmp_path / "model", record, settings, root)
    second = publish.fn(tmp_path / "model", record, settings, root)
    assert (second.digest, second.uploaded_bytes) == (first.digest, 0)
    assert {"record.json", "bom.cdx.json", "model.sig", "README.md", "elder.json"} <= set(
        first.files
    )


def flip(path: Path) -> None:
    """Turn over one bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree, indent=1) + "\n")


def renew_manifest(place: Path) -> str:
    """Write a manifest that fits the files as they are, as somebody would who covers his tracks."""
    files = {path: file for path, file in describe(place).items() if path != MANIFEST}
    (place / MANIFEST).write_bytes(dump(files))
    return digest(files)


def weights_flipped(version: Version) -> None:
    flip(version.place / "model.safetensors")


def tokenizer_flipped(version: Version) -> None:
    flip(version.place / "tokenizer.json")


def record_edited(version: Version) -> None:
    edit(version.place / "record.json", lambda record: record["energy"].update(kwh=0.125))
    renew_manifest(version.place)


def metric_changed(version: Version) -> None:
    version.client.log_metric(version.run, "candidate/perplexity/in_domain", 1.0)


def file_missing(version: Version) -> None:
    (version.place / "README.md").unlink()


def file_added(version: Version) -> None:
    (version.place / "extra.py").write_text("print()")


def verdict_flipped(version: Version) -> None:
    edit(version.place / "record.json", lambda record: record["gate"].update(passed=True))
    renew_manifest(version.place)


def tag_changed(version: Version) -> None:
    version.client.set_model_version_tag("shallow", version.number, "gate", "passed")


def digest_tag_changed(version: Version) -> None:
    version.client.set_model_version_tag("shallow", version.number, "digest", "0" * 64)


def repointed(version: Version) -> None:
    other = version.again()
    with sqlite3.connect(version.root / "mlflow.db") as database:
        change = "update model_versions set source = ?, storage_location = ? where name = 'shallow' and version = ?"
        assert (
            database.execute(
                change, (str(other.place), str(other.place), int(version.number))
            ).rowcount
            == 1
        )


def signed_by_another(version: Version) -> None:
    other = params.Signing(private_key="other.pem")
    signing.sign(version.place, other, version.root)
    renew_manifest(version.place)


def bill_edited(version: Version) -> None:
    edit(
        version.place / "bom.cdx.json", lambda bom: bom["components"][0].update(version="6.6.6")
    )
    renew_manifest(version.place)


def artifact_edited(version: Version) -> None:
    version.client.log_text(version.run, json.dumps({"rows": []}), "record.json")


def artifact_missing(version: Version) -> None:
    (attached,) = (version.root / "mlartifacts").rglob(f"{version.run}/artifacts/record.json")
    attached.unlink()


def layer_weights_edited(version: Version) -> None:
    version.client.log_text(version.run, "{}", "layer_weights.json")


def manifest_edited(version: Version) -> None:
    edit(
        version.place / MANIFEST,
        lambda manifest: manifest["files"]["config.json"].update(bytes=1),
    )


STORED = {
    "files",
    "digest",
    "signature",
    "bill of materials",
}  # what a changed file breaks, seen from four sides
COVERED = {
    "manifest",
    "digest",
    "signature",
    "bill of materials",
}  # the same, where the manifest was made to fit


# How, the checks that find it, and what they name.
TAMPERED: list[tuple[Callable[[Version], None], set[str], str]] = [
    (weights_flipped, STORED, "model.safetensors"),
    (tokenizer_flipped, STORED, "tokenizer.json"),
    (record_edited, COVERED | {"record in MLflow", "metrics in MLflow"}, "energy"),
    (metric_changed, {"metrics in MLflow"}, "candidate/perplexity/in_domain"),
    (file_missing, STORED, "README.md"),
    (file_added, STORED - {"bill of materials"}, "extra.py"),
    (
        verdict_flipped,
        COVERED | {"record in MLflow", "gate", "tags"},
        "passed is True, judged again False",
    ),
    (tag_changed, {"tags"}, "gate"),
    (digest_tag_changed, {"digest", "record in MLflow"}, "tag digest is 000"),
    (repointed, {"digest", "record in MLflow", "tags"}, "is not the place of its digest"),
    (signed_by_another, COVERED - {"bill of materials"}, "does not hold"),
    (bill_edited, COVERED, "components"),
    (artifact_edited, {"record in MLflow"}, "curve"),
    (artifact_missing, {"record in MLflow"}, "download artifacts from path 'record.json'"),
    (layer_weights_edited, {"layer weights"}, "layer_weights.json"),
    (manifest_edited, {"manifest"}, "manifest.json"),
]


@pytest.mark.parametrize(("tamper", "expected", "named"), TAMPERED)
def test_every_kind_of_tampering_is_found_and_named(
    settings: params.Params,
    root: Path,
    version: Version,
    tamper: Callable[[Version], None],
    expected: set[str],
    named: str,
) -> None:
    tamper(version)
    found = broken(settings, root, version)
    assert set(found) == expected
    assert named in " ".join(found.values())


def test_whoever_covers_all_tracks_but_has_no_key_is_found(
    settings: params.Params, root: Path, version: Version
) -> None:
    """Seconds are in the record alone: every place that repeats them is made to fit."""
    edit(
        version.place / "record.json",
        lambda record: record.update(created="2026-11-25T02:15:00+00:00"),
    )
    from tasks.provenance.bom import write_bom

    record = json.loads((version.place / "record.json").read_text())
    (version.place / MANIFEST).unlink()
    write_bom(version.place, Record.model_validate(record), leave_out=(SIGNATURE,))
    new = renew_manifest(version.place)
    moved = version.place.rename(version.place.with_name(new))
    with sqlite3.connect(root / "mlflow.db") as database:
        change = "update model_versions set source = ?, storage_location = ? where name = 'shallow' and version = ?"
        database.execute(change, (str(moved), str(moved), int(version.number)))
    version.client.set_model_version_tag("shallow", version.number, "digest", new)
    later = {"artifact": {"url": str(moved), "digest": new}, "model_version": version.number}
    version.client.log_text(version.run, json.dumps(record | later), "record.json")
    assert set(broken(settings, root, version)) == {"signature"}


def test_the_key_decides_who_must_have_signed(
    settings: params.Params, root: Path, publish_version: Callable[..., Version]
) -> None:
    other = publish_version(params.Signing(private_key="other.pem"))
    assert set(broken(settings, root, other)) == {"signature"}
    assert broken(settings, root, other, public_key=root / "other.pub.pem") == {}
    with pytest.raises(UserError, match="there is no public key"):
        audit(settings, root, f"shallow/{other.number}", public_key=root / "absent.pem")


def test_what_is_not_here_is_neither_right_nor_wrong(
    settings: params.Params, tmp_path: Path, version: Version, root: Path
) -> None:
    result = audit(settings, tmp_path, f"shallow/{version.number}")
    unknown = {check.name: check.detail for check in result.checks if check.ok is None}
    assert set(unknown) == {"signature", "source model", "data", "commit"}
    assert all(detail.startswith("not checked here: ") for detail in unknown.values())
    assert result.ok is True


def test_a_source_model_that_changed_since_is_named(
    settings: params.Params, root: Path, version: Version
) -> None:
    weights = root / "models" / "dense" / "model.safetensors"
    before = weights.read_bytes()
    flip(weights)
    try:
        assert set(broken(settings, root, version)) == {"source model"}
    finally:
        weights.write_bytes(before)


def test_names_that_mean_nothing_are_refused(
    settings: params.Params, root: Path, version: Version
) -> None:
    for name in ("shallow", "shallow@", "a/b/3"):
        with pytest.raises(UserError, match="NAME@ALIAS or NAME/VERSION"):
            audit(settings, root, name)
    with pytest.raises(UserError, match="absent"):
        audit(settings, root, "absent/1")
