#!/usr/bin/env bash
# Deletes the TPU and its place in the queue: delete.sh [--dry-run] --yes
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "$0")/tpu.sh"

read_flags "--dry-run --yes" "$@"
shift "$flags"
[[ $# -eq 0 ]] || fail "unknown argument $1"
tpu_settings
[[ $yes || $dry_run ]] || fail "this deletes $TPU_NAME and ends what runs on it: add --yes"
execute gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
