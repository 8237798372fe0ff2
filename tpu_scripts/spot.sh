#!/usr/bin/env bash
# A run on spot TPUs, asked for again after each preemption until the run has ended:
# spot.sh [--dry-run] CONFIG --out FOLDER [ARGUMENT ...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$here/tpu.sh"

read_flags --dry-run "$@"
shift "$flags"
tpu_settings
check_run "$SHARE" "$@"
[[ " $* " != *" --fresh "* ]] || fail "--fresh would begin anew after each preemption: leave it out"
if [[ $dry_run ]]; then
    execute "${describe[@]}"
    "$here/create.sh" --dry-run --spot
    "$here/setup.sh" --dry-run
    "$here/run.sh" --dry-run "$@"
    exec "$here/delete.sh" --dry-run --yes
fi

ours='' # a TPU that is gone is asked for again only where this script took it down
while true; do
    status=0
    case $(state) in
    ACTIVE)
        ours=1
        { "$here/setup.sh" && "$here/run.sh" "$@"; } || status=$?
        [[ $status -ne 0 ]] || exit 0
        # whatever fails while the TPU is taken away is no failure of the run
        [[ $status -eq $STOPPED || $(state) != ACTIVE ]] || exit "$status"
        ;;
    ABSENT)
        [[ -z $ours ]] || fail "$TPU_NAME was deleted by another hand"
        "$here/create.sh" --spot || { status=$? && [[ $status -eq $STOPPED ]] || exit "$status"; }
        ;;
    FAILED | SUSPENDED) "$here/delete.sh" --yes && ours='' ;;
    esac
    sleep "$TPU_POLL_SECONDS"
done
