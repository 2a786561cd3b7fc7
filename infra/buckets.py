"""Make the buckets of the services where they are missing: ``python infra/buckets.py http://127.0.0.1:8333``.

Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The bucket of decisions keeps what it was ever given:
under object lock where the server has it, as older versions where it has those alone.
"""

import sys
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

HISTORY = "elder-history"
# models and data of this project; decisions on them; artifacts of MLflow's runs
BUCKETS = ("elder", HISTORY, "elder-mlflow")
# Nobody but who may bypass governance, the admin here, can take a version away for ten years.
RETENTION = {"Mode": "GOVERNANCE", "Days": 3650}
LACKING = {
    "NotImplemented",
    "MethodNotAllowed",
    "InvalidRequest",
    "InvalidBucketState",
    "501",
    "405",
}


def main(endpoint: str) -> None:
    """Make each bucket, unless these credentials own it already."""
    config = Config(
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": 8},
    )
    client = boto3.client("s3", endpoint_url=endpoint, config=config)
    for bucket in BUCKETS:
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status != 404:
                sys.exit(
                    f"error: {endpoint} answers {status} to these credentials for the bucket {bucket!r}: if it was"
                    " started with others, stop it, and start it again"
                )
            client.create_bucket(
                Bucket=bucket, ObjectLockEnabledForBucket=bucket == HISTORY
            )
    keep_all(client, HISTORY)


def keep_all(client: Any, bucket: str) -> str:
    """Have a bucket keep all that it is given; returns what the server has for that."""
    versions = {"Status": "Enabled"}
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": RETENTION}}
    if _is_locked(client, bucket):
        return "object lock"
    try:
        client.put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration=lock
        )
        return "object lock"
    except ClientError as error:
        if error.response["Error"]["Code"] not in LACKING:
            raise
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versions)
    return "older versions"


def _is_locked(client: Any, bucket: str) -> bool:
    try:
        told = client.get_object_lock_configuration(Bucket=bucket)
    except ClientError:  # what the server calls a bucket without a lock is its own
        return False
    return "Rule" in told.get("ObjectLockConfiguration", {})


if __name__ == "__main__":
    main(sys.argv[1])
