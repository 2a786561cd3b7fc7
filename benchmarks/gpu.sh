#!/usr/bin/env bash
# Measure every stage on one GPU at LLaMA2-7B's shape, in parts of at most ten minutes; see benchmarks/README.md.
#
#   benchmarks/gpu.sh PART [--out FOLDER] [--text BOOKS] [--shape 7b|tiny] ...
#
# PART: select, regularise, recover, speed, default, train, or all. Each part is a process of its own: only its end surely frees
# the GPU's memory. What is measured already is not measured again, so a part that was cut goes on.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
parts=(select regularise recover speed default train)
export GPU_COMMAND="benchmarks/gpu.sh $*"

part=${1:-}
if [[ -z $part || ! " ${parts[*]} all " == *" $part "* ]]; then
    echo "error: there is no part '$part'; valid: ${parts[*]} all" >&2
    exit 2
fi
shift

"$python" - <<'EOF' || exit 2
import importlib.util
import sys

needed = ("torch", "transformers", "safetensors", "tokenizers", "peft", "numpy", "pydantic", "rich", "yaml")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}; install them, or name another with PYTHON=")
if sys.version_info < (3, 11):
    sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}, 3.11 or newer is needed; name one with PYTHON=")
EOF

[[ $part == all ]] || parts=("$part")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
for part in "${parts[@]}"; do
    "$python" "$root/benchmarks/gpu.py" "$part" "$@"
done
