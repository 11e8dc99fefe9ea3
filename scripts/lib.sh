# shellcheck shell=bash
# Shared by the scripts beside this file, which source it; it runs nothing by itself.
#
# Everything downloaded or built is kept outside the repository, in one cache directory with one
# directory for each tool and version. Deleting the cache is always safe: it is filled again on demand.

set -euo pipefail
shopt -s inherit_errexit

# shellcheck disable=SC2034 # the scripts that source this file use it
cache="${CACHELET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cachelet}"

# Progress goes to stderr: stdout belongs to what a script answers.
say() { printf '==> %s\n' "$*" >&2; }

die() { # die <exit code> <message>
    printf '%s: %s\n' "$(basename "$0")" "$2" >&2
    exit "$1"
}

need() { # need <command> <what to install>
    command -v "$1" >/dev/null || die 69 "cannot find '$1': install $2, and run this again"
}

# install_once <dir> <what it is> <command...>: runs `command... <dir>` unless that was done before.
#
# `<dir>/.complete` is written last, so an interrupted run starts over from nothing; the lock makes a
# second caller wait and then find the work done.
install_once() {
    local dir=$1 what=$2 lock started
    shift 2
    if [[ -e $dir/.complete ]]; then return; fi
    need flock "util-linux"
    mkdir -p "$(dirname "$dir")"
    exec {lock}>"$dir.lock"
    flock "$lock"
    if [[ ! -e $dir/.complete ]]; then
        say "installing $what into $dir (once)"
        started=$SECONDS
        rm -rf "$dir"
        mkdir "$dir"
        # The command inherits the lock on purpose: if only this shell is killed, the next caller still
        # waits until the command it left behind has ended, and then starts over.
        "$@" "$dir" || die 69 "cannot install $what: see the messages above, and run this again"
        touch "$dir/.complete"
        say "installed $what in $((SECONDS - started)) s"
    fi
    exec {lock}>&-
}

# pip_install <package==version>... <dir>: a virtual environment holding these packages.
pip_install() {
    local dir=${*: -1}
    need python3 "Python 3.11 with venv (apt-get install python3-venv)"
    python3 -m venv "$dir" && "$dir/bin/pip" install --quiet --disable-pip-version-check "${@:1:$#-1}" >&2
}
