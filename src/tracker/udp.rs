//! Announce and scrape over UDP (BEP 15): a pure [`handle`], and plain threads around it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, recvmsg, sendmsg, shutdown,
};
use rand::Rng;
use rand::rngs::SmallRng;

use super::announcer::{Announcer, Asker};
use super::connection_id::{ConnectionIds, seeded_rng};
use super::metrics::{Refused, Served};
use crate::clock::{Clock, Time};
use crate::wire::announce::{AnnounceRequest, MAX_SCRAPE_HASHES, ScrapeEntry};
use crate::wire::tracker_udp::{Counts, Family, MAX_DATAGRAM_BYTES, Request, Response, encode_announce_reply};

/// IPv6 peers in one reply: with more a datagram would no longer fit an Ethernet frame, and fragments get lost.
const MAX_V6_PEERS: usize = 75;
/// Threads for one socket address: more only help on machines that have little else to do.
const MAX_THREADS: usize = 8;

/// The clocks, read once for each datagram.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub time: Time,
    pub unix_seconds: u64,
}

/// What one thread uses again for every datagram: nothing is allocated on the way.
#[derive(Default)]
pub struct Scratch {
    peers: Vec<SocketAddr>,
    reply: Vec<u8>,
}

/// Answers one datagram from `from` that came to our address `local`; `None` when it gets no answer. Towards an address
/// that has proved nothing the answer is never longer than what came.
pub fn handle<'s>(
    datagram: &[u8],
    from: SocketAddr,
    local: IpAddr,
    now: Now,
    rng: &mut impl Rng,
    (announcer, ids): (&Announcer, &ConnectionIds),
    scratch: &'s mut Scratch,
) -> Option<&'s [u8]> {
    let asker = Asker { ip: from.ip().to_canonical(), local: local.to_canonical() };
    scratch.reply.clear();
    let proved = |id: u64| ids.proves(id, asker.ip, now.unix_seconds);
    match Request::decode(datagram) {
        Ok(Request::Connect { transaction_id }) => {
            announcer.metrics.serve(Served::UdpConnect);
            let connection_id = ids.issue(asker.ip, now.unix_seconds);
            let reply = Response::Connect { transaction_id, connection_id };
            reply.encode(Family::of(asker.ip), &mut scratch.reply);
        }
        Ok(Request::Announce { connection_id, transaction_id, announce }) if proved(connection_id) => {
            answer_announce(announcer, &announce, transaction_id, asker, now.time, rng, scratch);
        }
        Ok(Request::Scrape { connection_id, transaction_id, info_hashes }) if proved(connection_id) => {
            announcer.metrics.serve(Served::UdpScrape);
            let entries: Vec<ScrapeEntry> =
                info_hashes.iter().take(MAX_SCRAPE_HASHES).map(|key| announcer.swarms.scrape(key)).collect();
            Response::Scrape { transaction_id, entries }.encode(Family::of(asker.ip), &mut scratch.reply);
        }
        Ok(Request::Announce { transaction_id, .. } | Request::Scrape { transaction_id, .. }) => {
            announcer.metrics.refuse(Refused::UdpConnectionId);
            let message = "connection id expired".to_owned();
            Response::Error { transaction_id, message }.encode(Family::of(asker.ip), &mut scratch.reply);
        }
        Err(_) => {
            announcer.metrics.refuse(Refused::UdpMalformed);
            // Without proof anybody could write in another's name and use up their bucket.
            if datagram.first_chunk().is_some_and(|id| proved(u64::from_be_bytes(*id))) {
                announcer.limits.charge(now.time, asker.ip);
            }
            return None;
        }
    }
    Some(&scratch.reply)
}

