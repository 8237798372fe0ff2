#!/usr/bin/env bash
# The job of slurm.sh, which Slurm runs from a copy: slurm_job.sh CONFIG --out FOLDER [ARGUMENT ...]
set -euo pipefail

status=0
srun --kill-on-bad-exit=1 jcl run "$@" || status=$?
case $status in
75 | 130 | 137 | 143)
    # a cancelled job is no longer RUNNING, and Slurm queues a preempted one again by itself
    if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$status"
