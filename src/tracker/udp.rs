//! Announce and scrape over UDP (BEP 15): a pure [`handle`], and plain threads around it, each with a socket of its own
//! from which it takes what waits at once (`batch`).

mod batch;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use rand::Rng;
use rand::rngs::SmallRng;

use self::batch::{Batch, Family as BatchFamily, Received, V4, V6};
use super::announcer::{Announcer, Asker};
use super::connection_id::{ConnectionIds, seeded_rng};
use super::metrics::{Refused, Served};
use crate::clock::{Clock, Time};
use crate::wire::announce::AnnounceRequest;
use crate::wire::tracker_udp::{
    AnnounceReply, Counts, Family, RequestView, Response, encode_error, encode_scrape_reply,
};

/// IPv6 peers in one reply: with more a datagram would no longer fit an Ethernet frame, and fragments get lost.
const MAX_V6_PEERS: usize = 75;
/// Threads for one socket address: as many cores as a large machine has; each takes some 300 KiB.
const MAX_THREADS: usize = 64;

/// The clocks, read once for each batch.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub time: Time,
    pub unix_seconds: u64,
}

/// Answers one datagram from `from` that came to our address `local`: appends to `reply` and says whether there is an
/// answer. Towards an address that has proved nothing the answer is never longer than what came. Allocates nothing once
/// `reply` has grown.
pub fn handle(
    datagram: &[u8],
    from: SocketAddr,
    local: IpAddr,
    now: Now,
    rng: &mut impl Rng,
    (announcer, ids): (&Announcer, &ConnectionIds),
    reply: &mut Vec<u8>,
) -> bool {
    let asker = Asker { ip: from.ip().to_canonical(), local: local.to_canonical() };
    let proved = |id: u64| ids.proves(id, asker.ip, now.unix_seconds);
    match RequestView::decode(datagram) {
        Ok(RequestView::Announce { connection_id, transaction_id, announce }) if proved(connection_id) => {
            answer_announce(announcer, &announce, transaction_id, asker, now.time, rng, reply);
        }
        Ok(RequestView::Connect { transaction_id }) => {
            announcer.metrics.serve(Served::UdpConnect);
            let connection_id = ids.issue(asker.ip, now.unix_seconds);
            Response::Connect { transaction_id, connection_id }.encode(Family::of(asker.ip), reply);
        }
        Ok(RequestView::Scrape { connection_id, transaction_id, info_hashes }) if proved(connection_id) => {
            announcer.metrics.serve(Served::UdpScrape);
            let entries = info_hashes.map(|key| announcer.swarms.scrape(&key));
            encode_scrape_reply(transaction_id, entries, reply);
        }
        Ok(RequestView::Announce { transaction_id, .. } | RequestView::Scrape { transaction_id, .. }) => {
            announcer.metrics.refuse(Refused::UdpConnectionId);
            encode_error(transaction_id, "connection id expired", reply);
        }
        Err(_) => {
            announcer.metrics.refuse(Refused::UdpMalformed);
            // Without proof anybody could write in another's name and use up their bucket.
            if datagram.first_chunk().is_some_and(|id| proved(u64::from_be_bytes(*id))) {
                announcer.limits.charge(now.time, asker.ip);
            }
            return false;
        }
    }
    true
}

fn answer_announce(
    announcer: &Announcer,
    announce: &AnnounceRequest,
    transaction_id: u32,
    asker: Asker,
    now: Time,
    rng: &mut impl Rng,
    out: &mut Vec<u8>,
) {
    announcer.metrics.serve(Served::UdpAnnounce);
    let family = Family::of(asker.ip);
    let max_peers = if family == Family::V4 { usize::MAX } else { MAX_V6_PEERS };
    let begin = out.len();
    let mut reply = AnnounceReply::begin(transaction_id, family, out);
    match announcer.announce(now, announce, asker, max_peers, rng, |peer| reply.peer(peer)) {
        Ok(announced) => reply.finish(Counts {
            interval_s: announced.interval_s,
            leechers: announced.leechers,
            seeders: announced.seeders,
        }),
        Err(refused) => {
            out.truncate(begin);
            encode_error(transaction_id, refused.message(), out);
        }
    }
}

/// The threads that answer on one address.
pub struct UdpThreads {
    sockets: Vec<Arc<OwnedFd>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl UdpThreads {
    /// One thread for each of `sockets`, all bound to the same address, of IPv4 or not.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(
        sockets: Vec<OwnedFd>,
        of_v4: bool,
        announcer: &Arc<Announcer>,
        ids: &Arc<ConnectionIds>,
        clock: &Arc<dyn Clock>,
    ) -> io::Result<UdpThreads> {
        let mut threads = UdpThreads { sockets: Vec::new(), threads: Vec::new(), stop: Arc::default() };
        for socket in sockets {
            let socket = Arc::new(socket);
            let (own_socket, stop) = (socket.clone(), threads.stop.clone());
            let rng = seeded_rng()?;
            let (announcer, ids, clock) = (announcer.clone(), ids.clone(), clock.clone());
            let serve = move || match of_v4 {
                true => serve::<V4>(&own_socket, &announcer, &ids, &*clock, rng, &stop),
                false => serve::<V6>(&own_socket, &announcer, &ids, &*clock, rng, &stop),
            };
            threads.threads.push(std::thread::Builder::new().name("tracker-udp".into()).spawn(serve)?);
            threads.sockets.push(socket);
        }
        Ok(threads)
    }
}

