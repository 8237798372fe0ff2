#!/usr/bin/env bash
# Copies a finished run's report and measurements here: fetch.sh [--dry-run] FOLDER [TO]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "$0")/tpu.sh"

read_flags --dry-run "$@"
shift "$flags"
tpu_settings
[[ $# -eq 1 || $# -eq 2 ]] || fail "name the run folder, and where to copy to: FOLDER [TO]"
check_folder "$1" "$SHARE"
to=${2:-$(basename "$1")}
[[ $to != -* && $to != *:* ]] || fail "$to cannot be told from a flag or a machine: put ./ before it"

files=()
for name in report.json report.md matrix.png metrics.jsonl; do
    files+=("$TPU_NAME:${1%/}/$name")
done
execute mkdir -p "$to"
execute gcloud compute tpus tpu-vm scp "${files[@]}" "$to" "${place[@]}" --worker=0
