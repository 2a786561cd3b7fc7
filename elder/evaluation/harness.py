"""lm-evaluation-harness (lm-eval) as a guest: found or asked for, kept silent, and made to draw the same each time."""

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

from elder.errors import UserError

FEWSHOT_SEED = (
    1234  # lm-eval's own default, so that its published figures can be repeated
)


def need_lm_eval() -> None:
    """Import lm-eval, without its logs, its bars and its messages to the Hub.

    Raises:
        UserError: if it is not installed.
    """
    # else lm-eval forks a CUDA process to bootstrap
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        import datasets
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tasks need lm-eval, and {error.name} is missing; install it with: pip install 'lm-eval[hf]', "
            "or run no tasks with --set evaluate.tasks=[]"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # its ping is the one thing that local data would send out
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


@contextlib.contextmanager
def undisturbed(folder: Path | None) -> Iterator[None]:
    """Work in a folder, with what lm-eval prints kept off stdout and stderr, and its draws seeded.

    Raises:
        UserError: if there is no such folder.
    """
    import numpy as np

    if folder and not folder.is_dir():
        raise UserError(
            f"there is no folder of task data {str(folder)!r}; set evaluate.task_data"
        )
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    with contextlib.ExitStack() as stack:
        if folder:
            stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
