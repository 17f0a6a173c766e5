#!/usr/bin/env bash
# Install Posterior on Debian or Ubuntu: system packages, then .venv from pinned versions. Safe to run again.
#
#   bash setup_env/setup.sh               vLLM for the CPU
#   EXTRA=gpu bash setup_env/setup.sh     vLLM for CUDA
#   PYTHON=/path/to/python3.11            the interpreter to build .venv from
#   POSTERIOR_VENV=DIR                    another place for the environment

set -euo pipefail
cd "$(dirname "$0")/.."

EXTRA=${EXTRA:-cpu}
VENV=${POSTERIOR_VENV:-.venv}
CACHE=.cache
TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

[ "$EXTRA" = cpu ] || [ "$EXTRA" = gpu ] || die "EXTRA must be cpu or gpu, not '$EXTRA'"

# Whether $1 is a Python that Posterior runs on.
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if command -v "$candidate" >/dev/null && suits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

loads() { "$1" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$2" 2>/dev/null; }

# Names of the Debian packages that are missing, one a line. $1: the interpreter, empty if none was found.
missing_packages() {
    local python=$1
    if [ -z "$python" ]; then
        printf '%s\n' python3 python3-venv
        python=python3
    elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo python3-venv
    fi
    command -v bwrap >/dev/null || echo bubblewrap # the sandbox of candidate programs
    loads "$python" libseccomp.so.2 || echo libseccomp2
    loads "$python" libnuma.so.1 || echo libnuma1 # vLLM's CPU kernels link against it
    command -v valgrind >/dev/null || echo valgrind # counts work where the processor's own counters are out of reach
    command -v inform6 >/dev/null || echo inform6-compiler # generated text adventures
    [ -d /usr/share/inform6/library ] || echo inform6-library
    command -v gcc >/dev/null && command -v make >/dev/null || echo build-essential # pip builds jericho, which plays them
    command -v coqc >/dev/null || echo coq # checks formal proofs
    command -v chromium >/dev/null || echo chromium # the tests open the report in it
}

install_packages() {
    local missing=("$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        die "system packages are missing; run: sudo apt-get update && sudo apt-get install -y ${missing[*]}"
    fi
    command -v apt-get >/dev/null || die "this system has no apt-get; install by its own means: ${missing[*]}"
    apt-get update || die "apt-get update failed; check the network and the sources of apt"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}"
}

# Agda's program and data, without the 65 packages of a Haskell compiler that its Debian package would pull in.
unpack_agda() {
    local folder=$CACHE/agda package
    [ ! -x "$VENV/agda/usr/bin/agda" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    rm -rf "$folder" "$VENV/agda" && mkdir -p "$folder/all" "$VENV/agda/usr/bin" "$VENV/agda/usr/share"
    (cd "$folder" && { apt-get download agda-bin libghc-agda-dev || { apt-get update && apt-get download agda-bin libghc-agda-dev; }; }) ||
        return 1
    for package in "$folder"/*.deb; do
        dpkg-deb -x "$package" "$folder/all" || return 1
    done
    mv "$folder/all/usr/share/libghc-agda-dev" "$VENV/agda/usr/share/" && mv "$folder/all/usr/bin/agda" "$VENV/agda/usr/bin/" || return 1
    rm -rf "$folder"
}

install_torch_cpu() {
    local log=$CACHE/torch.log
    "$VENV/bin/python" -m pip install -c setup_env/constraints.txt "torch==$TORCH+cpu" 2>"$log" && return
    if ! grep -q 'No matching distribution' "$log"; then
        cat "$log" >&2
        die "pip could not install torch: $(grep '^ERROR' "$log" | tail -n 1)"
    fi
    say "pip's configured sources have no torch $TORCH+cpu; taking it from PyTorch's own index of CPU wheels"
    "$VENV/bin/python" -m pip install -c setup_env/constraints.txt --extra-index-url "$TORCH_CPU_INDEX" \
        "torch==$TORCH+cpu" || die "torch $TORCH+cpu is neither in pip's configured sources nor at $TORCH_CPU_INDEX"
}

if [ -n "${PYTHON:-}" ] && ! suits "$PYTHON"; then
    die "PYTHON=$PYTHON is not a Python 3.11 or 3.12"
fi
started=$SECONDS
say "1/4 system packages"
python=$(find_python)
mapfile -t missing < <(missing_packages "$python")
install_packages "${missing[@]}"
python=$(find_python)
[ -n "$python" ] || die "no Python 3.11 or 3.12 was found; install one and name it with PYTHON=/path/to/python3.11"

say "2/4 environment $VENV from $python"
# An environment that this script made for the other extra holds the wrong torch and stand-ins: it is made anew.
if [ -f "$VENV/extra" ] && [ "$(cat "$VENV/extra")" != "$EXTRA" ]; then
    rm -rf "$VENV"
fi
if ! { [ -x "$VENV/bin/python" ] && suits "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null; }; then
    if [ -e "$VENV" ] && [ ! -f "$VENV/extra" ]; then
        die "$VENV exists and is no environment that this script made; remove it or name another with POSTERIOR_VENV=DIR"
    fi
    "$python" -m venv --clear "$VENV" || die "$python could not create $VENV"
fi
echo "$EXTRA" >"$VENV/extra"

say "3/4 Python packages (about 1 GB; minutes on a slow line)"
mkdir -p "$CACHE/stand_ins"
options=(-c setup_env/constraints.txt)
if [ "$EXTRA" = cpu ]; then
    "$python" setup_env/stand_ins.py "$CACHE/stand_ins"
    install_torch_cpu
    options+=(--find-links "$CACHE/stand_ins" torchvision==99.0 torchaudio==99.0 torchcodec==99.0 triton==99.0)
    options+=("torch==$TORCH+cpu")
fi
"$VENV/bin/python" -m pip install "${options[@]}" -e ".[$EXTRA,dev,adventures,reasoning-gym,openenv]" || die "pip could not install Posterior; see above"

unpack_agda || say "Agda could not be unpacked; proofs in Agda will not be checked here, everything else works"

say "4/4 check"
"$VENV/bin/python" -m pip check || die "the installed packages contradict each other; remove $VENV and try again"
"$VENV/bin/posterior" --version
say "set up in $((SECONDS - started)) s"
