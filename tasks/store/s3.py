"""The store under an S3 prefix, on AWS or any compatible server, through boto3.

Credentials come from boto3's own chain only (environment, profile, instance role) and appear in no URL and no message.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from elder.errors import UserError
from tasks.errors import Unreachable, plain_errors
from tasks.store.base import Store
from tasks.store.manifest import File, fingerprint
from tasks.store.parts import PART, send_in_parts

MEGABYTE = 1024 * 1024
ATTEMPTS = 5
SETTLE = 0.5  # seconds
PROBE = ".write-check"
DENIED = {"AccessDenied", "AllAccessDisabled", "Forbidden", "403"}
CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
}
ELSEWHERE = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
}
ABSENT = {"NoSuchKey", "404", "NotFound"}
TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}


class S3Store(Store):
    """A store at ``s3://bucket/prefix``; the sha256 of each object is kept in its metadata."""

    def __init__(
        self, url: str, endpoint: str | None = None, region: str | None = None
    ) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.bucket, self.prefix = _split(url)
        self.endpoint = _checked(endpoint) if endpoint else None
        super().__init__(f"s3://{self.bucket}/{self.prefix}".rstrip("/"))
        # Compatible servers reject the trailing checksums that newer botocore adds, and may not know virtual hosts.
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=10,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else None,
        )
        self.transfer = TransferConfig(
            multipart_threshold=PART, multipart_chunksize=PART
        )
        with self._plain():
            session = boto3.session.Session()
            self.client = session.client(
                "s3", endpoint_url=self.endpoint, region_name=region, config=config
            )

    def check(self) -> None:
        """Refuse a bucket that is not there, not allowed or not reachable, before any work is done.

        An empty object is put there and taken away. Storing deletes nothing, so a refusal to delete is no reason to
        refuse; the object then stays, one at most.
        """
        from botocore.exceptions import ClientError

        with self._plain():
            self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1
            )
            self.client.put_object(**self._at(PROBE), Body=b"")
            try:
                self.client.delete_object(**self._at(PROBE))
            except ClientError as error:
                if _code(error) not in DENIED:
                    raise

    def create(self, key: str, data: bytes) -> bool:
        """See ``Store``; whose bytes are there in the end has won, whatever the answers were.

        A request that is sent again because its first answer got lost is told that something is there: our own bytes.
        And some compatible servers look first and write afterwards, so two at the same moment may both be told yes; the
        later one stays, and is what both find after a moment.
        """
        from botocore.exceptions import ClientError

        for _ in range(ATTEMPTS):
            with self._plain():
                try:
                    self.client.put_object(
                        **self._at(key),
                        Body=data,
                        ContentType="application/json",
                        IfNoneMatch="*",
                    )
                    time.sleep(SETTLE)
                except ClientError as error:
                    if _code(error) not in TAKEN:
                        raise
            stored = self.read(key)
            if stored is not None:
                return stored == data
        raise UserError(
            f"{self.url}: {key} could not be written: try again, or ask who runs the server"
        )

    def read(self, key: str) -> bytes | None:
        """See ``Store``."""
        with self._plain():
            body = self._body(key)
            return body.read() if body else None

    def paths(self, prefix: str) -> set[str]:
        """See ``Store``."""
        start = self._at(f"{prefix}/" if prefix else "")["Key"]
        with self._plain():
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            )
            return {
                item["Key"][len(start) :]
                for page in pages
                for item in page.get("Contents", [])
            }

    def _has(self, key: str, file: File) -> bool:
        """Trust size and metadata, where ``_measure`` reads the bytes."""
        from botocore.exceptions import ClientError

        with self._plain():
            try:
                head = self.client.head_object(**self._at(key))
            except ClientError as error:
                # 403 is also the answer for an absent object to those who may not list; a real refusal meets the put.
                if _code(error) in ABSENT | DENIED:
                    return False
                raise
        return (
            head["ContentLength"] == file.bytes
            and head["Metadata"].get("sha256") == file.sha256
        )

    def _send(self, source: Path, key: str, file: File) -> int:
        from botocore.exceptions import ClientError

        with plain_errors(source), self._plain():
            if file.bytes < PART:
                extra = {"Metadata": {"sha256": file.sha256}}
                self.client.upload_file(
                    str(source), **self._at(key), ExtraArgs=extra, Config=self.transfer
                )
                return file.bytes
            try:
                return send_in_parts(self.client, self._at(key), source, file)
            except ClientError:
                if not self._has(key, file):
                    raise
                return 0  # the upload is gone because another process put its parts together

    def _write(self, key: str, data: bytes) -> None:
        extra = {
            "Metadata": {"sha256": fingerprint(data).sha256},
            "ContentType": "application/json",
        }
        with self._plain():
            self.client.put_object(**self._at(key), Body=data, **extra)

    def _receive(self, key: str, target: Path) -> None:
        with self._plain():
            self.client.download_file(
                **self._at(key), Filename=str(target), Config=self.transfer
            )

    def _measure(self, key: str) -> File | None:
        with self._plain():
            body = self._body(key)
            if body is None:
                return None
            sha256, size = hashlib.sha256(), 0
            for chunk in body.iter_chunks(MEGABYTE):
                sha256.update(chunk)
                size += len(chunk)
        return File(sha256=sha256.hexdigest(), bytes=size)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def _body(self, key: str) -> Any:
        try:
            return self.client.get_object(**self._at(key))["Body"]
        except self.client.exceptions.NoSuchKey:
            return None

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """Turn what boto3 raises into a UserError of one sentence, made of codes and never of the server's text."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error, ValueError) as error:
            cause = (
                getattr(error, "last_exception", None)
                or error.__cause__
                or error.__context__
            )
            inner = cause if isinstance(error, Boto3Error) and cause else error
            reason = self._reason(inner)
            raise (Unreachable if "cannot be reached" in reason else UserError)(
                f"{self.url}: {reason}"
            ) from error

    def _reason(self, error: BaseException) -> str:
        from botocore import exceptions as known

        if isinstance(error, known.ClientError):
            return self._refusal(_code(error))
        if isinstance(
            error,
            known.NoCredentialsError
            | known.PartialCredentialsError
            | known.CredentialRetrievalError,
        ):
            return "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
        if isinstance(
            error, known.ProfileNotFound | known.SSOError | known.TokenRetrievalError
        ):
            what = type(error).__name__
            return f"the profile's credentials cannot be read ({what}): check AWS_PROFILE or log in again"
        if isinstance(error, known.ParamValidationError | known.InvalidRegionError):
            return f"the name of the bucket or region is not valid ({type(error).__name__}): correct store.url"
        if isinstance(error, known.HTTPClientError | known.ConnectionError | OSError):
            place = self.endpoint or "the S3 service"
            return f"{place} cannot be reached ({type(error).__name__}): check store.endpoint and the network"
        return f"the request failed ({type(error).__name__}): check store.url, store.endpoint and store.region"

    def _refusal(self, code: str) -> str:
        if code == "NoSuchBucket":
            return f"the bucket {self.bucket!r} does not exist: create it or change store.url"
        if code in DENIED:
            return "access denied: let these credentials list, read and write there"
        if code in CREDENTIALS:
            return f"the credentials are not accepted ({code}): renew them, and check the clock"
        if code in ELSEWHERE:
            return f"the bucket lies in another region ({code}): set store.region"
        if code in ABSENT:
            return "a file of the model, or the bucket, is missing: publish the model again"
        return f"the server refused with {code}: try again, or ask who runs it"


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "an unknown error"))


def _split(url: str) -> tuple[str, str]:
    """Return bucket and prefix of an s3:// URL."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/([^?#]*))?", url)
    if "@" in url or not match:
        raise UserError(
            "store url: name s3://bucket/prefix, with a bucket of 3 to 63 small letters, digits, '.' and '-'"
            " and no credentials; those come from the environment or a profile"
        )
    return match[1], "/".join(part for part in (match[2] or "").split("/") if part)


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
    ):
        raise UserError(
            "store endpoint: name it as http://host:port or https://host, with no credentials in it;"
            " those come from the environment or a profile"
        )
    return endpoint
