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


def environment(device: str = "auto") -> dict[str, Any]:
    """Return the packages that are installed, the platform, the device used and the number of threads.

    Args:
        device: as the user named it: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: if this machine does not have the device.
    """
    import torch

    from elder.device import device_of

    used = device_of(device)
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
        "device": torch.cuda.get_device_name(used)
        if used.type == "cuda"
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
