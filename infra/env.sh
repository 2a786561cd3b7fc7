#!/usr/bin/env bash
# Write the ports and fresh passwords of the services into a file that only its owner can read; one that is there stays.
#   infra/env.sh [FILE]     FILE: infra/.env
set -euo pipefail
file=${1:-$(dirname "$0")/.env}
[ ! -e "$file" ] || exit 0
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat > "$file.new" <<X
# Written by infra/env.sh. Both ways to start the services, compose and native, read it. Keep it out of git and backups of code.
POSTGRES_PORT=5433
PREFECT_PORT=4200
MLFLOW_PORT=5000
S3_PORT=8333

POSTGRES_PASSWORD=$(secret)
PREFECT_DB_PASSWORD=$(secret)
MLFLOW_DB_PASSWORD=$(secret)

PREFECT_API_AUTH_STRING=elder:$(secret)

MLFLOW_TRACKING_USERNAME=elder
MLFLOW_TRACKING_PASSWORD=$(secret)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)

AWS_ACCESS_KEY_ID=elder:pipeline
AWS_SECRET_ACCESS_KEY=$(secret)
AWS_DEFAULT_REGION=us-east-1
X
mv "$file.new" "$file"
echo "wrote $file"
