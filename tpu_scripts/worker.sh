#!/usr/bin/env bash
# On a worker: a run that outlives the connection: worker.sh start CONFIG [ARGUMENT ...]|status|stop
set -euo pipefail
cd "$(dirname "$0")/.."
place=$HOME/jcl-run
mkdir -p "$place"
# the run inherits this open file and with it the lock, which is free as soon as the run is gone
[[ ${1:-} == supervise ]] || exec 9>>"$place/lock"

case ${1:-} in
start)
    shift
    mountpoint --quiet /mnt/share || { echo "nothing is mounted at /mnt/share" >&2 && exit 2; }
    if ! flock --nonblock 9; then
        [[ $(<"$place/command") != "$*" ]] || exit 0
        echo "another run goes on: $(<"$place/command")" >&2 && exit 2
    fi
    rm -f "$place/status" "$place/pid"
    echo "$*" >"$place/command"
    setsid nohup bash tpu_scripts/worker.sh supervise "$@" >>"$place/log" 2>&1 </dev/null &
    ;;
supervise)
    status=0
    "$HOME/jcl-venv/bin/jcl" run "${@:2}" &
    echo "$!" >"$place/pid"
    wait "$!" || status=$?
    echo "$status" >"$place/status"
    ;;
status)
    flock --nonblock 9 || { echo "jcl-run running" && exit; }
    echo "jcl-run exited $(cat "$place/status" 2>/dev/null || echo lost)"
    ;;
stop)
    ! flock --nonblock 9 || exit 0
    kill -TERM "$(<"$place/pid")" || true
    flock --timeout 120 9 || kill -KILL "$(<"$place/pid")"
    ;;
*) echo "worker.sh: start CONFIG [ARGUMENT ...], status or stop" >&2 && exit 2 ;;
esac
