#!/usr/bin/env bash
# On a worker: mounts what the workers share and installs jcl; called by setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
share=$1

if ! mountpoint --quiet /mnt/share; then
    if [[ $share == mounted ]]; then
        echo "nothing is mounted at /mnt/share: mount it on every worker, or set TPU_SHARE" >&2
        exit 2
    fi
    # a new machine may be updating itself, hence the wait for the lock
    sudo apt-get -o DPkg::Lock::Timeout=600 --quiet update
    sudo apt-get -o DPkg::Lock::Timeout=600 --quiet --yes install nfs-common
    sudo mkdir -p /mnt/share
    sudo mount -t nfs "$share" /mnt/share
fi

# the system's Python is older than jcl needs
python3 -m pip install --quiet --user uv==0.13.8
python3 -m uv venv --quiet --clear --python 3.11 "$HOME/jcl-venv"
python3 -m uv pip install --quiet --python "$HOME/jcl-venv/bin/python" \
    --constraint constraints.txt ".[tpu,demo]"
"$HOME/jcl-venv/bin/jcl" --help >/dev/null
echo "jcl is installed"
