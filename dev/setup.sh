# Sourced by quickstart.sh, test.sh and the recipes: makes .venv and installs what is missing, in the order of DESIGN.md.
# What is installed already (the stamps in .venv say so) is skipped. PYTHON=... picks the interpreter.

TORCH_VERSION="2.15.0"

nanochat_fail() {
    echo "error: $1" >&2
    exit 2
}

nanochat_find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if command "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    nanochat_fail "nanochat needs Python 3.11 or newer and found $({ python3 --version; } 2>/dev/null || echo none): install it, or name it with PYTHON=/path/to/python"
}

nanochat_make_venv() {
    local python
    command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
        nanochat_fail "nanochat needs a C compiler (Rust links with it): install gcc or clang, for example \`apt install build-essential\` or \`xcode-select --install\`"
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python="$(nanochat_find_python)"
        echo "set-up: .venv with $(command "$python" --version)"
        if command -v uv >/dev/null; then
            uv venv --quiet --clear --python "$python" .venv
        else
            command "$python" -m venv --clear .venv ||
                nanochat_fail "$python cannot make .venv: on Debian and Ubuntu \`apt install python3-venv\`"
        fi
    fi
}

nanochat_find_uv() {
    # uv learned --torch-backend in 0.6; an older one is left alone, and a new one put into .venv
    if ! uv pip install --help 2>/dev/null | grep -q -- --torch-backend; then
        echo "set-up: uv into .venv"
        .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip --upgrade >/dev/null
        .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
        hash -r
    fi
}

# Whether cargo runs and is at least as new as the crate asks for. $1: that version
nanochat_cargo_is_new_enough() {
    local version
    version="$(cargo --version 2>/dev/null)" || return 1
    version="${version#cargo }"
    version="${version%% *}"
    .venv/bin/python - "${version%%-*}" "$1" <<'PYTHON'
import sys

have, wanted = ([int(part) for part in text.split(".")] for text in sys.argv[1:])
sys.exit(have < wanted)
PYTHON
}

nanochat_find_rust() {
    local minimum cargo_bin
    minimum="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' rustbpe/Cargo.toml)"
    export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if nanochat_cargo_is_new_enough "$minimum"; then
        return
    fi
    # under another HOME, rustup's cargo does not find its toolchains: they lie beside it
    if cargo_bin="$(command -v cargo)" && [ -z "${RUSTUP_HOME:-}" ]; then
        cargo_bin="$(dirname "$cargo_bin")"
        if [ -d "$cargo_bin/../../.rustup/toolchains" ]; then
            RUSTUP_HOME="$(cd "$cargo_bin/../../.rustup" && pwd)"
            export RUSTUP_HOME
            if nanochat_cargo_is_new_enough "$minimum"; then
                return
            fi
            unset RUSTUP_HOME
        fi
    fi
    echo "set-up: the tokenizer needs Rust $minimum or newer and found $(cargo --version 2>/dev/null || echo none); installing it with rustup (https://rustup.rs) into $HOME"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --quiet --no-modify-path --profile minimal -c rustfmt -c clippy ||
        nanochat_fail "Rust could not be installed: install $minimum or newer yourself (https://rustup.rs), and run this again"
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    hash -r
    nanochat_cargo_is_new_enough "$minimum" || nanochat_fail "cargo is still older than $minimum after the installation: see \`rustup show\`"
}

# A hash over the files named (folders with all that is in them).
nanochat_hash() {
    .venv/bin/python - "$@" <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256()
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.as_posix()}\0".encode() + file.read_bytes())
print(digest.hexdigest())
PYTHON
}

# Whether step $1 was done with the inputs that $2 is the hash of.
nanochat_is_done() {
    [ "$(cat ".venv/nanochat-$1.stamp" 2>/dev/null)" = "$2" ]
}

nanochat_done() {
    printf '%s\n' "$2" >".venv/nanochat-$1.stamp"
}

nanochat_install_torch() {
    # without a GPU the CPU build of torch's own index saves gigabytes; where that index does not answer: the plain one
    if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && ! [ -e /dev/kfd ] &&
        UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 uv pip install --quiet --dry-run --torch-backend=cpu "torch==$TORCH_VERSION" 2>/dev/null; then
        echo "set-up: torch $TORCH_VERSION for the CPU"
        uv pip install --torch-backend=cpu "torch==$TORCH_VERSION" && return
    fi
    echo "set-up: torch $TORCH_VERSION"
    uv pip install "torch==$TORCH_VERSION"
}

# The clients of other people that the server is tested with; not for quickstart.sh.
nanochat_install_clients() {
    local stamp
    stamp="$(nanochat_hash requirements-clients.txt)"
    if ! nanochat_is_done clients "$stamp"; then
        echo "set-up: packages of requirements-clients.txt"
        uv pip install --require-hashes -r requirements-clients.txt
        nanochat_done clients "$stamp"
    fi
}

nanochat_setup() {
    local stamp
    nanochat_make_venv
    # shellcheck disable=SC1091
    source .venv/bin/activate
    nanochat_find_uv

    stamp="$(nanochat_hash requirements.txt)"
    if ! nanochat_is_done requirements "$stamp"; then
        echo "set-up: packages of requirements.txt"
        uv pip install --require-hashes -r requirements.txt
        nanochat_done requirements "$stamp"
    fi
    if ! nanochat_is_done torch "$TORCH_VERSION"; then
        nanochat_install_torch
        nanochat_done torch "$TORCH_VERSION"
    fi
    stamp="$(nanochat_hash rustbpe/Cargo.toml rustbpe/Cargo.lock rustbpe/pyproject.toml rustbpe/src)"
    if ! nanochat_is_done rustbpe "$stamp"; then
        nanochat_find_rust
        echo "set-up: rustbpe, in release mode"
        uv pip install --no-deps --no-build-isolation --reinstall ./rustbpe
        nanochat_done rustbpe "$stamp"
    fi
    stamp="$(nanochat_hash pyproject.toml)"
    if ! nanochat_is_done project "$stamp"; then
        uv pip install --no-deps --no-build-isolation --editable .
        nanochat_done project "$stamp"
    fi
}
