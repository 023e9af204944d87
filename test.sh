#!/usr/bin/env bash
# Every check and test, fast and slow; the last line counts the tests. The fast part alone: pytest -m "not slow"
set -euo pipefail
cd "$(dirname "$0")"
source dev/setup.sh
nanochat_setup
nanochat_install_clients
nanochat_find_rust

# the page is tested in a real browser, which Debian and Ubuntu have as a package
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium ||
            echo "no Chromium could be installed: the tests that need it are left out"
    else
        echo "no Chromium here (apt install chromium): the tests that need it are left out"
    fi
fi

export OMP_NUM_THREADS=1 # two test processes share the cores
export PYO3_PYTHON="$PWD/.venv/bin/python"

ruff format --check .
ruff check .
mypy
cargo fmt --check --manifest-path rustbpe/Cargo.toml
cargo clippy --quiet --manifest-path rustbpe/Cargo.toml --all-targets --features python -- -D warnings
cargo test --quiet --manifest-path rustbpe/Cargo.toml
pytest -q -n 2 --dist loadfile
