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

# For processes that work on a CPU; a user's own values win. glibc would give every large tensor back to the system and
# ask for it again. GNU OpenMP's threads would spin while they wait for each other, which takes from one another what a
# busy machine has left. `benchmarks/cpu.py` measures both. Other libraries do not look at these.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "1000"}
CPU_SETTINGS = KEEP_MEMORY | SPIN_BRIEFLY


def environment(device: str = "auto") -> dict[str, Any]:
    """Return the packages that are installed, the platform, the device used and the number of threads.

    Args:
        device: as the user named it: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: if this machine does not have the device.
    """
    import torch

    from elder.model import device_of

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
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
