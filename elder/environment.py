"""What a result was made with: package versions, Python, machine and device."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "elder",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "lm_eval",
    "peft",
    "prefect",
    "mlflow",
    "dvc",
    "boto3",
)


def environment() -> dict[str, Any]:
    """Return the packages that are installed, the platform, the device and the number of threads."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
