//! Connections that have not shown a handshake yet. When there is no place for one more, somebody goes who has been silent
//! for long and has many others with him: whoever opens ten thousand keeps out nobody but himself.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Addresses that one party has at will: a /24, a /64.
type Neighbourhood = [u8; 8];

/// The places, and who has them.
pub struct WaitingRoom {
    places: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By age, the oldest first.
    here: BTreeMap<u64, (Neighbourhood, oneshot::Sender<()>)>,
}

/// A place; it is given back when this is dropped.
pub struct Place<'a> {
    room: &'a WaitingRoom,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl WaitingRoom {
    pub fn new(places: usize) -> WaitingRoom {
        WaitingRoom { places, waiting: Mutex::default() }
    }

    /// There is always a place for one more.
    pub fn enter(&self, from: IpAddr) -> Place<'_> {
        let from = neighbourhood(from);
        let mut waiting = self.lock();
        if waiting.here.len() >= self.places {
            waiting.displace_for(from);
        }
        let number = waiting.next;
        waiting.next += 1;
        let (displace, displaced) = oneshot::channel();
        waiting.here.insert(number, (from, displace));
        Place { room: self, number, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The oldest of those goes who have most places, the newcomer's counted; of several such, whoever is oldest.
    fn displace_for(&mut self, newcomer: Neighbourhood) {
        let mut counts: HashMap<Neighbourhood, usize> = HashMap::from([(newcomer, 1)]);
        for (whose, _) in self.here.values() {
            *counts.entry(*whose).or_default() += 1;
        }
        let most = counts.values().max().copied();
        let oldest = self.here.iter().find(|(_, (whose, _))| counts.get(whose).copied() == most);
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.here.remove(&number);
        }
    }
}

impl Place<'_> {
    /// Resolves when somebody else has been given the place.
    pub async fn displaced(&mut self) {
        // The sender goes without a word.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.lock().here.remove(&self.number);
    }
}

fn neighbourhood(ip: IpAddr) -> Neighbourhood {
    let mut first = [0; 8];
    match ip.to_canonical() {
        IpAddr::V4(ip) => first[..3].copy_from_slice(&ip.octets()[..3]),
        // No IPv6 address of a peer begins with a zero byte.
        IpAddr::V6(ip) => first.copy_from_slice(&ip.octets()[..8]),
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_displaced(place: &mut Place<'_>) -> bool {
        !matches!(place.displaced.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn whoever_has_most_places_loses_the_oldest_and_a_place_left_is_free() {
        let room = WaitingRoom::new(4);
        let [a, a2, b] = ["198.18.0.1", "198.18.0.200", "2001:2::1"].map(|ip| ip.parse().unwrap());
        let mut first = room.enter(b);
        let mut flood: Vec<_> = [a, a2, a].into_iter().map(|ip| room.enter(ip)).collect();
        let mut late = room.enter(b);
        assert!(is_displaced(&mut flood[0]), "the oldest of the three");
        for _ in 0..1_000 {
            flood.push(room.enter(a));
        }
        assert!(!is_displaced(&mut first) && !is_displaced(&mut late));
        assert_eq!(flood.iter_mut().filter_map(|place| (!is_displaced(place)).then_some(())).count(), 2);
        assert_eq!(room.lock().here.len(), 4);
        drop((first, late));
        assert_eq!(room.lock().here.len(), 2);
        drop(flood);
        assert_eq!(room.lock().here.len(), 0);
    }
}
