//! BitTyrant: a strategic client after Piatek, Isdal, Anderson, Krishnamurthy and Venkataramani, NSDI 2007.
//!
//! It keeps two estimates of each peer: what the peer sends when it reciprocates, and what has to be offered for that.
//! Its uplink goes to as many as it can buy, those first that return most for what they cost; offers that are taken are
//! lowered, offers that are not are raised. What is left over is split evenly.
//!
//! The paper's client judges an offer after each round of 10 s and lowers it by a tenth after three. Against peers that
//! rank by what came in the last 20 s that is hasty, and what it loses by it is more than it saves: here an offer stands
//! for 20 s before it is judged, and is lowered later and by less.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Time;
use crate::sim::{Act, Behaviour, Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};
use crate::swarm::{SessionId, SessionReport, Swarm};
use crate::wire::layout::Block;

const ROUND: Duration = Duration::from_secs(10);
/// An offer that is not taken for so long rises by this part ...
const JUDGED_AFTER: Duration = Duration::from_secs(20);
const RAISE: f64 = 0.2;
/// ... and one that is taken falls by this part each round once it was for so many.
const LOWER: f64 = 0.05;
const LOYAL_ROUNDS: u32 = 6;
/// An offer that has not been judged yet is worth so many times what it would be if it were begun anew.
const BEGUN: f64 = 1.5;
/// The first offer beats by so much what a slot of the others carries.
const OUTBID: f64 = 1.2;
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
    /// Since when it is served without being judged.
    since: Time,
    served: bool,
    /// What it is sent while it is served: the offer and its part of what is left over.
    share_bytes_per_s: f64,
    tokens: f64,
    filled: Time,
}

impl Offer {
    /// Learns from the round that ends: whether it was reciprocated, and how much came.
    fn learn(&mut self, now: Time, report: &SessionReport) {
        let rate = (report.received_bytes - self.received_bytes) as f64 / ROUND.as_secs_f64();
        self.received_bytes = report.received_bytes;
        if rate > 0.0 && !report.peer_chokes {
            self.expected_bytes_per_s = rate;
            self.loyal_rounds += u32::from(self.served);
            if self.served && self.loyal_rounds >= LOYAL_ROUNDS {
                self.bytes_per_s *= 1.0 - LOWER;
            }
        } else if self.served && report.we_interested && now.since(self.since) >= JUDGED_AFTER {
            (self.loyal_rounds, self.since) = (0, now);
            self.bytes_per_s *= 1.0 + RAISE;
        }
    }

    fn worth(&self, now: Time) -> f64 {
        let begun = self.share_bytes_per_s > 0.0 && now.since(self.since) < JUDGED_AFTER;
        self.expected_bytes_per_s / self.bytes_per_s * if begun { BEGUN } else { 1.0 }
    }
}

type Offers = Arc<Mutex<BTreeMap<SessionId, Offer>>>;

fn lock(offers: &Offers) -> MutexGuard<'_, BTreeMap<SessionId, Offer>> {
    offers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client that plays by BitTyrant's rules.
pub struct BitTyrant {
    offers: Offers,
    up_bytes_per_s: f64,
    first_offer_bytes_per_s: f64,
    next_round: Time,
}

impl BitTyrant {
    /// For one peer with this uplink, in bytes of payload per second, among peers of which a slot carries so much.
    pub fn conduct(up_bytes_per_s: f64, others_slot_bytes_per_s: f64) -> Conduct {
        // One of each is made for each node that plays like this, and they share the offers.
        let offers = Offers::default();
        let slots = offers.clone();
        let choker = move |_| -> Box<dyn Choking> { Box::new(Slots { offers: slots.clone(), next_look: Time::ZERO }) };
        Conduct::choking(choker).behaving(move |_| {
            Box::new(BitTyrant {
                offers: offers.clone(),
                up_bytes_per_s,
                first_offer_bytes_per_s: OUTBID * others_slot_bytes_per_s,
                next_round: Time::ZERO,
            })
        })
    }

    fn first_offer(&self, now: Time, report: &SessionReport) -> Offer {
        Offer {
            bytes_per_s: self.first_offer_bytes_per_s,
            expected_bytes_per_s: self.first_offer_bytes_per_s,
            received_bytes: report.received_bytes,
            loyal_rounds: 0,
            since: now,
            served: false,
            share_bytes_per_s: 0.0,
            tokens: 0.0,
            filled: now,
        }
    }

    /// Serves those that are worth most, as far as the uplink goes. Who is served stays so until the round ends.
    fn choose(&self, now: Time, reports: &[SessionReport], offers: &mut BTreeMap<SessionId, Offer>) {
        let mut left = self.up_bytes_per_s;
        left -= offers.values().filter(|offer| offer.served).map(|offer| offer.bytes_per_s).sum::<f64>();
        let waits = |report: &&SessionReport| report.peer_interested && report.pieces > 0;
        let candidates = reports.iter().filter(waits).map(|report| report.session);
        let mut best: Vec<(f64, SessionId)> = candidates
            .filter_map(|id| offers.get(&id).filter(|offer| !offer.served).map(|offer| (offer.worth(now), id)))
            .collect();
        best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, id) in best {
            let Some(offer) = offers.get_mut(&id).filter(|offer| offer.bytes_per_s <= left) else { break };
            left -= offer.bytes_per_s;
            offer.served = true;
            if offer.share_bytes_per_s == 0.0 {
                offer.since = now;
            }
        }
        let served = offers.values().filter(|offer| offer.served).count();
        for offer in offers.values_mut() {
            let share = offer.bytes_per_s + left / served.max(1) as f64;
            offer.share_bytes_per_s = if offer.served { share } else { 0.0 };
        }
    }
}

impl Behaviour for BitTyrant {
    fn serves(&mut self, now: Time, session: SessionId) -> bool {
        let mut offers = lock(&self.offers);
        let Some(offer) = offers.get_mut(&session) else { return false };
        let most = offer.share_bytes_per_s * BURST.as_secs_f64();
        let fresh = offer.share_bytes_per_s * now.since(offer.filled).as_secs_f64();
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

    fn act(&mut self, now: Time, swarm: &Swarm, out: &mut Vec<Act>) {
        let reports: Vec<SessionReport> = swarm.reports(now).collect();
        let mut offers = lock(&self.offers);
        offers.retain(|id, _| reports.iter().any(|report| report.session == *id));
        let due = now >= self.next_round;
        if due {
            self.next_round = now + ROUND;
        }
        for report in &reports {
            let offer = offers.entry(report.session).or_insert_with(|| self.first_offer(now, report));
            if due {
                offer.learn(now, report);
            }
            offer.served &= !due && report.peer_interested;
        }
        self.choose(now, &reports, &mut offers);
        out.extend(offers.iter().filter(|(_, offer)| offer.served).map(|(id, _)| Act::Serve(*id)));
    }
}

/// Unchokes whom the tyrant serves.
struct Slots {
    offers: Offers,
    next_look: Time,
}

impl Choking for Slots {
    fn review(&mut self, now: Time, _swarm: &Swarm, views: &[SessionView], out: &mut Vec<Decision>) {
        self.next_look = now + 5 * EVERY;
        let offers = lock(&self.offers);
        for view in views {
            let choke = !offers.get(&view.session).is_some_and(|offer| offer.served);
            if choke == view.unchoked {
                out.push(Decision { session: view.session, choke });
            }
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        Some(self.next_look)
    }
}
