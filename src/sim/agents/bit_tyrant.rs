//! BitTyrant: a strategic client after Piatek, Isdal, Anderson, Krishnamurthy and Venkataramani, NSDI 2007.
//!
//! It keeps two estimates of each peer: what the peer sends when it reciprocates, and what has to be offered for that.
//! Its uplink goes to those that return most for what they cost; offers that are taken are lowered, offers that are not
//! are raised.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Time;
use crate::sim::{Act, Behaviour, Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};
use crate::swarm::{SessionId, Swarm};
use crate::wire::layout::Block;

const ROUND: Duration = Duration::from_secs(5);
/// An offer that is not taken rises by this part each round, one that is taken for [`LOYAL_ROUNDS`] falls by that.
const RAISE: f64 = 0.2;
const LOWER: f64 = 0.1;
const LOYAL_ROUNDS: u32 = 3;
/// Offers are kept to within so much, so that they go out evenly.
const BURST: Duration = Duration::from_millis(500);
const EVERY: Duration = Duration::from_millis(50);

/// What is offered to one peer, and what comes of it.
#[derive(Clone, Copy, Debug)]
struct Offer {
    bytes_per_s: f64,
    expected_bytes_per_s: f64,
    received_bytes: u64,
    loyal_rounds: u32,
    served: bool,
    tokens: f64,
    filled: Time,
}

type Offers = Arc<Mutex<BTreeMap<SessionId, Offer>>>;

/// One client that plays by BitTyrant's rules.
pub struct BitTyrant {
    up_bytes_per_s: f64,
    first_offer_bytes_per_s: f64,
    offers: Offers,
    next_round: Time,
}

/// Its hand on the tap.
struct Tap {
    offers: Offers,
}

impl BitTyrant {
    /// For one peer with this uplink, among peers with such uplinks and so many slots: what one of their slots carries
    /// is its first offer.
    pub fn conduct(up_bits_per_s: u64, others_up_bits_per_s: u64, others_slots: u32) -> Conduct {
        let offers = Offers::default();
        let tap = offers.clone();
        let choker = move |_| -> Box<dyn Choking> {
            Box::new(BitTyrant {
                up_bytes_per_s: up_bits_per_s as f64 / 8.0,
                first_offer_bytes_per_s: others_up_bits_per_s as f64 / 8.0 / f64::from(others_slots),
                offers: offers.clone(),
                next_round: Time::ZERO,
            })
        };
        Conduct::choking(choker).behaving(move |_| Box::new(Tap { offers: tap.clone() }))
    }

    /// Learns from the round that ends: who reciprocated what it was offered, and how much came.
    fn learn(&self, offer: &mut Offer, view: &SessionView) {
        let rate = view.received_bytes.saturating_sub(offer.received_bytes) as f64 / ROUND.as_secs_f64();
        offer.received_bytes = view.received_bytes;
        if rate > 0.0 && !view.denies {
            offer.expected_bytes_per_s = rate;
            offer.loyal_rounds += 1;
            if offer.loyal_rounds >= LOYAL_ROUNDS {
                offer.bytes_per_s *= 1.0 - LOWER;
            }
        } else if offer.served {
            offer.loyal_rounds = 0;
            offer.bytes_per_s *= 1.0 + RAISE;
        }
    }
}

fn lock(offers: &Offers) -> MutexGuard<'_, BTreeMap<SessionId, Offer>> {
    offers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Choking for BitTyrant {
    fn review(&mut self, now: Time, views: &[SessionView], out: &mut Vec<Decision>) {
        let mut offers = lock(&self.offers);
        offers.retain(|id, _| views.iter().any(|view| view.session == *id));
        let due = now >= self.next_round;
        for view in views {
            let offer = offers.entry(view.session).or_insert(Offer {
                bytes_per_s: self.first_offer_bytes_per_s,
                expected_bytes_per_s: self.first_offer_bytes_per_s,
                received_bytes: view.received_bytes,
                loyal_rounds: 0,
                served: false,
                tokens: 0.0,
                filled: now,
            });
            if due {
                self.learn(offer, view);
            }
        }
        if due {
            self.next_round = now + ROUND;
        }
        let worth = |offer: &Offer| offer.expected_bytes_per_s / offer.bytes_per_s;
        let mut best: Vec<(f64, SessionId)> = views
            .iter()
            .filter(|view| view.interested)
            .filter_map(|view| offers.get(&view.session).map(|offer| (worth(offer), view.session)))
            .collect();
        best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut left = self.up_bytes_per_s;
        offers.values_mut().for_each(|offer| offer.served = false);
        for (_, id) in best {
            let Some(offer) = offers.get_mut(&id) else { continue };
            left -= offer.bytes_per_s;
            offer.served = left >= 0.0;
        }
        for view in views {
            let choke = !offers.get(&view.session).is_some_and(|offer| offer.served);
            if choke == view.unchoked {
                out.push(Decision { session: view.session, choke });
            }
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        Some(self.next_round)
    }
}

impl Behaviour for Tap {
    fn serves(&mut self, now: Time, session: SessionId) -> bool {
        let mut offers = lock(&self.offers);
        let Some(offer) = offers.get_mut(&session) else { return false };
        let most = offer.bytes_per_s * BURST.as_secs_f64();
        let fresh = offer.bytes_per_s * now.since(offer.filled).as_secs_f64();
        (offer.tokens, offer.filled) = ((offer.tokens + fresh).min(most), now);
        offer.tokens > 0.0
    }

    /// Nothing is spoilt; but here a block is known to go.
    fn spoils(&mut self, session: SessionId, block: Block) -> bool {
        if let Some(offer) = lock(&self.offers).get_mut(&session) {
            offer.tokens -= f64::from(block.len());
        }
        false
    }

    fn acts_every(&self) -> Option<Duration> {
        Some(EVERY)
    }

    fn act(&mut self, _now: Time, _swarm: &Swarm, out: &mut Vec<Act>) {
        out.extend(lock(&self.offers).iter().filter(|(_, offer)| offer.served).map(|(id, _)| Act::Serve(*id)));
    }
}
