#!/bin/bash
# Measures everything and writes bench/RESULTS.md and bench/costs.svg. It takes about an hour, alone on the machine. The
# races are run against the clients that are installed; scripts/test.sh installs those that the tests need too.
#
#   scripts/bench.sh                   everything
#   scripts/bench.sh SECTION...        these sections alone (bench/src/sections), and the report anew
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export PEERD_TEST_VENV=${PEERD_TEST_VENV:-$PWD/target/venv}
export PATH=$PATH:/usr/sbin:/sbin
# One folder for both packages: what they share is built once.
export CARGO_TARGET_DIR=$PWD/target
measured=target/measured
mkdir -p "$measured"

"$cargo" build --release --bins
"$cargo" build --release --manifest-path bench/Cargo.toml
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    # Root of a namespace of our own: its hosts are entered in a /run that only we see.
    as_root=(unshare --user --map-root-user --net --mount sh -euc '
        mount -t tmpfs tmpfs /run
        ip link set lo up
        exec "$@"
    ' sh)
fi
"${as_root[@]}" target/release/peerd-bench run "$@"
if [ $# -eq 0 ]; then
    "$cargo" bench --manifest-path bench/Cargo.toml --bench micro
    "$cargo" bench --bench tracker >"$measured/tracker.txt"
    "$cargo" run --release --example swarmsim >"$measured/swarmsim.txt"
fi
target/release/peerd-bench report
echo "bench/RESULTS.md is written"