/// Ends the threads; waits as long as the datagrams in hand take.
impl Drop for UdpThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // It says "not connected" and wakes the reader all the same; if it did not, the receive time-out would.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that answers UDP had panicked");
            }
        }
    }
}

/// Sockets to open for one address: one for each core, within [`MAX_THREADS`].
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS))
}

fn serve<F: BatchFamily>(
    socket: &OwnedFd,
    announcer: &Announcer,
    ids: &ConnectionIds,
    clock: &dyn Clock,
    mut rng: SmallRng,
    stop: &AtomicBool,
) {
    let mut batch = Batch::<F>::new();
    while !stop.load(Ordering::Relaxed) {
        let mut now = None;
        let round = batch.round(socket, |Received { datagram, from, local }, reply| {
            // The end of the socket is told as an empty datagram from nowhere.
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            let now = *now.get_or_insert_with(|| Now { time: clock.now(), unix_seconds: clock.unix_seconds() });
            handle(datagram, from, local, now, &mut rng, (announcer, ids), reply)
        });
        match round {
            Ok(()) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            // An ICMP answer to an earlier reply: that peer is gone, the socket is well.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
            Err(error) => {
                tracing::warn!(%error, "receiving announces by UDP");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::announcer::fixture::{key, request};
    use super::*;
    use crate::wire::announce::Event;
    use crate::wire::tracker_udp::Request;
    use rand::SeedableRng;

    struct Tracker {
        announcer: Announcer,
        ids: ConnectionIds,
        rng: SmallRng,
        now: Now,
    }

    impl Tracker {
        fn new() -> Tracker {
            let now = Now { time: Time::from_secs(1_000), unix_seconds: 1_200 };
            let (announcer, ids) = (Announcer::default(), ConnectionIds::new([9; 16]));
            Tracker { announcer, ids, rng: SmallRng::seed_from_u64(4), now }
        }

        fn send(&mut self, datagram: &[u8], from: &str) -> Option<Vec<u8>> {
            let (from, local) = (from.parse().unwrap(), "192.0.2.1".parse().unwrap());
            let mut reply = Vec::new();
            let shared = (&self.announcer, &self.ids);
            handle(datagram, from, local, self.now, &mut self.rng, shared, &mut reply).then_some(reply)
        }

        fn connect(&mut self, from: &str) -> [u8; 8] {
            let mut hello = hex("00000417 27101980 00000000 01020304");
            hello.truncate(16);
            let reply = self.send(&hello, from).unwrap();
            assert_eq!(reply.len(), 16);
            assert_eq!(reply[..8], hex("00000000 01020304"));
            reply[8..].try_into().unwrap()
        }

        fn announce(&mut self, from: &str, port: u16, left: u64, event: Event) -> Vec<u8> {
            let connection_id = u64::from_be_bytes(self.connect(from));
            let mut datagram = Vec::new();
            let announce = request(port, left, event);
            Request::Announce { connection_id, transaction_id: 0x0A0B_0C0D, announce }.encode(&mut datagram);
            self.send(&datagram, from).unwrap()
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn announces_by_the_bytes() {
        let mut tracker = Tracker::new();
        tracker.announce("10.0.0.1:5000", 0x1AE1, 0, Event::Started);
        let id = tracker.connect("10.0.0.2:5000");
        let datagram = [
            &id[..],
            &hex("00000001 AABBCCDD"),      // action, transaction
            &[1; 20],                       // info_hash
            b"-TR4060-abcdefghijkl",        // peer_id
            &[0; 8],                        // downloaded
            &hex("00000000 00000005"),      // left
            &[0; 8],                        // uploaded
            &hex("00000002"),               // event: started
            &hex("CB007163"),               // an ip that nobody believes
            &hex("00000000 FFFFFFFF 1AE2"), // key, numwant -1, port
            b"\x02\x09/announce",           // BEP 41
        ]
        .concat();
        let reply = tracker.send(&datagram, "10.0.0.2:5000").unwrap();
        assert_eq!(reply[..8], hex("00000001 AABBCCDD"));
        let interval_s = u32::from_be_bytes(reply[8..12].try_into().unwrap());
        assert!((54..=66).contains(&interval_s));
        assert_eq!(reply[12..20], hex("00000001 00000001"), "leechers, seeders");
        assert_eq!(reply[20..], hex("0A000001 1AE1"), "the other peer alone");
    }

    #[test]
    fn ipv6_askers_get_ipv6_peers() {
        let mut tracker = Tracker::new();
        tracker.announce("10.0.0.1:5000", 1, 0, Event::Started);
        tracker.announce("[2001:db8::1]:5000", 0x0102, 0, Event::Started);
        let reply = tracker.announce("[2001:db8::2]:5000", 2, 9, Event::Started);
        assert_eq!(reply[20..], hex("20010DB8 00000000 00000000 00000001 0102"));
        for n in 0..200 {
            tracker.announce(&format!("[2001:db8::5:{n:x}]:5000"), 2, 9, Event::Started);
        }
        assert!(tracker.announce("[2001:db8::2]:5000", 2, 9, Event::None).len() <= 1_400);
    }

    #[test]
    fn scrapes_by_the_bytes() {
        let mut tracker = Tracker::new();
        tracker.announce("10.0.0.1:5000", 1, 0, Event::Started);
        tracker.announce("10.0.0.1:5000", 2, 7, Event::Started);
        tracker.announce("10.0.0.1:5000", 2, 0, Event::Completed);
        tracker.announce("10.0.0.1:5000", 3, 7, Event::Started);
        let id = tracker.connect("10.0.0.1:5000");
        let datagram = [&id[..], &hex("00000002 00000007"), &[1; 20], &[8; 20]].concat();
        let reply = tracker.send(&datagram, "10.0.0.1:5000").unwrap();
        // Seeders, completed, leechers; zeros for what nobody announced.
        assert_eq!(reply, hex("00000002 00000007 00000002 00000001 00000001 00000000 00000000 00000000"));
        let most = [&id[..], &hex("00000002 00000007"), &[1; 20 * 74]].concat();
        assert_eq!(tracker.send(&most, "10.0.0.1:5000").unwrap().len(), 8 + 12 * 74);
    }

    #[test]
    fn without_proof_no_answer_is_longer_than_the_question() {
        let mut tracker = Tracker::new();
        (1..200).for_each(|port| drop(tracker.announce("10.0.0.1:5000", port, 5, Event::Started)));
        let id = tracker.connect("10.0.0.1:5000");
        for connection_id in [0, u64::from_be_bytes(id), u64::MAX] {
            for datagram in [
                Request::Announce { connection_id, transaction_id: 1, announce: request(9, 5, Event::Started) },
                Request::Scrape { connection_id, transaction_id: 1, info_hashes: vec![key(1)] },
            ] {
                let mut bytes = Vec::new();
                datagram.encode(&mut bytes);
                let reply = tracker.send(&bytes, "10.6.6.6:5000").unwrap();
                assert!(reply.len() <= bytes.len());
                assert_eq!(reply[..8], hex("00000003 00000001"));
            }
        }
        assert_eq!(tracker.announcer.swarms.scrape(&key(1)).leechers, 199);
        assert_eq!(tracker.announcer.metrics.refusals(Refused::UdpConnectionId), 6);
    }

    #[test]
    fn an_id_outlives_two_minutes_and_not_four() {
        let mut tracker = Tracker::new();
        let id = tracker.connect("10.0.0.1:5000");
        let scrape = [&id[..], &hex("00000002 00000007"), &[1; 20]].concat();
        tracker.now.unix_seconds += 130;
        assert_eq!(tracker.send(&scrape, "10.0.0.1:5000").unwrap()[3], 2);
        tracker.now.unix_seconds += 120;
        assert_eq!(tracker.send(&scrape, "10.0.0.1:5000").unwrap()[3], 3);
    }

    #[test]
    fn garbage_gets_no_answer_and_costs_the_proven_sender() {
        let mut tracker = Tracker::new();
        let id = tracker.connect("10.0.0.1:5000");
        let mut whole = [&id[..], &hex("00000001 AABBCCDD"), &[1; 82]].concat();
        for length in 0..whole.len() {
            assert_eq!(tracker.send(&whole[..length], "10.0.0.1:5000"), None, "{length}");
        }
        whole[11] = 9;
        assert_eq!(tracker.send(&whole, "10.0.0.1:5000"), None);
        assert_eq!(tracker.announcer.metrics.refusals(Refused::UdpMalformed), 99);
        // The 90 of them that carried the id in full, and the last one.
        let charges = |from: &str| {
            let ip = from.parse().unwrap();
            (0..).take_while(|_| tracker.announcer.limits.charge(tracker.now.time, ip)).count() as u32
        };
        assert_eq!(charges("10.0.0.1"), super::super::limits::BURST - 91);
        // Port 0, proven: refused in words.
        let reply = tracker.announce("10.0.0.7:5000", 0, 5, Event::Started);
        assert_eq!(reply[..8], hex("00000003 0A0B0C0D"));
    }
}
