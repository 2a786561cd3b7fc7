"""Tell a webhook how a run ended: a small JSON object, tried a few times, never a reason for a run to fail."""

import logging
import os
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from elder.errors import UserError
from elder.params import Notify
from elder.progress import say

VARIABLE = "ELDER_WEBHOOK"  # the address, where the parameters have none
ATTEMPTS = 4
WAIT = wait_exponential(max=30)  # 1, 2, 4 ... seconds
TIMEOUT = 10  # seconds for one attempt


def check_webhook(settings: Notify) -> None:
    """Refuse an address that cannot be one, without repeating it: it may hold a secret."""
    url = _address(settings)
    if url is not None and not _host(url):
        raise UserError(
            f"notify.webhook (or {VARIABLE}) is no http:// or https:// address; give the receiver's, or null for none"
        )


def receiver(settings: Notify) -> str | None:
    """Return the host that is told, or None where nobody is."""
    url = _address(settings)
    return _host(url) if url else None


def notify(settings: Notify, event: str, message: dict[str, Any]) -> bool:
    """Post ``{"event": event, **message}`` to the webhook, if there is one that wants to know.

    Args:
        settings: the address and the events it gets.
        event: success, refusal or failure.
        message: plain values.

    Returns:
        Whether the receiver took it. Where it did not, a line on stderr says so.
    """
    url = _address(settings)
    if url is None or event not in settings.events:
        return False
    # it logs whole addresses, secrets included
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tries = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=WAIT,
        retry=retry_if_exception(_passing),
        reraise=True,
    )
    try:
        tries(_post, url, {"event": event, **message})
    except httpx.HTTPStatusError as error:
        said = f"answered {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"could not be reached ({type(error).__name__})"
    else:
        return True
    say(
        f"the notification of this {event} was not taken: {_host(url) or 'the webhook'} {said}; the run is unaffected"
    )
    return False


def _address(settings: Notify) -> str | None:
    return (
        settings.webhook.get_secret_value()
        if settings.webhook
        else os.environ.get(VARIABLE) or None
    )


def _host(url: str) -> str:
    """Return the host of an http or https address: the part of it that is no secret; empty if it is no address."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        return ""
    return address.host if address.scheme in ("http", "https") else ""


def _post(url: str, content: dict[str, Any]) -> None:
    httpx.post(url, json=content, timeout=TIMEOUT).raise_for_status()


def _passing(error: BaseException) -> bool:
    """Say whether another try may do better."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status in (408, 425, 429) or status >= 500
    return isinstance(error, httpx.TransportError)
