#!/bin/bash
# trackerd against aquatic_udp, in turn, under aquatic's own load test: responses per second, and per second of the
# tracker's processor time. Everything runs in one network namespace, the tracker on one core, the load on another; then
# trackerd is killed and started again, and what it still knows is counted.
#
#   cargo install aquatic_udp && cargo install --locked aquatic_udp_load_test
#   scripts/bench-tracker.sh [PAIRS] [SECONDS]      as root, or in a user namespace of one's own
set -euo pipefail
cd "$(dirname "$0")/.."

pairs=${1:-7}
seconds=${2:-30}
trackerd=$PWD/target/release/trackerd
address=10.77.0.1
folder=$(mktemp -d)
namespace=bench-$$
pid=

for program in aquatic_udp aquatic_udp_load_test ip taskset curl; do
    command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
[ -x "$trackerd" ] || { echo "$trackerd is missing: make bench builds it" >&2; exit 1; }

end_tracker() {
    [ -z "$pid" ] || { kill -9 "$pid" && wait "$pid" || true; } 2>/dev/null
    pid=
}
trap 'end_tracker; ip netns del "$namespace" || true; rm -rf "$folder"' EXIT
ip netns add "$namespace"
ip -n "$namespace" link set lo up
ip -n "$namespace" addr add "$address/24" dev lo

cat >"$folder/aquatic.toml" <<END
socket_workers = 1
[network]
address = "$address:3000"
END
cat >"$folder/load.toml" <<END
server_address = "$address:3000"
workers = 1
duration = $seconds
[network]
multiple_client_ipv4s = false
[requests]
number_of_torrents = 10000
number_of_peers = 200000
weight_connect = 1
weight_announce = 100
weight_scrape = 1
END

inside() {
    ip netns exec "$namespace" "$@"
}

start() {
    local program=(aquatic_udp -c "$folder/aquatic.toml")
    [ "$1" = aquatic ] || program=("$trackerd" --foreground --listen "$address:3000" --state-dir "$folder/state")
    # Not through a function: its process would be a shell's.
    ip netns exec "$namespace" taskset -c 0 "${program[@]}" >"$folder/log" 2>&1 &
    pid=$!
    sleep 1
}

# Seconds of processor time that the tracker has had.
processor_time() {
    cat /proc/"$pid"/task/*/schedstat | awk '{ sum += $1 } END { print sum / 1e9 }'
}

known_peers() {
    inside curl -sf "http://$address:3000/metrics" | awk '$1 == "trackerd_'"$1"'" { print $2 }'
}

echo "tracker responses/s responses/processor-second peers/answer"
for _ in $(seq "$pairs"); do
    for tracker in aquatic trackerd; do
        rm -rf "$folder/state"
        start "$tracker"
        before=$(processor_time)
        inside taskset -c 1 aquatic_udp_load_test -c "$folder/load.toml" >"$folder/report" 2>&1
        after=$(processor_time)
        awk -v tracker="$tracker" -v used="$before $after" -v seconds="$seconds" '
            /# aquatic load test report/ { report = 1 }
            /Average responses per second/ { rate = $NF }
            /Peers per announce response/ { peers = $NF }
            END { split(used, cpu, " "); print tracker, rate, rate * seconds / (cpu[2] - cpu[1]), peers }
        ' "$folder/report"
        [ "$tracker" = trackerd ] || end_tracker
        [ "$tracker" = aquatic ] || { sleep 10; before_kill=$(known_peers peers); end_tracker; }
    done
done
start trackerd
until after_kill=$(known_peers peers); do sleep 0.1; done
echo "after kill -9: $after_kill of $before_kill peers"
