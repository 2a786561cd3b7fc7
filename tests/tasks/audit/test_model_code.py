"""Python code that comes with a model is never run by an audit, and by others only where a person asked for it.

Each call runs on a terminal on which ``y`` was typed before: who asks there whether to run the code is told yes.
"""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.model.check import check_model
from elder.params import Model

PROJECT = Path(__file__).parents[3]
CODE = """
import sys
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Path(__file__).with_name("it ran").touch()
(Path.cwd() / "it ran").touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own"


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {
    "AutoConfig": "own.OwnConfig",
    "AutoModelForCausalLM": "own.OwnModel",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}
BEGIN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from elder.params import Model
from elder.settings import validate
folder = Path(sys.argv[1])
trusting = validate({"model": {"name": str(folder), "trust_remote_code": True}})
wary = validate({"model": {"name": str(folder)}})
tree = {"lineage": {"params": trusting.model_dump(mode="json")}}
facts = SimpleNamespace(name=str(folder), digest="0" * 64, revision=None)
record = SimpleNamespace(
    num_layers=3, parameters_after=9, kept=[0, 2], removed=[1], model=facts,
    lineage=SimpleNamespace(params=trusting.model_dump(mode="json")), candidate=SimpleNamespace(perplexity={}),
)
evidence = SimpleNamespace(content=lambda: folder, record=record, settings=trusting, root=folder.parent)
"""
CALLS = {
    "layers": "from tasks.audit.store import layers; layers(evidence)",
    "source model": "from tasks.audit.record import source_model; source_model(evidence)",
    "measured again": "from tasks.audit.record import measured_again; measured_again(evidence)",
    "load": "from elder.model.load import load_model; load_model(wary.model)",
    "prepare": "from tasks.prepare import load_tokenizer; load_tokenizer(wary, {})",
    "plain": "from elder.evaluation.plain_transformers import load_in_plain_transformers as load;"
    " sys.exit(load(folder).fault)",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a model that cannot be loaded without its own code."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "own", "num_hidden_layers": 2, "auto_map": OWN}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": OWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "own.py").write_text(CODE)
    return folder


def on_a_terminal(code: str, folder: Path) -> str:
    """Run Python on a terminal, its input an endless yes; returns what stands there."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 20)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "HF_HOME": str(folder.parent)},
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode, "it was loaded"
    return done.stdout + done.stderr


@pytest.mark.parametrize("call", CALLS)
def test_no_code_of_a_model_is_run_and_nobody_is_asked(folder: Path, call: str) -> None:
    said = on_a_terminal(BEGIN + CALLS[call], folder)
    assert "[y/N]" not in said
    assert not list(folder.parent.rglob("it ran"))
    audits = call in ("layers", "source model", "measured again")
    assert ("which an audit never runs" in said) is audits
    assert "needs code that comes with it" in said or call in ("prepare", "plain")


def test_the_trap_works(folder: Path) -> None:
    """What transformers does by itself, which the audit left to it before."""
    code = "import sys; from transformers import AutoConfig; AutoConfig.from_pretrained(sys.argv[1]); sys.exit(1)"
    assert "[y/N]" in on_a_terminal(code, folder)
    assert list(folder.parent.rglob("it ran"))


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": {"": "sdpa", "text_config": "owner/kernel:run"}},
        {"text_config": {"_experts_implementation": "owner/kernel"}},
    ],
)
def test_kernels_of_the_hub_are_code_too(
    folder: Path, fields: dict[str, object]
) -> None:
    content = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | fields
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="needs code of the Hub, 'owner/kernel"):
        check_model(str(folder), Model(name=str(folder)))
