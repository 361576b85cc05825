#!/bin/bash
# Passes every test. As root it installs what is missing first; as another user it names what is missing, and runs the
# tests that need hosts of their own in a user namespace.
#
#   scripts/test.sh                    formatting, lints and every test
#   scripts/test.sh FILTER [ARGS...]   the tests whose names contain FILTER; ARGS go to the test binary
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export PEERD_TEST_VENV=${PEERD_TEST_VENV:-$PWD/target/venv}

# What the tests run, and the Debian package it comes from.
needed='
    aria2c aria2
    cc gcc
    curl curl
    ip iproute2
    mktorrent mktorrent
    mount mount
    nsenter util-linux
    prlimit util-linux
    python3 python3
    rsync rsync
    setpriv util-linux
    ss iproute2
    strace strace
    systemd-analyze systemd
    tc iproute2
    transmission-create transmission-cli
    transmission-daemon transmission-daemon
    transmission-remote transmission-cli
    transmission-show transmission-cli
    unshare util-linux
'

missing_packages() {
    while read -r program package; do
        [ -z "$program" ] || command -v "$program" >/dev/null || echo "$package"
    done <<<"$needed" | sort -u
    # Debian's python3 is complete only with this.
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

# Installs packages without letting the servers among them start.
install_packages() {
    local policy=/usr/sbin/policy-rc.d ours=no status=0
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } || status=$?
    [ "$ours" = no ] || rm -f "$policy"
    return "$status"
}

export PATH=$PATH:/usr/sbin:/sbin
mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "The tests need these Debian packages: ${missing[*]}" >&2
        echo "Install them, or run this once as root." >&2
        exit 1
    fi
    echo "installing: ${missing[*]}"
    install_packages "${missing[@]}"
fi
if ! "$PEERD_TEST_VENV/bin/python" -c 'import libtorrent' 2>/dev/null; then
    echo "installing: libtorrent 2.1.1 in $PEERD_TEST_VENV"
    python3 -m venv "$PEERD_TEST_VENV"
    "$PEERD_TEST_VENV/bin/pip" install --quiet --disable-pip-version-check libtorrent==2.1.1
fi

if [ $# -eq 0 ]; then
    "$cargo" fmt --check
    "$cargo" clippy --all-targets -- -D warnings
    # The benchmarks are another package, which nothing else here builds.
    "$cargo" fmt --manifest-path bench/Cargo.toml --check
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} \
        "$cargo" clippy --manifest-path bench/Cargo.toml --all-targets -- -D warnings
fi
"$cargo" test --no-run

filter=()
if [ $# -gt 0 ]; then
    filter=(--test all "$1" --)
    shift
    filter+=("$@")
fi
if [ "$(id -u)" -eq 0 ]; then
    exec "$cargo" test "${filter[@]}"
fi
# Root of a namespace of our own: its hosts are entered in a /run that only we see.
exec unshare --user --map-root-user --net --mount sh -euc '
    mount -t tmpfs tmpfs /run
    ip link set lo up
    exec "$@"
' sh "$cargo" test --offline "${filter[@]}"
