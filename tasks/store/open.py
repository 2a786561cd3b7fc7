"""The store of bytes: published models, content-addressed, in a local folder or under an S3 prefix.

Both have one layout, ``<store>/models/<name>/<digest>/FILES..., manifest.json``. The digest is over path, sha256 and
size of every file, so the same bytes always land in the same place and are never sent twice. ``manifest.json`` is
written last: a model without one is half uploaded, and nothing here will read it.

    store = open_store("store")                                  # or s3://bucket/prefix
    published = store.publish(Path("shallow-model"), "my-model")
    store.fetch(published.url, Path("copy"))
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from elder import params
from elder.errors import UserError
from tasks.store.base import Store


def open_store(
    url: str,
    endpoint: str | None = None,
    region: str | None = None,
    encryption: Mapping[str, str] | None = None,
) -> Store:
    """Open the store at a local folder (a path or a file:// URL) or at ``s3://bucket/prefix``.

    Args:
        url: where the store lies.
        endpoint: address of an S3-compatible server; None: what boto3 finds in its own configuration.
        region: region of the bucket; None: what boto3 finds.
        encryption: boto3's arguments for objects that an S3 server is to encrypt.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from tasks.store.s3 import S3Store

        return S3Store(url, endpoint, region, encryption)
    from tasks.store.local import LocalStore

    if parts.scheme == "file":
        return LocalStore(Path(url2pathname(parts.path)))
    # an address misspelt would become a folder with a password in its name
    if "://" in url or ("@" in url and ":" in url) or not url.strip():
        raise UserError("store.url: name a local folder or s3://bucket/prefix")
    return LocalStore(Path(url))


def configured_store(settings: params.Store, root: Path) -> Store:
    """Open the store that the parameters name; a relative folder lies below ``root``."""
    url = settings.url if "://" in settings.url else str(root / settings.url)
    return open_store(url, settings.endpoint, settings.region, encryption(settings))


def encryption(settings: params.Store) -> dict[str, str]:
    """Return boto3's arguments for objects that an S3 server is to encrypt; none, where its own default holds."""
    wanted: dict[str, str] = {}
    if settings.encryption:
        wanted["ServerSideEncryption"] = settings.encryption
    if settings.kms_key:
        wanted["SSEKMSKeyId"] = settings.kms_key
    return wanted


def history_store(settings: params.Store, root: Path) -> Store:
    """Open where decisions lie: a place of their own, or the store."""
    return configured_store(
        settings.model_copy(update={"url": settings.history or settings.url}), root
    )


def open_model(
    url: str, endpoint: str | None = None, region: str | None = None
) -> tuple[Store, str]:
    """Open the store that a published model's URL lies in; return it and the model's place relative to it."""
    layout = re.fullmatch(r"(.+)/(models/[^/]+/[0-9a-f]{64})/?", url)
    return (
        (open_store(layout[1], endpoint, region), layout[2])
        if layout
        else (open_store(url, endpoint, region), "")
    )
