#!/bin/sh
# Run the Python that has this project installed: the one on PATH, otherwise .venv's. dvc.yaml calls its stages through
# this, so that `.venv/bin/dvc repro` works in a shell where no environment is active.
for python in python python3 .venv/bin/python; do
    if "$python" -I -c 'from importlib.metadata import version; version("elder")' 2>/dev/null; then
        exec "$python" "$@"
    fi
done
echo "error: no Python on PATH and none in .venv has this project installed; run 'make demo' once" >&2
exit 2
