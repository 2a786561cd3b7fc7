"""Send a large file to S3 in parts, so that a call that was cut can go on with those that arrived, and read it so.

boto3's transfer manager does both, too, but throws all parts away when one fails. Here an upload that was begun stays
on the server: the next call asks which parts are there, compares their MD5 with the file's, and sends the others.
Nobody can read any of it before the last step puts the parts together.
"""

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks.retry import patiently, without_waiting
from tasks.store.manifest import File, changed
from tasks.store.refusals import EMPTY, S3Refusal
from tasks.store.server import Server

PART = 8 * 1024 * 1024  # bytes; S3 allows no less than 5 MB
MOST_PARTS = 10_000
THREADS = 8  # parts under way at once, each held in memory

Part = dict[str, Any]
T = TypeVar("T")


def send_in_parts(server: Server, at: dict[str, str], source: Path, file: File) -> int:
    """Send a file, reading it once.

    Args:
        server: that stores it.
        at: bucket and key, of which nothing but this very content is ever sent.
        source: the file.
        file: what it must be; the sha256 is kept in the object's metadata.

    Returns:
        The bytes sent by this call.

    Raises:
        UserError: the file is no longer what ``file`` says, and nothing is stored then; or the server refuses, and the
            parts that arrived stay.
    """
    upload, stored = _begun(server, at)
    if upload is None:
        metadata = {"sha256": file.sha256}
        begun = server.ask(
            "create_multipart_upload", **at, Metadata=metadata, **server.encryption
        )
        upload = begun["UploadId"]
    here = at | {"UploadId": upload}
    size = part_size(file.bytes)
    sha256, sent = hashlib.sha256(), 0

    def to_send() -> Iterator[Callable[[], Part]]:
        nonlocal sent
        with source.open("rb") as handle:
            blocks = iter(lambda: handle.read(size), b"")
            for number, data in enumerate(blocks, start=1):
                sha256.update(data)
                md5 = hashlib.md5(data, usedforsecurity=False)
                there = {"PartNumber": number, "ETag": f'"{md5.hexdigest()}"'}
                if stored.get(number) == (md5.hexdigest(), len(data)):
                    yield partial(dict, there)
                else:
                    sent += len(data)
                    yield partial(_send_part, server, here, number, data, md5.digest())

    parts = list(_in_turn(to_send()))
    if sha256.hexdigest() != file.sha256:
        server.ask("abort_multipart_upload", **here)
        raise changed(source)
    server.ask("complete_multipart_upload", **here, MultipartUpload={"Parts": parts})
    return sent


def receive_in_parts(server: Server, at: dict[str, str]) -> Iterator[bytes]:
    """Yield the bytes of an object in order; a part that breaks off is asked for again, and no other."""
    try:
        data, answer = server.read(**at, Range=_range(0))
    except S3Refusal as refusal:
        if refusal.code not in EMPTY:
            raise
        return
    yield data
    size = int(answer.get("ContentRange", "/0").rpartition("/")[2])
    # should somebody replace the object meanwhile, the server refuses
    same = at | {"IfMatch": answer["ETag"]}
    ranges = (_range(start) for start in range(PART, size, PART))
    for data, _ in _in_turn(partial(server.read, **same, Range=one) for one in ranges):
        yield data


def part_size(total: int) -> int:
    """Return the bytes of each part of a file; they must not depend on anything else, or no part would match again."""
    return max(PART, -(-total // MOST_PARTS))


def _in_turn(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what calls return, in their order; several are under way at once.

    A call that nothing answers is made again here, in the caller's own thread, which Ctrl-C reaches.
    """

    def finish(first: Future[T], call: Callable[[], T]) -> T:
        tries = iter([first.result])
        return patiently(lambda: next(tries, call)())

    under_way: deque[tuple[Future[T], Callable[[], T]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for call in calls:
            if len(under_way) == THREADS:
                yield finish(*under_way.popleft())
            under_way.append((pool.submit(without_waiting, call), call))
        while under_way:
            yield finish(*under_way.popleft())


def _range(start: int) -> str:
    return f"bytes={start}-{start + PART - 1}"


def _send_part(
    server: Server, here: dict[str, str], number: int, data: bytes, md5: bytes
) -> Part:
    """Send one part; the server refuses it if it does not arrive as it was sent."""
    checked = base64.b64encode(md5).decode()
    answer = server.ask(
        "upload_part", **here, PartNumber=number, Body=data, ContentMD5=checked
    )
    return {"PartNumber": number, "ETag": answer["ETag"]}


def _begun(
    server: Server, at: dict[str, str]
) -> tuple[str | None, dict[int, tuple[str, int]]]:
    """Return the id of the latest unfinished upload of this object, and its parts: {number: (MD5, bytes)}."""
    try:
        pages = server.pages(
            "list_multipart_uploads", Bucket=at["Bucket"], Prefix=at["Key"]
        )
        uploads = [
            upload
            for page in pages
            for upload in page.get("Uploads", [])
            if upload["Key"] == at["Key"]
        ]
        if not uploads:
            return None, {}
        latest = max(uploads, key=lambda upload: upload["Initiated"])["UploadId"]
        listed = server.pages("list_parts", **at, UploadId=latest)
        parts = [part for page in listed for part in page.get("Parts", [])]
        return latest, {
            part["PartNumber"]: (part["ETag"].strip('"'), part["Size"])
            for part in parts
        }
    except S3Refusal:
        # those who may not list uploads begin anew; a real refusal meets that, too
        return None, {}
