"""What makes a published folder a model of MLflow, too: ``MLmodel``, an example, and what its readers need installed.

MLflow's own `save_model` copies the weights, so the files are written here, as `mlflow.transformers` lays them out,
with the checkpoint itself as ``model_binary``. They say how to load and name no code: what loads is transformers' own.
The same record gives the same bytes.
"""

import json
import platform
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from elder.files import read_json, write_text
from elder.record import Json, Record
from tasks.provenance.bom import BOM, RECORD
from tasks.provenance.signing import SIGNATURE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MLMODEL = "MLmodel"
EXAMPLE, REQUEST = "input_example.json", "serving_input_example.json"
REQUIREMENTS, PYTHON_ENV, CONDA = "requirements.txt", "python_env.yaml", "conda.yaml"
PACKAGES = ("mlflow", "torch", "transformers", "accelerate")  # that readers need
PROMPT, NEW_TOKENS = "It was", 16  # of the example
# where mlflow.transformers looks for the tokenizer
TOKENIZER = Path("components") / "tokenizer"
OTHERS = (
    *("*.safetensors", "*.safetensors.index.json", "generation_config.json"),
    *("README.md", "elder.json", RECORD, BOM, SIGNATURE, "components"),
    *(MLMODEL, EXAMPLE, REQUEST, REQUIREMENTS, PYTHON_ENV, CONDA),
)
# All that an MLmodel of this program says of how it is loaded. transformers' automatic classes run no code of a
# model's, while MLflow trusts it where it meets a class that transformers does not have.
LOADING: dict[str, dict[str, Json]] = {
    "python_function": {
        "loader_module": "mlflow.transformers",
        "env": {"conda": CONDA, "virtualenv": PYTHON_ENV},
    },
    "transformers": {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": "AutoModelForCausalLM",
        "model_binary": ".",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
    },
}
TOLD = {
    "python_function": {"python_version"},
    "transformers": {"transformers_version", "torch_dtype"},
}
# of MLmodel, beside the flavours: nothing of it leads to code
INERT = {
    *("is_signature_from_type_hint", "type_hint_from_example", "prompts", "model_id"),
    *("mlflow_version", "model_uuid", "saved_input_example_info", "signature"),
    "utc_time_created",
}


def write_flavour(folder: Path, record: Record) -> None:
    """Make a model folder a model of MLflow, with the flavours ``transformers`` and ``python_function``.

    Args:
        folder: the model's, with the checkpoint.
        record: of the run that made it.
    """
    from mlflow.models import Model

    example = {
        "artifact_path": EXAMPLE,
        "type": "json_object",
        "serving_input_path": REQUEST,
    }
    made = datetime.fromisoformat(record.created).astimezone(UTC)
    versions = record.lineage.packages | record.lineage.installed
    python = record.lineage.python or platform.python_version()
    model = Model(
        signature=signature(),
        saved_input_example_info=example,
        model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, f"run:{record.run_id}").hex,
        utc_time_created=f"{made:%Y-%m-%d %H:%M:%S}",
        mlflow_version=versions.get("mlflow"),
    )
    for name, loading in _flavours(folder, versions, python).items():
        model.add_flavor(name, **loading)
    write_text(folder / MLMODEL, model.to_yaml())
    request = {"inputs": [PROMPT], "params": {"max_new_tokens": NEW_TOKENS}}
    write_text(folder / EXAMPLE, json.dumps([PROMPT]))
    write_text(folder / REQUEST, json.dumps(request, indent=1) + "\n")
    _write_requirements(folder, versions, python)
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
    shutil.copytree(folder, folder / TOKENIZER, ignore=shutil.ignore_patterns(*OTHERS))


def signature() -> "ModelSignature":
    """Return what goes in and comes out: texts, continued greedily by 64 tokens unless the request says otherwise."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", 64),
            ParamSpec("do_sample", "boolean", False),
            ParamSpec("temperature", "double", 1.0),
            ParamSpec("top_p", "double", 1.0),
        ]
    )
    return ModelSignature(text, text, params)


def faults(text: str) -> list[str]:
    """Say what in an MLmodel is not of this program and could make MLflow load something else, or run foreign code.

    Args:
        text: content of MLmodel.
    """
    try:
        tree = yaml.safe_load(text)
        flavours = {name: dict(one) for name, one in tree["flavors"].items()}
        more = sorted(set(tree) - INERT - {"flavors"})
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return ["it cannot be read"]
    sentences = [f"it says {name}, which no model here has" for name in more]
    if set(flavours) != set(LOADING):
        sentences.append(f"its flavours are {', '.join(sorted(map(str, flavours)))}")
    for name in flavours.keys() & LOADING.keys():
        wanted, present = LOADING[name], flavours[name]
        for key in sorted((wanted.keys() | present.keys()) - TOLD[name]):
            if present.get(key) != wanted.get(key):
                sentences.append(
                    f"its {key} of {name} is {json.dumps(present.get(key), default=str)[:200]} instead of"
                    f" {json.dumps(wanted.get(key))}"
                )
    return sentences


def _flavours(
    folder: Path, versions: dict[str, str], python: str
) -> dict[str, dict[str, Json]]:
    """Return both flavours: how the model is loaded, and with which versions and dtype it was saved."""
    config = read_json(folder / "config.json")
    told: dict[str, dict[str, Json]] = {
        "python_function": {"python_version": python},
        "transformers": {
            "transformers_version": versions.get("transformers"),
            "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
        },
    }
    return {
        name: loading
        | {key: value for key, value in told[name].items() if value is not None}
        for name, loading in LOADING.items()
    }


def _write_requirements(folder: Path, versions: dict[str, str], python: str) -> None:
    """Write what has to be installed, for pip, for virtual environments and for conda."""
    lines = []
    for name in PACKAGES:
        # PyPI has no local versions, such as 2.13.0+cpu
        version = versions.get(name, "").partition("+")[0]
        lines.append(f"{name}=={version}" if version else name)
    write_text(folder / REQUIREMENTS, "\n".join(lines) + "\n")
    environment = {
        "python": python,
        "build_dependencies": ["pip"],
        "dependencies": [f"-r {REQUIREMENTS}"],
    }
    write_text(folder / PYTHON_ENV, yaml.safe_dump(environment, sort_keys=False))
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": lines}],
    }
    write_text(folder / CONDA, yaml.safe_dump(conda, sort_keys=False))
