#!/usr/bin/env bash
# The services on loopback, without docker, from Debian's and PyPI's packages: the same parts, ports and names as
# compose.yaml, with OpenStack Swift as the S3-compatible store.
#   infra/native.sh up       start what does not run, and return when all of it answers
#   infra/native.sh status   say of each part where it is and whether it answers
#   infra/native.sh env [worker|promoter|auditor|admin]     print what a shell needs:  eval "$(infra/native.sh env)"
#   infra/native.sh down     stop all of it; data stay
# ELDER_SERVICES_DIR names another folder for .env, data and logs than infra/; ELDER_TRUSTED another file of trusted keys
# than keys/trusted.yaml. PostgreSQL: apt-get install postgresql.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/.." && pwd)
home=$(realpath -m "${ELDER_SERVICES_DIR:-$here}") state=$home/.native logs=$home/.native/logs
trusted=${ELDER_TRUSTED:-$root/keys/trusted.yaml} keys=$state/keys
export SWIFT_VENV=$here/.native/swift-venv PYTHON=$root/.venv/bin/python
# What a shell may have of this is no service's business: each is given its own secrets, and none of the others'.
unset "${!AWS_@}" "${!MLFLOW_@}" "${!PREFECT_API_@}" ELDER_SET

die() { echo "error: $*" >&2; exit 2; }

read_env() {
    [ -r "$home/.env" ] || die "there is no $home/.env: run infra/native.sh up"
    # shellcheck disable=SC1091
    . "$home/.env" # as variables of this script: no process that it starts sees one that it is not given
    url_prefect=http://127.0.0.1:$PREFECT_PORT url_mlflow=http://127.0.0.1:$MLFLOW_PORT url_s3=http://127.0.0.1:$S3_PORT
}

