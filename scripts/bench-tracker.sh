#!/bin/bash
# trackerd against aquatic, in turn, under aquatic's own load tests: responses per second, and per second of the tracker's
# processor time. Everything runs in one network namespace, the tracker on one core, the load on another; at the end
# trackerd is killed and started again, and what it still knows is counted.
#
#   cargo install aquatic_udp aquatic_http aquatic_udp_load_test aquatic_http_load_test
#   scripts/bench-tracker.sh udp|http [PAIRS] [SECONDS]      as root, or in a user namespace of one's own
set -euo pipefail
cd "$(dirname "$0")/.."

transport=${1:-udp}
case $transport in
udp) pairs=7 seconds=30 ;;
http) pairs=5 seconds=20 ;;
*) echo "usage: scripts/bench-tracker.sh udp|http [PAIRS] [SECONDS]" >&2; exit 2 ;;
esac
pairs=${2:-$pairs}
seconds=${3:-$seconds}
trackerd=${TRACKERD:-$PWD/target/release/trackerd}
address=10.77.0.1
folder=$(mktemp -d)
namespace=bench-$$
pid=

for program in "aquatic_$transport" "aquatic_${transport}_load_test" ip taskset curl; do
    command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
[ -x "$trackerd" ] || { echo "$trackerd is missing: make bench builds it" >&2; exit 1; }

end_tracker() {
    [ -z "$pid" ] || { kill -9 "$pid" && wait "$pid" || true; } 2>/dev/null
    # The kernel closes what lay in a ring (io_uring) a little after its process has ended.
    [ -z "$pid" ] || sleep 1
    pid=
}
trap 'end_tracker; ip netns del "$namespace" || true; rm -rf "$folder"' EXIT
ip netns add "$namespace"
ip -n "$namespace" link set lo up
ip -n "$namespace" addr add "$address/24" dev lo
# aquatic_http's rings lie in locked memory.
ulimit -l unlimited || echo "locked memory stays limited to $(ulimit -l) KiB" >&2

cat >"$folder/aquatic.toml" <<END
socket_workers = 1
[network]
address = "$address:3000"
END
[ "$transport" = udp ] || echo 'enable_tls = false' >>"$folder/aquatic.toml"
cat >"$folder/load-udp.toml" <<END
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
cat >"$folder/load-http.toml" <<END
server_address = "$address:3000"
num_workers = 1
num_connections = 128
duration = $seconds
keep_alive = true
enable_tls = false
[torrents]
number_of_torrents = 10000
weight_announce = 1
weight_scrape = 0
END

inside() {
    ip netns exec "$namespace" "$@"
}

start() {
    local program=("aquatic_$transport" -c "$folder/aquatic.toml")
    [ "$1" = aquatic ] || program=("$trackerd" --foreground --listen "$address:3000" --state-dir "$folder/state")
    # Not through a function: its process would be a shell's.
    ip netns exec "$namespace" taskset -c 0 "${program[@]}" >"$folder/log" 2>&1 &
    pid=$!
    sleep 1
    [ "$1" = aquatic ] || until inside curl -sfo "$folder/health" "http://$address:3000/health"; do sleep 0.1; done
}

# Seconds of processor time that a process has had, all its threads together, those that have ended left out.
processor_time() {
    cat /proc/"$1"/task/*/schedstat | awk '{ sum += $1 } END { print sum / 1e9 }'
}

known_peers() {
    inside curl -sf "http://$address:3000/metrics" | awk '$1 == "trackerd_'"$1"'" { print $2 }'
}

# The generator's core at more than 95 % is the limit itself: then processor seconds alone count.
echo "tracker responses/s responses/processor-second peers/answer generator-busy-%"
for _ in $(seq "$pairs"); do
    for tracker in aquatic trackerd; do
        rm -rf "$folder/state"
        start "$tracker"
        before=$(processor_time "$pid")
        ip netns exec "$namespace" taskset -c 1 "aquatic_${transport}_load_test" -c "$folder/load-$transport.toml" \
            >"$folder/report" 2>&1 &
        load=$!
        sleep $((seconds / 2))
        busy=$(processor_time "$load")
        sleep $((seconds / 4))
        busy=$(echo "$busy" "$(processor_time "$load")" $((seconds / 4)) | awk '{ print ($2 - $1) / $3 }')
        wait "$load"
        after=$(processor_time "$pid")
        awk -v tracker="$tracker" -v used="$before $after" -v seconds="$seconds" -v busy="$busy" '
            /Test ran for/ { seconds = $4 }
            /Average responses per second/ { rate = $NF }
            /Peers per announce response/ { peers = $NF }
            END {
                split(used, cpu, " ")
                print tracker, rate, rate * seconds / (cpu[2] - cpu[1]), peers ? peers : "-", 100 * busy
            }
        ' "$folder/report"
        [ "$tracker" = trackerd ] || end_tracker
        [ "$tracker" = aquatic ] || { sleep 10; before_kill=$(known_peers peers); end_tracker; }
    done
done
start trackerd
until after_kill=$(known_peers peers); do sleep 0.1; done
echo "after kill -9: $after_kill of $before_kill peers"
