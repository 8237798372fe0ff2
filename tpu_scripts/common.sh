# What the scripts share; sourced, never run.
# shellcheck shell=bash disable=SC2034 # the scripts read the variables

fail() { echo "$(basename "$0"): $1" >&2 && exit "${2:-2}"; }

# The flags before anything else: read_flags KNOWN "$@"; shift "$flags"
read_flags() {
    local known=" $1 "
    flags=0 dry_run='' spot='' yes=''
    while [[ ${2:-} == --* ]]; do
        [[ $known == *" $2 "* ]] || fail "unknown flag $2; known here:$known"
        case $2 in --dry-run) dry_run=1 ;; --spot) spot=1 ;; --yes) yes=1 ;; esac
        shift && flags=$((flags + 1))
    done
}

# A variable of the environment: require NAME PATTERN MEANING
require() {
    [[ -n ${!1:-} ]] || fail "set $1 to $3"
    [[ ${!1} =~ ^($2)$ ]] || fail "$1=${!1} is not $3"
}

# Letters that neither a shell nor scp reads as anything but a path: check_folder FOLDER BENEATH
check_folder() {
    [[ $1 =~ ^[A-Za-z0-9._/-]+$ && $1 == "$2"/?* && /$1/ != */../* ]] ||
        fail "give a run folder (--out) under $2/, which every worker shares; not '$1'"
}

# The arguments of jcl run: check_run BENEATH CONFIG --out FOLDER [ARGUMENT ...]
check_run() {
    [[ ${2:-} == *.py && $2 != /* ]] || fail "name a config of this checkout: configs/NAME.py"
    local folder='' before='' each
    for each in "${@:3}"; do
        case $before=$each in --out=*) folder=$each ;; *=--out=*) folder=${each#*=} ;; esac
        before=$each
    done
    check_folder "$folder" "$1"
}

execute() { if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
