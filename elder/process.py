"""How a process of this project behaves: what its libraries may print, and how they use memory and threads."""

import os
import sys
import warnings

# For processes that work on a CPU; a user's own values win. glibc would give every large tensor back to the system and
# ask for it again. GNU OpenMP's threads would spin while they wait for each other, which takes from one another what a
# busy machine has left. `benchmarks/cpu.py` measures both. Other libraries do not look at these.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "1000"}


CPU_SETTINGS = KEEP_MEMORY | SPIN_BRIEFLY


def prepare_libraries() -> None:
    """Keep progress bars and notices of other libraries off the terminal, and idle threads off the processor."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")