# Of each process its number and the time it was born: after a restart of the machine the number may be another's. One
# that has ended (state Z) and that nobody has asked for yet was not born.
birth() { sed -n 's/.*) \([^Z]\)/\1/p' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

running() { # NAME
    local pid born
    read -r pid born 2> /dev/null < "$state/$1.pid" && [ -n "$born" ] && [ "$(birth "$pid")" = "$born" ]
}

start() { # NAME COMMAND...: in a session of its own, its output in a log
    local name=$1
    shift
    setsid "$@" >> "$logs/$name.log" 2>&1 < /dev/null 9>&- & # 9: the lock of `up`, which ends with it
    echo "$! $(birth $!)" > "$state/$name.pid"
}

stop() { # NAME...: the processes and all that they started, which have 20 seconds to end by themselves
    local name pids=()
    for name in "$@"; do
        if running "$name"; then
            pids+=("-$(cut -d' ' -f1 "$state/$name.pid")")
        fi
    done
    ((${#pids[@]})) || return 0
    kill -TERM -- "${pids[@]}" 2> /dev/null || true
    for name in "$@"; do
        for _ in {1..80}; do
            running "$name" || break
            sleep 0.25
        done
    done
    kill -KILL -- "${pids[@]}" 2> /dev/null || true
}

free_port() { # PORT VARIABLE
    ! (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null || die "port $1 is taken: set another $2 in $home/.env"
}

answers() { # URL
    "$PYTHON" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "$1" 2> /dev/null
}

wait_for() { # NAME CHECK...
    local name=$1
    shift
    for _ in {1..360}; do
        ! "$@" || return 0
        running "$name" || break
        sleep 0.5
    done
    die "$name does not answer; $logs/$name.log says why"
}

# --- PostgreSQL -------------------------------------------------------------------------------------------------------

as_postgres() { # as another user, since it refuses to run as root; in an environment without secrets
    local user=()
    [ "$(id -u)" != 0 ] || user=(runuser -u postgres --)
    (cd / && "${user[@]}" env -i PATH="$PATH" LC_ALL=C.UTF-8 "$@")
}

postgres_bin() {
    local found
    found=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -1)
    [ -x "$found/initdb" ] || die "there is no PostgreSQL server here: apt-get install postgresql"
    echo "$found"
}

postgres_runs() { as_postgres "$(postgres_bin)/pg_ctl" -D "$state/postgres" status > /dev/null 2>&1; }

postgres_up() {
    local bin data=$state/postgres log=$logs/postgres.log password=$state/postgres-password
    bin=$(postgres_bin)
    touch "$log"
    [ "$(id -u)" != 0 ] || chown postgres "$log"
    if [ ! -s "$data/PG_VERSION" ]; then
        mkdir -p "$data"
        (umask 077 && printf %s "$POSTGRES_PASSWORD" > "$password")
        [ "$(id -u)" != 0 ] || chown postgres "$data" "$password"
        as_postgres test -r "$password" || die "user postgres cannot read $state: set ELDER_SERVICES_DIR to a folder it can"
        as_postgres "$bin/initdb" -D "$data" -U postgres -E UTF8 -A scram-sha-256 --pwfile="$password" > "$logs/initdb.log" 2>&1 \
            || die "initdb failed; $logs/initdb.log says why"
        rm -f "$password"
    fi
    if ! postgres_runs; then
        free_port "$POSTGRES_PORT" POSTGRES_PORT
        as_postgres "$bin/pg_ctl" -D "$data" -l "$log" -w -s -o "-h 127.0.0.1 -p $POSTGRES_PORT -k ''" start 9>&- \
            || die "postgres did not start; $log says why"
    fi
    PGPASSWORD=$POSTGRES_PASSWORD PREFECT_DB_PASSWORD=$PREFECT_DB_PASSWORD MLFLOW_DB_PASSWORD=$MLFLOW_DB_PASSWORD \
        AUDITOR_DB_PASSWORD=$AUDITOR_DB_PASSWORD "$bin/psql" -h 127.0.0.1 -p "$POSTGRES_PORT" -U postgres -d postgres -q \
        -v ON_ERROR_STOP=1 -f "$here/postgres.sql" \
        || die "PostgreSQL in $data does not do what it should; if $home/.env is newer: docs/disaster-recovery.md, Lost passwords"
}

# --- the other parts, each started in a subshell so that it sees no secret but its own --------------------------------

s3_up() (
    port=$S3_PORT
    (
        export S3_PORT AWS_DEFAULT_REGION S3_ADMIN_KEY S3_MLFLOW_KEY S3_WORKER_KEY S3_PROMOTER_KEY S3_AUDITOR_KEY
        "$here/swift.sh" "$state/s3"
    )
    for name in account container object; do
        port=$((port + 1))
        running "s3-$name" && continue
        free_port "$port" S3_PORT
        start "s3-$name" "$SWIFT_VENV/bin/swift-$name-server" "$state/s3/etc/$name-server.conf" verbose
    done
    running s3 && return
    free_port "$S3_PORT" S3_PORT
    start s3 "$SWIFT_VENV/bin/swift-proxy-server" "$state/s3/etc/proxy-server.conf" verbose
)

prefect_up() (
    running prefect && return
    free_port "$PREFECT_PORT" PREFECT_PORT
    export PREFECT_HOME=$state/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_API_URL=$url_prefect/api
    export PREFECT_SERVER_API_AUTH_STRING=$PREFECT_API_AUTH_STRING
    export PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://prefect:$PREFECT_DB_PASSWORD@127.0.0.1:$POSTGRES_PORT/prefect
    start prefect "$root/.venv/bin/prefect" server start --host 127.0.0.1 --port "$PREFECT_PORT"
)

mlflow_up() (
    running mlflow && return
    free_port "$MLFLOW_PORT" MLFLOW_PORT
    export PGHOST=127.0.0.1 PGPORT=$POSTGRES_PORT PGUSER=mlflow PGPASSWORD=$MLFLOW_DB_PASSWORD
    export MLFLOW_AUTH_ADMIN_USERNAME=$MLFLOW_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD=$MLFLOW_ADMIN_PASSWORD
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_ENABLE_WORKSPACES=true
    export AWS_ACCESS_KEY_ID=elder:mlflow AWS_SECRET_ACCESS_KEY=$S3_MLFLOW_KEY AWS_DEFAULT_REGION
    export MLFLOW_AUTH_CONFIG_PATH=$here/mlflow-auth.ini MLFLOW_DISABLE_TELEMETRY=true MLFLOW_S3_ENDPOINT_URL=$url_s3
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # for LLM judges: seven processes more
    export AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED AWS_RESPONSE_CHECKSUM_VALIDATION=WHEN_REQUIRED
    cd "$state"
    start mlflow "$root/.venv/bin/mlflow" server --app-name basic-auth --host 127.0.0.1 --port "$MLFLOW_PORT" --workers 1 \
        --backend-store-uri postgresql+psycopg:///mlflow --artifacts-destination s3://elder-mlflow
)

worker_up() (
    running worker && return
    eval "$(print_env worker)"
    export PREFECT_HOME=$state/prefect-worker PATH=$root/.venv/bin:$PATH
    cd "$root"
    : > "$logs/worker.log"
    start worker "$root/.venv/bin/prefect" worker start --pool elder --type process --name native
)

accounts() (
    export MLFLOW_ADMIN_USERNAME MLFLOW_ADMIN_PASSWORD MLFLOW_WORKER_PASSWORD MLFLOW_PROMOTER_PASSWORD
    export MLFLOW_AUDITOR_PASSWORD
    "$PYTHON" "$here/accounts.py" "$url_mlflow"
)

buckets() (
    export AWS_ACCESS_KEY_ID=elder:admin AWS_SECRET_ACCESS_KEY=$S3_ADMIN_KEY AWS_DEFAULT_REGION
    "$PYTHON" "$here/buckets.py" "$url_s3"
    "$SWIFT_VENV/bin/python" "$here/swift_access.py" "$state/s3/etc"
)

signing_keys() {
    local role
    for role in worker promoter; do
        (cd "$root" && PYTHONPATH=$root "$PYTHON" "$here/keys.py" "$role" "$keys/$role/signing.pem" "$trusted") || exit 2
    done
}

print_env() { # ROLE
    local role=$1 user=$1 password s3_key key=null
    case $role in
        worker) password=$MLFLOW_WORKER_PASSWORD s3_key=$S3_WORKER_KEY key=$keys/worker/signing.pem ;;
        promoter) password=$MLFLOW_PROMOTER_PASSWORD s3_key=$S3_PROMOTER_KEY key=$keys/promoter/signing.pem ;;
        auditor) password=$MLFLOW_AUDITOR_PASSWORD s3_key=$S3_AUDITOR_KEY ;;
        # fills what was lost, and signs again what it registers
        admin)
            user=$MLFLOW_ADMIN_USERNAME password=$MLFLOW_ADMIN_PASSWORD s3_key=$S3_ADMIN_KEY
            key=$keys/worker/signing.pem
            ;;
        *) die "env $role: give one of worker, promoter, auditor and admin" ;;
    esac
    case $role in
        worker | admin)
            echo "export PREFECT_API_URL=$url_prefect/api"
            echo "export PREFECT_API_AUTH_STRING=$PREFECT_API_AUTH_STRING"
            ;;
        # Prefect has one credential, and whoever has it can have its workers do anything
        *) echo "unset PREFECT_API_URL PREFECT_API_AUTH_STRING" ;;
    esac
    cat << X
