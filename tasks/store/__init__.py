"""Where the bytes lie: published models in a local folder or under an S3 prefix."""
