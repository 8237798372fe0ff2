#!/usr/bin/env bash
# A run on several nodes with GPUs, a process for each GPU:
# slurm.sh [--dry-run] CONFIG --out FOLDER [ARGUMENT ...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

read_flags --dry-run "$@"
shift "$flags"
require JCL_NODES '[1-9][0-9]*' "the number of nodes"
require JCL_GPUS '[1-9][0-9]*' "the number of GPUs of each node"
check_run "" "$@"
# the signal goes to jcl's processes two minutes before the time is over
execute sbatch --job-name=jcl --nodes="$JCL_NODES" --gpus-per-node="$JCL_GPUS" \
    --ntasks-per-node="$JCL_GPUS" --requeue --open-mode=append --output=jcl-%j.log \
    --signal=TERM@120 "$here/slurm_job.sh" "$@"