export MLFLOW_TRACKING_URI=$url_mlflow
export MLFLOW_TRACKING_USERNAME=$user
export MLFLOW_TRACKING_PASSWORD=$password
export AWS_ACCESS_KEY_ID=elder:$role
export AWS_SECRET_ACCESS_KEY=$s3_key
export AWS_DEFAULT_REGION=$AWS_DEFAULT_REGION
export AWS_ENDPOINT_URL_S3=$url_s3
export AWS_EC2_METADATA_DISABLED=true
export AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED
export AWS_RESPONSE_CHECKSUM_VALIDATION=WHEN_REQUIRED
X
    printf 'export ELDER_SET="%s"\n' "store.url=s3://elder/store store.history=s3://elder-history store.endpoint=$url_s3\
 registry.tracking_uri=$url_mlflow signing.private_key=$key${ELDER_TRUSTED:+ signing.trusted=$trusted}"
}

# --- the commands -----------------------------------------------------------------------------------------------------

up() {
    [ -x "$root/.venv/bin/prefect" ] || die "there is no $root/.venv with Prefect: run make .venv/.installed"
    mkdir -p "$logs"
    "$here/env.sh" "$home/.env"
    read_env
    # One at a time: a second `up` meanwhile waits, and then finds everything there.
    exec 9> "$state/lock"
    flock 9
    signing_keys
    postgres_up
    prefect_up
    mlflow_up
    s3_up
    wait_for s3 answers "$url_s3/healthcheck"
    buckets
    wait_for mlflow answers "$url_mlflow/health"
    accounts
    wait_for prefect answers "$url_prefect/api/health"
    worker_up
    wait_for worker grep -q "started!" "$logs/worker.log"
    status
}

part() { # NAME WHERE CHECK...
    local name=$1 where=$2
    shift 2
    if "$@"; then printf '%-9s %-32s %s\n' "$name" "$where" "answers"; else
        printf '%-9s %-32s %s\n' "$name" "$where" "does not answer"
        return 1
    fi
}

status() {
    local well=0
    part postgres "127.0.0.1:$POSTGRES_PORT" postgres_runs || well=1
    part s3 "$url_s3" answers "$url_s3/healthcheck" || well=1
    part prefect "$url_prefect" answers "$url_prefect/api/health" || well=1
    part mlflow "$url_mlflow" answers "$url_mlflow/health" || well=1
    part worker "work pool elder" running worker || well=1
    echo "passwords: $home/.env   data: $state   logs: $logs"
    return "$well"
}

down() {
    [ -d "$state" ] || return 0
    stop worker # while there is still a server that it can tell of its runs
    stop mlflow prefect s3 s3-object s3-container s3-account
    ! postgres_runs || as_postgres "$(postgres_bin)/pg_ctl" -D "$state/postgres" -m fast -w -s stop
}

case ${1:-} in
    up) up ;;
    down) down ;;
    status) read_env && status ;;
    env) read_env && print_env "${2:-worker}" ;;
    *) die "give one of up, down, status and env" ;;
esac
