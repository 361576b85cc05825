//! How fast bytes go, over all sessions, each way. Who gets which part is [`crate::swarm::limiter`]'s; here sessions
//! are held back and let go.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use tokio::sync::Notify;

use super::core::Core;
use super::torrent::SessionHandle;
use crate::clock::{Clock, Time};
use crate::swarm::SessionId;
use crate::swarm::limiter::{Grant, Limiter, SHARE_OUT_EVERY};
use crate::wire::id::InfoHash;
use crate::wire::rate::Rate;

/// A packet carries so many bytes beside its payload (Ethernet, IP, TCP with timestamps) ...
const HEADER_BYTES: u32 = 66;
/// ... which is at most this on a cable, and on a virtual one up to 64 KiB: 4.6 or 0.1 per cent. A limit counts what lies
/// in the middle, and so holds within 3 per cent on either.
const PACKET_BYTES: u32 = 1_448;

/// Both directions.
pub struct Limits {
    pub up: Arc<Direction>,
    pub down: Arc<Direction>,
    /// Peers of the subnets that we are in are not held back.
    lan_exempt: bool,
}

/// One direction's limit and who waits for its part.
pub struct Direction {
    /// [`Rate::bytes_per_s`], looked at by every read and write: a limit that is off costs nothing.
    bytes_per_s: AtomicU64,
    /// How often that was changed: what was granted or owed before is forgotten.
    changes: AtomicU32,
    state: Mutex<State>,
    /// Somebody has begun to wait.
    some: Notify,
}

struct State {
    limiter: Limiter,
    waiting: HashMap<SessionId, Arc<Waiter>>,
}

impl State {
    fn wait(&mut self, waiter: Arc<Waiter>) {
        self.limiter.ask(waiter.torrent, waiter.handle.id);
        self.waiting.insert(waiter.handle.id, waiter);
    }
}

struct Waiter {
    torrent: InfoHash,
    handle: Arc<SessionHandle>,
    /// Of what was granted; less than nothing when more came.
    left_bytes: AtomicI64,
    /// [`Direction::changes`] that it has heard of.
    changes: AtomicU32,
}

/// One session's dealings with one direction. What it has left when it is dropped is others'.
pub struct Meter {
    /// `None` for a peer that is exempt.
    limited: Option<(Arc<Direction>, Arc<Waiter>)>,
    way: Way,
}

impl Limits {
    pub fn new(now: Time, up: Rate, down: Rate, lan_exempt: bool) -> Limits {
        let direction = |rate| Arc::new(Direction::new(now, rate));
        Limits { up: direction(up), down: direction(down), lan_exempt }
    }

    /// For a session that begins: its uploads' and its downloads' meter.
    pub fn meters(&self, torrent: InfoHash, handle: &Arc<SessionHandle>) -> (Meter, Meter) {
        let exempt = self.lan_exempt && is_in_our_subnets(handle.addr.ip());
        let meter = |direction: &Arc<Direction>, way| Meter {
            way,
            limited: (!exempt).then(|| {
                let changes = AtomicU32::new(direction.changes.load(Ordering::Acquire));
                let left_bytes = AtomicI64::new(0);
                (direction.clone(), Arc::new(Waiter { torrent, handle: handle.clone(), left_bytes, changes }))
            }),
        };
        (meter(&self.up, Way::Up), meter(&self.down, Way::Down))
    }
}

impl Direction {
    fn new(now: Time, rate: Rate) -> Direction {
        Direction {
            bytes_per_s: AtomicU64::new(rate.bytes_per_s()),
            changes: AtomicU32::new(0),
            state: Mutex::new(State { limiter: Limiter::new(now, rate), waiting: HashMap::new() }),
            some: Notify::new(),
        }
    }

    pub fn rate(&self) -> Rate {
        Rate::from_bytes_per_s(self.bytes_per_s.load(Ordering::Acquire))
    }

