"""An S3 server that refuses some operations and carries out the others."""

from collections.abc import Collection
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tasks.store.base import Store


def refuse(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    code: str,
    operations: Collection[str] | None,
    message: str = "",
) -> None:
    """Have the store's client fail with S3's error ``code`` in these operations, read anew at each call; None: all."""
    call = store.client._make_api_call

    def answer(name: str, *args: Any, **kwargs: Any) -> Any:
        if operations is None or name in operations:
            raise ClientError({"Error": {"Code": code, "Message": message}}, name)
        return call(name, *args, **kwargs)

    monkeypatch.setattr(store.client, "_make_api_call", answer)
