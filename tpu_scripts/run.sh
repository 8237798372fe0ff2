#!/usr/bin/env bash
# A run on all workers, until it ends: run.sh [--dry-run] CONFIG --out FOLDER [ARGUMENT ...]
# Exit codes: 0 finished, 75 stopped or preempted (the same command goes on), else jcl's own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "$0")/tpu.sh"

read_flags --dry-run "$@"
shift "$flags"
tpu_settings
check_run "$SHARE" "$@"
worker="bash jcl/tpu_scripts/worker.sh"
on_workers "$worker start $(printf '%q ' "$@")"
[[ -z $dry_run ]] || { on_workers "$worker status" && exit; }

while true; do
    sleep "$TPU_POLL_SECONDS"
    if ! lines=$(on_workers "$worker status") || [[ $lines != *jcl-run* ]]; then
        case $(state) in
        ACTIVE | UNKNOWN) echo "the workers do not answer; trying again" >&2 && continue ;;
        *) fail "$TPU_NAME was taken away; the run goes on from its last checkpoint" "$STOPPED" ;;
        esac
    fi
    result=0
    while read -r code; do
        case $code in
        0) ;;
        75 | 130 | 137 | 143 | '' | lost) result=$STOPPED ;; # the other codes follow
        *) [[ $result -eq $STOPPED ]] || result=$code ;;
        esac
    done < <(sed -n 's/^jcl-run exited *//p' <<<"$lines")
    if [[ $result -ne 0 ]]; then
        on_workers "$worker stop; tail -n 20 jcl-run/log" >&2 || true
        fail "the run stopped (exit code $result); the same command goes on" "$result"
    fi
    [[ $lines == *running* ]] || exit 0
done
