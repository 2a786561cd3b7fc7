#!/usr/bin/env bash
# Write the ports and fresh passwords of the services into a file that only its owner can read; what is there stays.
#   infra/env.sh [FILE]     FILE: infra/.env
# Each service and each role has secrets of its own: whoever trains cannot decide, whoever audits cannot write.
set -euo pipefail
file=${1:-$(dirname "$0")/.env}
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
new=$file.$$
if [ -e "$file" ]; then
    cp "$file" "$new"
else
    echo "# Written by infra/env.sh. Both ways to start the services, compose and native, read it. Keep it out of git and of" \
        "backups of code." > "$new"
fi
trap 'rm -f "$new"' EXIT

value() { sed -n "s/^$1=//p" "$new"; }

add() { # NAME VALUE: unless it is there
    grep -q "^$1=" "$new" || echo "$1=$2" >> "$new"
}

add POSTGRES_PORT 5433
add PREFECT_PORT 4200
add MLFLOW_PORT 5000
add S3_PORT 8333

add POSTGRES_PASSWORD "$(secret)"
add PREFECT_DB_PASSWORD "$(secret)"
add MLFLOW_DB_PASSWORD "$(secret)"
add AUDITOR_DB_PASSWORD "$(secret)"

add PREFECT_API_AUTH_STRING "elder:$(secret)"

# before there were roles, the one account of all was the admin
old_user=$(value MLFLOW_TRACKING_USERNAME) old_password=$(value MLFLOW_TRACKING_PASSWORD)
add MLFLOW_ADMIN_USERNAME "${old_user:-admin}"
add MLFLOW_ADMIN_PASSWORD "${old_password:-$(secret)}"
add MLFLOW_WORKER_PASSWORD "$(secret)"
add MLFLOW_PROMOTER_PASSWORD "$(secret)"
add MLFLOW_AUDITOR_PASSWORD "$(secret)"
add MLFLOW_FLASK_SERVER_SECRET_KEY "$(secret)"

add S3_ADMIN_KEY "$(secret)"
add S3_MLFLOW_KEY "$(secret)"
add S3_WORKER_KEY "$(secret)"
add S3_PROMOTER_KEY "$(secret)"
add S3_AUDITOR_KEY "$(secret)"
add AWS_DEFAULT_REGION us-east-1

cmp -s "$new" "$file" && exit 0
mv "$new" "$file"
echo "wrote $file"
