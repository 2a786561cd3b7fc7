"""Make the buckets of the services where they are missing: ``python infra/buckets.py http://127.0.0.1:8333``.

Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

# models and data of this project; artifacts of MLflow's runs
BUCKETS = ("elder", "elder-mlflow")


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
            client.create_bucket(Bucket=bucket)


if __name__ == "__main__":
    main(sys.argv[1])
