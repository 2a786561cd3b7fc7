"""Say who may read and write the buckets in Swift, which no S3 request can.

Run it with Swift's own Python, beside its servers:

    infra/.native/swift-venv/bin/python infra/swift_access.py infra/.native/s3/etc

Of the account's users its admin may do all; the others what stands here. Objects of several parts lie beside their
bucket, in one that is called ``+segments``. Whoever may write a container may overwrite and delete what lies in it:
Swift has no object lock, and no right to add alone.
"""

import sys
from pathlib import Path

from swift.common.internal_client import InternalClient
from swift.common.utils import set_swift_dir

ACCOUNT = "AUTH_elder"
# by bucket: who reads, who writes
ACCESS = {
    "elder": (("worker", "promoter", "auditor"), ("worker",)),
    "elder-history": (("worker", "promoter", "auditor"), ("promoter",)),
    "elder-mlflow": (("mlflow",), ("mlflow",)),
}
CLIENT = """[DEFAULT]
swift_dir = {folder}
log_level = CRITICAL
[pipeline:main]
pipeline = catch_errors proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# so that this client, which asks nobody for leave, may write who has access
swift_owner_headers = none
[filter:catch_errors]
use = egg:swift#catch_errors
"""


def main(folder: Path) -> None:
    """Make each bucket with those that lie beside it, and write down who may use it."""
    set_swift_dir(str(folder))
    config = folder / "internal-client.conf"
    config.write_text(CLIENT.format(folder=folder), encoding="utf-8")
    client = InternalClient(str(config), "elder", 3)
    for bucket, (readers, writers) in ACCESS.items():
        headers = {
            "X-Container-Read": _users(readers),
            "X-Container-Write": _users(writers),
        }
        for container in (bucket, f"{bucket}+segments"):
            path = client.make_path(ACCOUNT, container)
            client.make_request("PUT", path, headers, (2,))


def _users(names: tuple[str, ...]) -> str:
    return ",".join(f"elder:{name}" for name in names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