fn answer_announce(
    announcer: &Announcer,
    announce: &AnnounceRequest,
    transaction_id: u32,
    asker: Asker,
    now: Time,
    rng: &mut impl Rng,
    scratch: &mut Scratch,
) {
    announcer.metrics.serve(Served::UdpAnnounce);
    let family = Family::of(asker.ip);
    let max_peers = if family == Family::V4 { usize::MAX } else { MAX_V6_PEERS };
    match announcer.announce(now, announce, asker, max_peers, rng, &mut scratch.peers) {
        Ok(announced) => {
            let counts =
                Counts { interval_s: announced.interval_s, leechers: announced.leechers, seeders: announced.seeders };
            encode_announce_reply(transaction_id, counts, family, scratch.peers.iter().copied(), &mut scratch.reply);
        }
        Err(refused) => {
            Response::Error { transaction_id, message: refused.to_string() }.encode(family, &mut scratch.reply);
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
    /// One thread for each of `sockets`, all bound to the same address.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(
        sockets: Vec<OwnedFd>,
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
            let serve = move || serve(&own_socket, &announcer, &ids, &*clock, rng, &stop);
            threads.threads.push(std::thread::Builder::new().name("tracker-udp".into()).spawn(serve)?);
            threads.sockets.push(socket);
        }
        Ok(threads)
    }
}

/// Ends the threads; waits as long as the datagram in hand takes.
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

fn serve(
    socket: &OwnedFd,
    announcer: &Announcer,
    ids: &ConnectionIds,
    clock: &dyn Clock,
    mut rng: SmallRng,
    stop: &AtomicBool,
) {
    let mut scratch = Scratch::default();
    let mut buffer = [0; MAX_DATAGRAM_BYTES];
    let mut control = cmsg_space!(libc::in6_pktinfo);
    while !stop.load(Ordering::Relaxed) {
        let (bytes, from, local) = match receive(socket, &mut buffer, &mut control) {
            Ok(Some(received)) => received,
            Ok(None) | Err(Errno::EINTR | Errno::EAGAIN) => continue,
            // An ICMP answer to an earlier reply: that peer is gone, the socket is well.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => continue,
            Err(error) => {
                tracing::warn!(%error, "receiving announces by UDP");
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        let now = Now { time: clock.now(), unix_seconds: clock.unix_seconds() };
        let reply = handle(&buffer[..bytes], from, local, now, &mut rng, (announcer, ids), &mut scratch);
        if let Some(reply) = reply {
            // What cannot be sent is lost, as any datagram may be: the client asks again.
            let _ = send(socket, reply, from, local);
        }
    }
}

/// One datagram: its length, who sent it, and to which of our addresses. `None` if that cannot be told.
fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
    control: &mut [u8],
) -> Result<Option<(usize, SocketAddr, IpAddr)>, Errno> {
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(control), MsgFlags::empty())?;
    let from = message.address.as_ref().and_then(socket_addr);
    let mut local = None;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr))));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
            }
            _ => {}
        }
    }
    Ok(from.zip(local).map(|(from, local)| (message.bytes, from, local)))
}

/// From the address that was asked: a client drops answers from another.
fn send(socket: &OwnedFd, reply: &[u8], to: SocketAddr, from: IpAddr) -> Result<usize, Errno> {
    let slices = [IoSlice::new(reply)];
    let to = SockaddrStorage::from(to);
    match from {
        IpAddr::V4(from) => {
            let source = libc::in_addr { s_addr: from.to_bits().to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
            sendmsg(socket.as_raw_fd(), &slices, &[ControlMessage::Ipv4PacketInfo(&info)], MsgFlags::empty(), Some(&to))
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            sendmsg(socket.as_raw_fd(), &slices, &[ControlMessage::Ipv6PacketInfo(&info)], MsgFlags::empty(), Some(&to))
        }
    }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        nix::sys::socket::AddressFamily::Inet => {
            address.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())))
        }
        nix::sys::socket::AddressFamily::Inet6 => address.as_sockaddr_in6().map(|address| {
            SocketAddr::V6(std::net::SocketAddrV6::new(address.ip(), address.port(), 0, address.scope_id()))
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::announcer::fixture::{key, request};
    use super::*;
    use crate::wire::announce::Event;
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
            let mut scratch = Scratch::default();
            let shared = (&self.announcer, &self.ids);
            handle(datagram, from, local, self.now, &mut self.rng, shared, &mut scratch).map(<[u8]>::to_vec)
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
