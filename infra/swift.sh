#!/usr/bin/env bash
# Set up OpenStack Swift with its S3 interface, for machines without docker: one copy of each object, plain HTTP, loopback.
#   infra/swift.sh FOLDER     needs S3_PORT (the next three ports are its servers'), AWS_DEFAULT_REGION, SWIFT_VENV, made
#                             where it is missing, and of each user of the account `elder` S3_<USER>_KEY
# Data and configuration lie in FOLDER afterwards; infra/native.sh starts the four servers.
set -euo pipefail
folder=$(realpath -m "$1") etc=$(realpath -m "$1")/etc
mkdir -p "$etc" "$folder/devices/disk"

if [ ! -e "$SWIFT_VENV/.installed" ]; then
    "${PYTHON:-python3}" -m venv --clear "$SWIFT_VENV"
    "$SWIFT_VENV/bin/python" -m pip install -q --disable-pip-version-check 'swift==2.38.3'
    touch "$SWIFT_VENV/.installed"
fi

umask 077 # the proxy's configuration holds the keys
# The hash prefix is part of where each object lies: it is chosen once.
[ -e "$etc/swift.conf" ] || cat > "$etc/swift.conf" <<X
[swift-hash]
swift_hash_path_prefix = $(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
swift_hash_path_suffix = elder
[storage-policy:0]
name = default
default = yes
X

common() { # PORT
    printf '[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = %s\nworkers = 1\nuser = %s\n' "$1" "$(id -un)"
    printf 'swift_dir = %s\ndevices = %s/devices\nmount_check = false\nlog_level = WARNING\n' "$etc" "$folder"
}

port=$S3_PORT
for kind in account container object; do
    port=$((port + 1))
    { common "$port"; printf '[pipeline:main]\npipeline = %s-server\n[app:%s-server]\nuse = egg:swift#%s\n' "$kind" "$kind" "$kind"; } \
        > "$etc/$kind-server.conf"
    ring=$etc/$kind.builder
    # Where the data lies does not depend on the port: a ring for another port is simply made anew.
    if ! "$SWIFT_VENV/bin/swift-ring-builder" "$ring" search "127.0.0.1:$port" > /dev/null 2>&1; then
        rm -f "$ring" "$etc/$kind.ring.gz"
        "$SWIFT_VENV/bin/swift-ring-builder" "$ring" create 4 1 0
        "$SWIFT_VENV/bin/swift-ring-builder" "$ring" add "r1z1-127.0.0.1:$port/disk" 1
        "$SWIFT_VENV/bin/swift-ring-builder" "$ring" rebalance
    fi > /dev/null
done

filters=(catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth versioned_writes slo symlink)
{
    common "$S3_PORT"
    printf '[pipeline:main]\npipeline = %s proxy-server\n' "${filters[*]}"
    printf '[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n'
    for filter in "${filters[@]}"; do
        case $filter in cache) egg=memcache ;; *) egg=$filter ;; esac
        printf '[filter:%s]\nuse = egg:swift#%s\n' "$filter" "$egg"
        case $filter in
            s3api) printf 'location = %s\ns3_acl = false\n' "$AWS_DEFAULT_REGION" ;;
            cache) printf 'set log_level = CRITICAL\n' ;; # there is no memcached: nothing is cached, nothing is lost
            tempauth) # one account; what those may who are not its admin, infra/swift-access.py says of each container
                printf 'user_elder_admin = %s .admin\n' "$S3_ADMIN_KEY"
                printf 'user_elder_%s = %s\n' mlflow "$S3_MLFLOW_KEY" worker "$S3_WORKER_KEY" \
                    promoter "$S3_PROMOTER_KEY" auditor "$S3_AUDITOR_KEY"
                ;;
            versioned_writes) printf 'allow_object_versioning = true\n' ;;
        esac
    done
} > "$etc/proxy-server.conf"