    pub fn set_rate(&self, now: Time, rate: Rate) {
        self.lock().limiter.set_rate(now, rate);
        self.bytes_per_s.store(rate.bytes_per_s(), Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn share_out(&self, now: Time) {
        let mut grants: Vec<Grant> = Vec::new();
        let mut state = self.lock();
        state.limiter.share_out(now, &mut grants);
        let unlimited = state.limiter.rate().is_unlimited();
        for grant in grants {
            let Some(waiter) = state.waiting.remove(&grant.session) else { continue };
            if !unlimited {
                waiter.hear(self);
                let bytes = i64::from(grant.bytes);
                let left = waiter.left_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
                if left <= 0 {
                    // Still in debt: nothing to wake up for.
                    state.wait(waiter);
                    continue;
                }
            }
            waiter.handle.wake.notify_one();
        }
    }

    fn wait(&self, waiter: &Arc<Waiter>) {
        self.lock().wait(waiter.clone());
        self.some.notify_one();
    }

    async fn run(&self, clock: &dyn Clock) {
        loop {
            // Asked under the lock, told after it: whoever begins to wait from now on is heard.
            let some = self.some.notified();
            if !self.lock().limiter.is_waited_for() {
                some.await;
            }
            tokio::time::sleep(SHARE_OUT_EVERY).await;
            self.share_out(clock.now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy)]
enum Way {
    /// What is sent at once goes in one packet, or in as few as a cable takes.
    Up,
    /// What is read at once says nothing of the packets in which it came: they were full ones.
    Down,
}

impl Way {
    /// Bytes of headers that so many bytes of payload, moved at once, are taken to have.
    fn headers(self, payload_bytes: u32) -> u32 {
        match self {
            Way::Up => HEADER_BYTES / 2 * (1 + payload_bytes.div_ceil(PACKET_BYTES)),
            Way::Down => payload_bytes / (2 * PACKET_BYTES / HEADER_BYTES + 1),
        }
    }

    /// How many of `wanted_bytes` may move when so much is left.
    ///
    /// To be sent: what, with its headers, uses it up. To be read: all that is there, as long as anything is left; what
    /// came beyond it is waited for afterwards. It has passed the link anyway, and a socket that is never read empty
    /// stalls: Linux joins what waits to what follows, and gives back none of the receive buffer before the end of all.
    fn allowed(self, left_bytes: i64, wanted_bytes: usize) -> usize {
        match self {
            Way::Down if left_bytes > 0 => wanted_bytes,
            Way::Down => 0,
            Way::Up => {
                let left_bytes = left_bytes.saturating_sub(i64::from(HEADER_BYTES / 2)).clamp(0, i64::from(u32::MAX));
                let payload = left_bytes * i64::from(PACKET_BYTES) / i64::from(PACKET_BYTES + HEADER_BYTES / 2);
                wanted_bytes.min(payload as usize)
            }
        }
    }
}

impl Meter {
    /// What it holds this session back to, together with all others.
    pub fn limit(&self) -> Rate {
        self.limited.as_ref().map_or(Rate::UNLIMITED, |(direction, _)| direction.rate())
    }

    /// How many of `wanted_bytes` may move now. If none, the session is woken when that changes.
    pub fn allowed(&self, wanted_bytes: usize) -> usize {
        let Some((direction, waiter)) = &self.limited else { return wanted_bytes };
        if direction.rate().is_unlimited() {
            return wanted_bytes;
        }
        waiter.hear(direction);
        let allowed = self.way.allowed(waiter.left_bytes.load(Ordering::Acquire), wanted_bytes);
        if allowed == 0 {
            direction.wait(waiter);
        }
        allowed
    }

    pub fn moved(&self, bytes: usize) {
        if let Some((direction, waiter)) = &self.limited
            && !direction.rate().is_unlimited()
        {
            waiter.hear(direction);
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            let used = i64::from(bytes) + i64::from(self.way.headers(bytes));
            let left = waiter.left_bytes.fetch_sub(used, Ordering::AcqRel) - used;
            if left < 0 && matches!(self.way, Way::Down) {
                // It is paid off from now on, whether more comes or not.
                direction.wait(waiter);
            }
        }
    }
}

impl Waiter {
    fn hear(&self, direction: &Direction) {
        let changes = direction.changes.load(Ordering::Acquire);
        if self.changes.swap(changes, Ordering::AcqRel) != changes {
            self.left_bytes.store(0, Ordering::Release);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some((direction, waiter)) = &self.limited {
            let mut state = direction.lock();
            state.waiting.remove(&waiter.handle.id);
            state.limiter.leave(waiter.handle.id, waiter.left_bytes.swap(0, Ordering::AcqRel));
        }
    }
}

/// Shares out until the daemon stops.
pub async fn run(core: Arc<Core>) {
    let clock = core.clock.as_ref();
    tokio::join!(core.limits.up.run(clock), core.limits.down.run(clock));
}

/// Whether an address lies in the subnet of one of our interfaces.
fn is_in_our_subnets(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let Ok(interfaces) = getifaddrs() else { return false };
    interfaces.into_iter().any(|interface| {
        let address = interface.address.as_ref().and_then(ip_of);
        let mask = interface.netmask.as_ref().and_then(ip_of);
        matches!((address, mask), (Some(address), Some(mask)) if shares_subnet(ip, address, mask))
    })
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn shares_subnet(ip: IpAddr, address: IpAddr, mask: IpAddr) -> bool {
    match (ip, address, mask) {
        (IpAddr::V4(ip), IpAddr::V4(address), IpAddr::V4(mask)) => ip & mask == address & mask,
        (IpAddr::V6(ip), IpAddr::V6(address), IpAddr::V6(mask)) => ip & mask == address & mask,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::id::PeerId;

    #[test]
    fn what_is_sent_counts_the_headers_of_one_packet_or_half_of_a_cables() {
        assert_eq!([1, 1_448, 14_480].map(|bytes| Way::Up.headers(bytes)), [66, 66, 33 * 11]);
        assert_eq!(Way::Down.headers(1_448), 32);
        for granted in [100, 1_448, 1_750, 2_621, 65_536, 700_000] {
            let payload = Way::Up.allowed(i64::from(granted), usize::MAX) as u32;
            let used = payload + Way::Up.headers(payload);
            assert!(used.abs_diff(granted) <= 1 + HEADER_BYTES / 2 + granted / 5_000, "{granted}: {used}");
        }
        assert_eq!([-1, 0, 20].map(|left| Way::Up.allowed(left, 9)), [0; 3]);
    }

    #[test]
    fn what_came_is_read_whole_while_anything_is_left() {
        assert_eq!([-1, 0, 1, 99].map(|left| Way::Down.allowed(left, 16_384)), [0, 0, 16_384, 16_384]);
    }

    /// Sessions of one torrent and what bounds them.
    fn readers<const N: usize>(limits: &Limits) -> [Meter; N] {
        std::array::from_fn(|n| {
            let (id, addr) = (SessionId(n as u32), "10.0.0.9:6881".parse().unwrap());
            let handle = Arc::new(SessionHandle::new(id, addr, PeerId([n as u8; 20]), true, Time::ZERO));
            limits.meters(InfoHash::new([7; 20]), &handle).1
        })
    }

    /// What each has read after so many share-outs; all of it comes in blocks, read whole.
    fn read<const N: usize>(
        limits: &Limits,
        meters: &[Meter; N],
        ticks: std::ops::Range<u32>,
        reads: [bool; N],
    ) -> [u64; N] {
        let mut moved = [0; N];
        for tick in ticks {
            limits.down.share_out(Time::ZERO + SHARE_OUT_EVERY * tick);
            for ((meter, moved), _) in meters.iter().zip(&mut moved).zip(reads).filter(|(_, reads)| *reads) {
                let bytes = meter.allowed(16_397);
                meter.moved(bytes);
                *moved += bytes as u64;
            }
        }
        moved
    }

    fn down(rate: &str) -> Limits {
        Limits::new(Time::ZERO, Rate::UNLIMITED, rate.parse().unwrap(), false)
    }

    #[test]
    fn reads_beyond_a_grant_are_waited_for_and_all_have_the_same() {
        let limits = down("128K");
        let meters = readers::<3>(&limits);
        // 10 s.
        let moved = read(&limits, &meters, 0..500, [true; 3]);
        let (all, limit) = (moved.iter().sum::<u64>() as f64, 10.0 * 131_072.0 / 1.0228);
        assert!((all - limit).abs() < 3.0 * 16_397.0, "{moved:?}");
        assert!(moved.iter().all(|moved| (*moved as f64 - all / 3.0).abs() < 2.0 * 16_397.0), "{moved:?}");
    }

    #[test]
    fn a_debt_is_paid_off_in_silence_and_forgotten_with_the_limit() {
        let limits = down("64K");
        let meters = readers::<2>(&limits);
        read(&limits, &meters, 0..5, [true; 2]);
        let [first, _] = &meters;
        first.moved(65_536);
        assert_eq!(first.allowed(9), 0);
        read(&limits, &meters, 5..110, [false; 2]);
        assert_eq!(first.allowed(9), 9, "2 s later");

        first.moved(1 << 30);
        limits.down.set_rate(Time::from_secs(3), Rate::UNLIMITED);
        first.moved(1 << 30);
        limits.down.set_rate(Time::from_secs(4), "64K".parse().unwrap());
        assert_eq!(first.allowed(9), 0, "nothing is granted yet");
        limits.down.share_out(Time::from_secs(5));
        assert_eq!(first.allowed(9), 9);

        first.moved(1 << 30);
        limits.down.set_rate(Time::from_secs(6), "32K".parse().unwrap());
        limits.down.share_out(Time::from_secs(7));
        assert_eq!(first.allowed(9), 9, "also of who waits meanwhile");
    }

    #[test]
    fn a_subnet_is_what_the_mask_says() {
        for (ip, address, mask, expected) in [
            ("10.0.1.9", "10.0.1.1", "255.255.255.0", true),
            ("10.0.2.9", "10.0.1.1", "255.255.255.0", false),
            ("10.0.2.9", "10.0.1.1", "255.255.0.0", true),
            ("fd00::9", "fd00::1", "ffff:ffff:ffff:ffff::", true),
            ("fd00:1::9", "fd00::1", "ffff:ffff:ffff:ffff::", false),
            ("fd00::9", "10.0.1.1", "255.0.0.0", false),
        ] {
            let [ip, address, mask] = [ip, address, mask].map(|text| text.parse().unwrap());
            assert_eq!(shares_subnet(ip, address, mask), expected, "{ip} {address} {mask}");
        }
    }
}
