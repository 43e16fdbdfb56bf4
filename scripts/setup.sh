# Sourced by the other scripts (POSIX sh). Sets ROOT, AT and VENV_PY and makes the environment .venv when needed.
# Scripts stay in the folder where the user stands; AT is what comes before names of the repository there.
#
#   PYTHON           the Python to build .venv with (default python3; 3.10 to 3.13)
#   TORCH_INDEX_URL  where torch is installed from, e.g. the CPU index of PyTorch (default: pip's own index)
#
# .venv/.requirements holds the checksum of the installed requirements and is written last; while
# .venv/.installing exists the environment is incomplete, and the next run rebuilds it.

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
AT=$ROOT/
if [ "$(pwd -P)" = "$(cd -- "$ROOT" && pwd -P)" ]; then AT=; fi
VENV=$ROOT/.venv
VENV_PY=$VENV/bin/python
PYTHON=${PYTHON:-python3}
OLDEST_TORCH="(2, 6)"

say() { echo "[setup] $*"; }
fail() { echo "[setup] error: $*" >&2; exit 1; }

# given NAME ARGUMENT...: whether --NAME is among the arguments.
given() {
    option=$1
    shift
    for argument in "$@"; do
        case $argument in "--$option" | "--$option="*) return 0 ;; esac
    done
    return 1
}

check_python() {
    found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "PYTHON=$PYTHON does not run; install Python 3.10 to 3.13 or name one: PYTHON=/path/to/python3"
    case $found in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) fail "$PYTHON is Python $found, supported are 3.10 to 3.13; name another one: PYTHON=/path/to/python3" ;;
    esac
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$PYTHON has no venv module; on Debian and Ubuntu: sudo apt-get install python$found-venv"
}

# Prints "VERSION FOLDER" of a torch that $PYTHON can import and that is new enough, or nothing.
torch_of_python() {
    "$PYTHON" - 2>/dev/null <<EOF
import os, torch
version = torch.__version__
if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= $OLDEST_TORCH:
    print(version, os.path.dirname(os.path.dirname(torch.__file__)))
EOF
}

make_venv() {
    say "creating .venv with $PYTHON (Python $found)"
    mkdir -p "$VENV" && : >"$VENV/.installing" || fail "cannot write $VENV"
    "$PYTHON" -m venv --clear "$@" "$VENV" || fail "could not create .venv"
    : >"$VENV/.installing"
}

# The torch of $PYTHON stays in use. Where $PYTHON is itself a virtual environment, .venv does not see its
# packages by --system-site-packages, so the folder is added by a .pth file.
keep_torch() {
    say "keeping torch $1, which $PYTHON already has"
    "$VENV_PY" -W ignore -c 'import torch' 2>/dev/null && return
    site=$("$VENV_PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$2" >"$site/torch_of_python.pth"
    "$VENV_PY" -W ignore -c 'import torch' || fail "torch of $PYTHON cannot be imported from .venv"
}

install() {
    say "$1"
    shift
    "$VENV_PY" -m pip install -qq --disable-pip-version-check "$@" || {
        rm -f "$VENV/.installing" # pip ended by itself and left nothing half-written
        fail "installation failed (see above); run the same command again to retry"
    }
}

make_environment() {
    check_python
    kept=$(torch_of_python) || kept=
    if [ -e "$VENV/.installing" ] || ! "$VENV_PY" -m pip --version >/dev/null 2>&1; then
        [ -e "$VENV/.installing" ] && say "the last installation did not finish; starting again"
        if [ -n "$kept" ]; then make_venv --system-site-packages; else make_venv; fi
    fi
    : >"$VENV/.installing"
    [ -n "$kept" ] && [ ! -e "$VENV/.own-torch" ] && keep_torch "${kept%% *}" "${kept#* }"
    if ! "$VENV_PY" -W ignore -c 'import torch' 2>/dev/null; then
        : >"$VENV/.own-torch"
        torch=$(grep '^torch==' "$ROOT/requirements.txt")
        install "installing $torch${TORCH_INDEX_URL:+ from $TORCH_INDEX_URL}" \
            ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
    fi
    # The torch that is there now is what every other library has to live with.
    grep -v '^torch==' "$ROOT/requirements.txt" >"$VENV/requirements.txt"
    "$VENV_PY" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
        >"$VENV/constraints.txt"
    install "installing the tested libraries (one to three minutes the first time)" \
        -r "$VENV/requirements.txt" -c "$VENV/constraints.txt"
    cksum <"$ROOT/requirements.txt" >"$VENV/.requirements"
    rm -f "$VENV/.installing"
}

if [ -e "$VENV/.installing" ] || [ ! -x "$VENV_PY" ] ||
    [ "$(cat "$VENV/.requirements" 2>/dev/null)" != "$(cksum <"$ROOT/requirements.txt")" ]; then
    make_environment
fi
# Modules of the repository are found from everywhere, and nothing of the user's folder is taken for one.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
