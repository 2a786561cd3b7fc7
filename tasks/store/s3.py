"""The store under an S3 prefix, on AWS or any compatible server, through boto3.

Credentials come from boto3's own chain only (environment, profile, instance role) and appear in no URL and no message.
"""

import base64
import hashlib
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from elder.errors import UserError
from elder.files import refuse_large
from tasks.errors import Unreachable, plain_errors
from tasks.store.base import Store
from tasks.store.manifest import File, changed, fingerprint
from tasks.store.parts import PART, receive_in_parts, send_in_parts
from tasks.store.refusals import ABSENT, DENIED, TAKEN, UNKNOWN_WAY, S3Refusal
from tasks.store.server import Server
from tasks.store.tree import Tree

CREATES = 5  # tries, where others create the same object at the same moment
SETTLE = 0.5  # seconds
PROBE = ".write-check"
JSON = "application/json"


class S3Store(Store):
    """A store at ``s3://bucket/prefix``; the sha256 of each object is kept in its metadata.

    Args:
        url: bucket and prefix.
        endpoint: address of an S3-compatible server; None: what boto3 finds in its own configuration.
        region: region of the bucket; None: what boto3 finds.
        encryption: boto3's arguments for objects that the server is to encrypt.
    """

    def __init__(
        self,
        url: str,
        endpoint: str | None = None,
        region: str | None = None,
        encryption: Mapping[str, str] | None = None,
    ) -> None:
        self.bucket, self.prefix = _split(url)
        self.endpoint = _checked(endpoint) if endpoint else None
        super().__init__(f"s3://{self.bucket}/{self.prefix}".rstrip("/"))
        self.server = Server(self.url, self.endpoint, region, dict(encryption or {}))
        self.client = self.server.client
        self._proved = False

    def check(self, creates: bool = True) -> None:
        """Refuse a bucket that is not there, not allowed or not reachable, or a server without conditional writes."""
        self.server.ask(
            "list_objects_v2", Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1
        )
        if creates:
            self._proved = False
            self._prove_creates()
        else:
            self._may_delete()

    def create(self, key: str, data: bytes) -> bool:
        """See ``Store``; whose bytes are there in the end has won, whatever the answers were.

        A request that is sent again because its first answer got lost is told that something is there: our own bytes.
        And some compatible servers look first and write afterwards, so two at the same moment may both be told yes; the
        later one stays, and is what both find after a moment.
        """
        self._prove_creates()
        for _ in range(CREATES):
            if self._create(key, data):
                time.sleep(SETTLE)
            stored = self.read(key)
            if stored is not None:
                return stored == data
        raise UserError(
            f"{self.url}: {key} could not be written: try again, or ask who runs the server"
        )

    def how_kept(self, folder: str) -> str:
        """See ``Store``; an empty object is tried, which stays where nothing can be taken away."""
        probe = f"{folder}/{PROBE}"
        try:
            self._create(probe, b"")
        except S3Refusal as refusal:
            if refusal.code not in DENIED:
                raise
            return "these credentials cannot write there"
        try:
            self._put(probe, b"")
            ways = ["replaced"]
        except S3Refusal as refusal:
            if refusal.code not in DENIED:
                raise
            ways = []
        if self._delete(probe):
            ways.append("deleted")
        if not ways:
            return "these credentials can add to it, and neither replace nor delete what lies there"
        return (
            f"these credentials can have it {' and '.join(ways)}; {self._what_stays()}"
        )

    def _what_stays(self) -> str:
        """Say what the bucket keeps of an object that is replaced or deleted."""
        bucket = {"Bucket": self.bucket}
        with suppress(S3Refusal):  # it has no lock, or knows of none, or does not say
            lock = self.server.ask("get_object_lock_configuration", **bucket)
            rule = lock["ObjectLockConfiguration"].get("Rule", {})
            days = rule.get("DefaultRetention", {}).get("Days")
            years = rule.get("DefaultRetention", {}).get("Years")
            if days or years:
                how_long = f"{days} days" if days else f"{years} years"
                return f"object lock keeps each version for {how_long}"
        with suppress(S3Refusal):
            told = self.server.ask("get_bucket_versioning", **bucket)
            if told.get("Status") == "Enabled":
                return "it stays as an older version, for who may read those (no object lock)"
        return "nothing of it stays (no object lock, no older versions): only signatures and chain tell"

    def read(self, key: str) -> bytes | None:
        """See ``Store``."""
        data = bytearray()
        try:
            for part in receive_in_parts(self.server, self._at(key)):
                data += part
                refuse_large(len(data), self._show(key))
        except S3Refusal as refusal:
            if refusal.code not in ABSENT:
                raise
            return None
        return bytes(data)

    def listing(self, prefix: str) -> Tree:
        """See ``Store``."""
        start = self._at(f"{prefix}/" if prefix else "")["Key"]
        pages = self.server.pages("list_objects_v2", Bucket=self.bucket, Prefix=start)
        sizes = {
            item["Key"][len(start) :]: item["Size"]
            for page in pages
            for item in page.get("Contents", [])
        }
        return Tree(sizes)

    def _has(self, key: str, file: File) -> bool:
        """Trust size and metadata, where ``_measure`` reads the bytes."""
        try:
            head = self.server.ask("head_object", **self._at(key))
        except S3Refusal as refusal:
            # 403 is also the answer for an absent object to those who may not list; a real refusal meets the put.
            if refusal.code in ABSENT | DENIED:
                return False
            raise
        return (
            head["ContentLength"] == file.bytes
            and head["Metadata"].get("sha256") == file.sha256
        )

    def _send(self, source: Path, key: str, file: File) -> int:
        with plain_errors(source):
            if file.bytes < PART:
                data = source.read_bytes()
                if fingerprint(data) != file:
                    raise changed(source)
                self._put(key, data)
                return file.bytes
            try:
                return send_in_parts(self.server, self._at(key), source, file)
            except (S3Refusal, Unreachable):
                if self._measure(key) != file:
                    raise
                return 0  # the upload is gone because another process put its parts together

    def _write(self, key: str, data: bytes) -> None:
        self._put(key, data, ContentType=JSON)

    def _put(self, key: str, data: bytes, **more: str) -> None:
        """Store a few bytes; the server refuses them if they do not arrive as they were sent."""
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        self.server.put(
            **self._at(key),
            Body=data,
            ContentMD5=base64.b64encode(md5).decode(),
            Metadata={"sha256": fingerprint(data).sha256},
            **more,
        )

    def _create(self, key: str, data: bytes) -> bool:
        """Store a few bytes where nothing is, and return what the server says of it."""
        try:
            self._put(key, data, ContentType=JSON, IfNoneMatch="*")
        except S3Refusal as refusal:
            if refusal.code not in TAKEN:
                raise
            return False
        return True

    def _receive(self, key: str, target: Path) -> None:
        with target.open("wb") as handle:
            for part in receive_in_parts(self.server, self._at(key)):
                handle.write(part)

    def _size(self, key: str) -> int | None:
        try:
            head = self.server.ask("head_object", **self._at(key))
        except S3Refusal as refusal:
            if refusal.code not in ABSENT:
                raise
            return None
        return int(head["ContentLength"])

    def _measure(self, key: str) -> File | None:
        sha256, size = hashlib.sha256(), 0
        try:
            for part in receive_in_parts(self.server, self._at(key)):
                sha256.update(part)
                size += len(part)
        except S3Refusal as refusal:
            if refusal.code not in ABSENT:
                raise
            return None
        return File(sha256=sha256.hexdigest(), bytes=size)

    def _prove_creates(self) -> None:
        """Refuse a server that would let a second create replace a first: an old decision could undo a newer one.

        Of two creates of one object the second must be refused. The object is new and is taken away again; where
        nothing may be deleted it is always the same one, so that one stays at most.
        """
        if self._proved:
            return
        key = f"{PROBE}-{uuid.uuid4().hex}" if self._takes_back() else PROBE
        try:
            self._create(key, b"")
            twice = self._create(key, b"")
            lacks = "If-None-Match is ignored" if twice else ""
        except S3Refusal as refusal:
            if refusal.code not in UNKNOWN_WAY:
                raise
            lacks = f"If-None-Match is answered with {refusal.code}"
        if key != PROBE:
            self._delete(key)
        if lacks:
            raise UserError(
                f"{self.url}: {self.server.teller.place} has no conditional writes ({lacks}), so that an old decision"
                " could undo a newer one: set store.url to a store that has them, such as AWS S3, those of"
                " docs/services.md, or a local folder"
            )
        self._proved = True

    def _takes_back(self) -> bool:
        """Say whether an object can be taken away again; not, where a policy allows nothing but to create."""
        try:
            return self._may_delete()
        except S3Refusal as refusal:
            if refusal.code not in DENIED:
                raise
            return False

    def _may_delete(self) -> bool:
        """Store an empty object, which must be allowed, and say whether it could be taken away again."""
        self._put(PROBE, b"")
        return self._delete(PROBE)

    def _delete(self, key: str) -> bool:
        """Delete an object, or return False: it is not allowed, and storing does not need it."""
        try:
            self.server.ask("delete_object", **self._at(key))
        except S3Refusal as refusal:
            if refusal.code not in DENIED:
                raise
            return False
        return True

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}


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
        or "@" in endpoint
        or parts.query
        or parts.fragment
    ):
        raise UserError(
            "store endpoint: name it as http://host:port or https://host, with no credentials in it;"
            " those come from the environment or a profile"
        )
    return endpoint
