#!/usr/bin/env bash
# Asks for a TPU and waits until it is there: create.sh [--dry-run] [--spot]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "$0")/tpu.sh"

read_flags "--dry-run --spot" "$@"
shift "$flags"
[[ $# -eq 0 ]] || fail "unknown argument $1"
tpu_settings
require TPU_TYPE '[a-z][a-z0-9]*-[0-9]+' "an accelerator type, such as v5litepod-16"
case $TPU_TYPE in
v6e-*) runtime=v2-alpha-tpuv6e ;;
v5p-*) runtime=v2-alpha-tpuv5 ;;
v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
v4-* | v3-* | v2-*) runtime=tpu-ubuntu2204-base ;;
*) require TPU_RUNTIME '[a-z][a-z0-9.-]+' "the runtime version that $TPU_TYPE needs" ;;
esac

create=(gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME")
create+=("${place[@]}" --accelerator-type="$TPU_TYPE" --runtime-version="${TPU_RUNTIME:-$runtime}")
[[ -z $spot ]] || create+=(--spot)
if [[ $dry_run ]]; then
    execute "${create[@]}"
    execute "${describe[@]}"
    exit
fi
[[ $(state) != ABSENT ]] || "${create[@]}"
while true; do
    now=$(state)
    case $now in
    ACTIVE) exit 0 ;;
    ABSENT) fail "$TPU_NAME was deleted while it was awaited" ;;
    FAILED | SUSPENDING | SUSPENDED) fail "$TPU_NAME is $now; delete it and ask again" "$STOPPED" ;;
    esac
    echo "$TPU_NAME is $now" >&2
    sleep "$TPU_POLL_SECONDS"
done
