"""The Hub: which commit a name means, what is in it, and its refusals in sentences that say what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from elder.errors import UserError
from elder.progress import say

COMMIT = re.compile(r"[0-9a-f]{40}")
PATIENCE = 20  # seconds that the Hub may take to say what a name means
DATASET, MODEL = "dataset", "model"  # kinds of repositories
PAGES: dict[str, list[str]] = {DATASET: ["datasets"], MODEL: []}
NOT_HERE = {DATASET: "", MODEL: ", and the cache has no whole copy"}


@dataclass(frozen=True)
class Found:
    """A repository at one commit.

    Attributes:
        commit: which one.
        files: the paths in it; None where the Hub was not asked.
    """

    commit: str
    files: frozenset[str] | None


def find(name: str, revision: str | None, kind: str) -> Found:
    """Resolve a branch or tag of a repository to its commit.

    A commit is not asked for, unless it is a model's whose files are not in the cache. Where the Hub does not answer,
    or may not be asked, a model is taken as the cache has it.

    Args:
        name: of the repository.
        revision: commit, branch or tag; None is the main branch.
        kind: ``model`` or ``dataset``.

    Raises:
        UserError: if there is no such repository or revision, it may not be read, or cannot be asked for.
    """
    from huggingface_hub import HfApi

    if revision and COMMIT.fullmatch(revision) and _at_hand(name, revision, kind):
        return Found(revision, None)
    api = HfApi()
    with plain_refusals(name, revision, kind):
        try:
            told: Any = api.repo_info(
                name, repo_type=kind, revision=revision, timeout=PATIENCE
            )
        except Exception as error:
            cached = _cached(name, revision) if kind == MODEL else None
            if cached is None or not _without_answer(error):
                raise
            say(f"{name} is taken from the Hub's cache, commit {cached[:12]}")
            return Found(cached, None)
        if told.gated:
            _check_access(name, kind)
        if kind == MODEL:
            # the cache notes which commit the branch is, for when the Hub does not answer
            with suppress(Exception):
                api.resolve_revision(name, revision=revision)
    files = told.siblings or ()
    return Found(str(told.sha), frozenset(one.rfilename for one in files))


def require_online(name: str, kind: str) -> None:
    """Refuse at once where HF_HUB_OFFLINE is set, rather than after the client's retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(_offline(name, kind))


@contextmanager
def plain_refusals(name: str, revision: str | None, kind: str) -> Iterator[None]:
    """Turn what the Hub refuses, and its silence, into a UserError; other exceptions pass."""
    try:
        yield
    except Exception as error:
        sentence = refusal(error, name, revision, kind)
        if sentence is None:
            raise
        raise UserError(sentence) from None


def refusal(
    error: BaseException, name: str, revision: str | None, kind: str
) -> str | None:
    """Say why the Hub did not give a repository or a file of it, whatever library asked; None: it was not the Hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    causes = list(_causes(error))
    for one in causes:
        if isinstance(one, HfHubHTTPError):
            return _answered(one, name, revision, kind)
    if any(isinstance(one, OfflineModeIsEnabled) for one in causes):
        return _offline(name, kind)
    for one in causes:
        if isinstance(one, LocalEntryNotFoundError) or _of_client(one):
            if constants.HF_HUB_OFFLINE:
                return _offline(name, kind)
            return (
                f"the Hub at {constants.ENDPOINT} does not answer for the {kind} {name!r} ({_first_line(causes[-1])}); "
                "try again, or name a local folder: files that came whole are kept"
            )
    return None


def _answered(error: Any, name: str, revision: str | None, kind: str) -> str:
    """Say what the Hub answered.

    Args:
        error: a HfHubHTTPError.
        name: of the repository.
        revision: that was asked for.
        kind: of the repository.
    """
    from huggingface_hub import constants, errors

    what, status = f"the {kind} {name!r} of the Hub", error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        page = "/".join([constants.ENDPOINT, *PAGES[kind], name])
        if status == 401:
            return (
                f"{what} is gated, and no token was given: accept its terms at {page}, "
                "then set HF_TOKEN to a token of the account that did"
            )
        return (
            f"{what} is gated, and the account of the token may not read it: accept its terms at {page} with that "
            "account, wait until that is granted, and let a fine-grained token read gated repositories"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no revision {revision!r}; give a commit, tag or branch"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no file or folder {name!r} here and no such {kind} on the Hub; check the name, "
            "or set HF_TOKEN where it is private"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        file = error.response.url.path.rpartition("/")[2]
        return f"{what} has no file {file!r}; take another revision or {kind}"
    if status == 401:
        return f"the Hub does not know the token that came with the question for the {kind} {name!r}; renew HF_TOKEN"
    return f"the Hub at {constants.ENDPOINT} answers for the {kind} {name!r} with status {status}; try again later"


def _check_access(name: str, kind: str) -> None:
    """Let the Hub refuse now what it would refuse at the first file: that a gated repository is there, all may see."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().auth_check(name, repo_type=kind)
    except RepositoryNotFoundError:  # gated ones are of this class, too
        raise
    except HfHubHTTPError:
        return  # a mirror need not know this question


def _offline(name: str, kind: str) -> str:
    return (
        f"the {kind} {name!r} is on the Hub and HF_HUB_OFFLINE is set{NOT_HERE[kind]}; "
        "unset it, or name a local file or folder"
    )


def _at_hand(name: str, commit: str, kind: str) -> bool:
    """Say whether nothing need be asked of a commit: datasets are read as streams, whatever is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if kind == DATASET:
        return True
    return isinstance(try_to_load_from_cache(name, "config.json", revision=commit), str)


def _cached(name: str, revision: str | None) -> str | None:
    """Return the commit that a branch or tag of a model had when the Hub last answered."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    try:
        found = HfApi().resolve_revision(name, revision=revision, local_files_only=True)
    except RevisionResolutionError:
        return None
    return str(found.resolved)


def _without_answer(error: BaseException) -> bool:
    """Say whether the Hub was not asked, did not answer, or failed."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled) or _of_client(error)


def _of_client(error: BaseException) -> bool:
    """Say whether an exception is the HTTP client's own; which client depends on the version of huggingface_hub."""
    return type(error).__module__.startswith(("httpx", "httpcore"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
