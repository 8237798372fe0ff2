#!/usr/bin/env bash
# Installs this checkout's last commit on all workers: setup.sh [--dry-run]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$root/tpu_scripts/tpu.sh"

read_flags --dry-run "$@"
shift "$flags"
[[ $# -eq 0 ]] || fail "unknown argument $1"
tpu_settings
require TPU_SHARE '[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*|mounted' \
    "an NFS export HOST:/PATH, or to mounted where something is mounted at $SHARE already"

archive=$root/build/jcl.tar.gz
execute mkdir -p "$root/build"
execute git -C "$root" archive --format=tar.gz --output="$archive" HEAD
if [[ -z $dry_run && -n $(git -C "$root" status --porcelain) ]]; then
    echo "setup.sh: what is not committed stays behind" >&2
fi
execute gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:jcl.tar.gz" "${place[@]}" --worker=all
busy="bash jcl/tpu_scripts/worker.sh status 2>/dev/null | grep -q running"
install="rm -rf jcl && mkdir jcl && tar -xzf jcl.tar.gz -C jcl"
install+=" && bash jcl/tpu_scripts/install.sh $TPU_SHARE"
on_workers "if $busy; then echo 'a run goes on: nothing is installed anew'; else $install; fi"
