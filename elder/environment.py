"""What a result was made with: package versions, Python, machine and device."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

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


class Environment(TypedDict):
    """What a result was made with; `elder.record.Lineage` holds the same fields.

    Attributes:
        packages: {name: version} of those of `PACKAGES` that are installed.
        python: its version.
        platform: system, kernel and architecture.
        device: name of the GPU, or kind of the CPU.
        threads: that torch uses on the CPU.
    """

    packages: dict[str, str]
    python: str
    platform: str
    device: str
    threads: int


def environment(device: str = "auto") -> Environment:
    """Return the packages that are installed, the platform, the device used and the number of threads.

    Args:
        device: as the user named it: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: if this machine does not have the device.
    """
    import torch

    from elder.device import device_of

    used = device_of(device)
    cpu = platform.processor() or "cpu"
    return {
        "packages": _installed(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
    }


def _installed() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
