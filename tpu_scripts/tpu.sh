# What the scripts for TPUs share; sourced, never run.
# shellcheck shell=bash disable=SC2034 # the scripts read the variables
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

STOPPED=75       # the exit code of "not finished, the same command goes on"
SHARE=/mnt/share # where every worker mounts what they share

tpu_settings() {
    require TPU_NAME '[a-z]([a-z0-9-]{0,61}[a-z0-9])?' "a name: small letters, digits, hyphens"
    require TPU_PROJECT '[a-z][a-z0-9:.-]*[a-z0-9]' "the id of your project"
    require TPU_ZONE '[a-z]+-[a-z0-9]+-[a-z]' "a zone, such as us-east5-a"
    : "${TPU_POLL_SECONDS:=30}"
    require TPU_POLL_SECONDS '[0-9]+([.][0-9]+)?' "seconds between two looks"
    place=(--zone="$TPU_ZONE" --project="$TPU_PROJECT")
    describe=(gcloud compute tpus queued-resources describe "$TPU_NAME" "${place[@]}")
    describe+=('--format=value(state.state)')
}

# The queued resource's state, ABSENT where there is none, UNKNOWN where that cannot be told
state() {
    local answer
    if answer=$("${describe[@]}" 2>&1); then
        # notices of gcloud's own may stand around the state
        grep -m1 -xE '[A-Z_]+' <<<"$answer" || echo UNKNOWN
    elif [[ $answer == *NOT_FOUND* || $answer == *"was not found"* ]]; then
        echo ABSENT
    else
        echo "$answer" >&2
        echo UNKNOWN
    fi
}

on_workers() {
    execute gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker=all --command="$1"
}
