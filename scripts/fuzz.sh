#!/bin/bash
# Runs each decoder under a coverage-guided fuzzer (cargo-fuzz, installed when it is missing), from the corpus in
# tests/fuzz/corpus. What is found lies in fuzz/corpus and, what fails, in fuzz/artifacts: a crasher becomes a named test.
#
#   scripts/fuzz.sh             every target for PEERD_FUZZ_SECONDS (60)
#   scripts/fuzz.sh TARGET...   these
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
seconds=${PEERD_FUZZ_SECONDS:-60}

if ! "$cargo" fuzz --version >/dev/null 2>&1; then
    echo "installing: cargo-fuzz"
    "$cargo" install --locked cargo-fuzz
fi
if [ $# -eq 0 ]; then
    mapfile -t targets < <(cd tests/fuzz/corpus && printf '%s\n' *)
    set -- "${targets[@]}"
fi

failed=()
for target in "$@"; do
    mkdir -p "fuzz/corpus/$target"
    echo "$target: $seconds s"
    # Stable Rust has no sanitizers to add; what is checked stands in the targets.
    log=fuzz/corpus/$target.log
    if "$cargo" fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 >"$log" 2>&1; then
        grep -E '^Done [0-9]+ runs' "$log" || true
    else
        tail -n 40 "$log"
        failed+=("$target")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
