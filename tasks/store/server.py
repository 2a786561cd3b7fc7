"""An S3 server as the store uses it: asked again while it does not answer, its refusals in plain sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from elder.errors import UserError
from tasks.retry import patiently
from tasks.store.refusals import (
    BOTO,
    CREDENTIALS,
    EXPIRED,
    WORDLESS,
    S3Refusal,
    Teller,
)

ATTEMPTS = (
    3  # of one request, within seconds, by boto3 itself; then `patiently` goes on
)


class Server:
    """The server that a store lies on.

    Args:
        url: of the store, for what is told.
        endpoint: address of the server; None: what boto3 finds in its own configuration.
        region: region of the bucket; None: what boto3 finds.
        encryption: boto3's arguments for objects that the server is to encrypt.
    """

    def __init__(
        self,
        url: str,
        endpoint: str | None,
        region: str | None,
        encryption: dict[str, str],
    ) -> None:
        import boto3
        from botocore.config import Config

        self.encryption = encryption
        self.teller = Teller(url, endpoint, encryption.get("ServerSideEncryption"))
        # Compatible servers reject the trailing checksums that newer botocore adds, and may not know virtual hosts.
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=10,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else None,
        )
        with self._plain():
            session = boto3.session.Session()
            self.client = session.client(
                "s3", endpoint_url=endpoint, region_name=region, config=config
            )

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Make a request that may be made twice, and return the answer.

        Raises:
            S3Refusal: the server said no.
            Unreachable: nothing answered, or the server was not well, for as long as the patience lasts.
        """

        def once() -> Any:
            with self._plain(arguments.get("Bucket")):
                return getattr(self.client, operation)(**arguments)

        return patiently(once)

    def put(self, **arguments: Any) -> None:
        """Store a small object, encrypted where that is set; the server refuses what does not arrive as it was sent."""
        self.ask("put_object", **arguments, **self.encryption)

    def pages(self, operation: str, **arguments: Any) -> list[Any]:
        """Return all pages of a list."""

        def once() -> list[Any]:
            with self._plain():
                pages = self.client.get_paginator(operation).paginate(**arguments)
                return list(pages)

        return patiently(once)

    def read(self, **arguments: Any) -> tuple[bytes, Any]:
        """Return the bytes of an object, or of a range of it, and the answer that they came with."""

        def once() -> tuple[bytes, Any]:
            with self._plain():
                answer = self.client.get_object(**arguments)
                return bytes(answer["Body"].read()), answer

        return patiently(once)

    @contextmanager
    def _plain(self, bucket: str | None = None) -> Iterator[None]:
        """Turn what boto3 raises into a UserError of one sentence, made of codes and never of the server's text."""
        try:
            yield
        except BOTO as error:
            refusal = self.teller.tell(error)
            if bucket and isinstance(refusal, S3Refusal) and refusal.code in WORDLESS:
                refusal = self._in_words(bucket)
            raise refusal from error

    def _in_words(self, bucket: str) -> UserError:
        """Return what a request is refused for whose answer has a body: of an expired token a HEAD is only told 400."""
        try:
            self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except BOTO as error:
            refusal = self.teller.tell(error)
            if getattr(refusal, "code", None) in EXPIRED | CREDENTIALS:
                return refusal
        return self.teller.wordless()
