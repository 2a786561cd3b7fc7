"""lm-evaluation-harness (lm-eval) as a guest: found or asked for, kept silent, and made to draw the same each time."""

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

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


class TextsBegin:
    """Laid over lm-eval's model: all that it reads begins as other texts do, with ``bos``, also where it is cut.

    lm-eval itself asks the tokenizer, loses the token where it cuts a text that is too long, and doubles it, and counts
    its loss, in a rolling likelihood.
    """

    bos: tuple[int, ...] = ()
    max_length: int

    @property
    def prefix_token_id(self) -> int:
        """Return what stands in for no context."""
        own: int = self.bos[-1] if self.bos else super().prefix_token_id  # type: ignore[misc]
        return own

    def _loglikelihood_tokens(self, requests: list, *args: Any, **kwargs: Any) -> list:
        begun = [
            (text, self._context(context, continuation), continuation)
            for text, context, continuation in requests
        ]
        told: list = super()._loglikelihood_tokens(begun, *args, **kwargs)  # type: ignore[misc]
        return told

    def _context(self, context: list[int], continuation: list[int]) -> list[int]:
        """Return a context that begins so, and is short enough for what follows."""
        bos = list(self.bos)
        if not bos:
            return context
        if context[: len(bos)] == bos:
            context = context[len(bos) :]
        elif context[:1] == bos[-1:]:  # lm-eval's stand-in for no context
            context = context[1:]
        whole = len(bos) + len(context) + len(continuation)
        over = max(0, whole - self.max_length - 1)  # the last token is not read
        return bos + context[over:]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, (strings, tokens), of texts that are padded on the left."""
        bos = torch.tensor(self.bos, dtype=torch.int64)
        room = left_truncate_len and left_truncate_len - len(bos)
        ids, mask = super().tok_batch_encode(strings, padding_side, room, truncation)  # type: ignore[misc]
        ids, mask = (F.pad(tensor, (len(bos), 0)) for tensor in (ids, mask))
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            start = ids.shape[1] - length
            if not torch.equal(ids[row, start : start + len(bos)], bos):
                ids[row, start - len(bos) : start] = bos
                mask[row, start - len(bos) : start] = 1
        return ids, mask


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
