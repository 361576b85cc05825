//! Who is served, who waits, and why: for people.

use std::fmt;

use super::entry::{Entry, Slot};
use super::{Choker, SessionId};

/// Why a session is served, or what it waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It has its turn, among those that take turns; a generous one came before others.
    Turn { generous: bool },
    /// We owe it more than those that wait, or nobody waits.
    Reciprocity,
    /// Drawn by lot.
    Optimistic,
    /// It waits for a slot and is the `place`-th in line, counted from 1.
    InLine { place: usize, generous: bool },
    /// It has what we want and gives nothing for what it took.
    Defaults,
    /// It wants nothing of us.
    WantsNothing,
}

impl Choker {
    /// Of each session: why it is served, or what it waits for.
    pub fn reasons(&self) -> Vec<(SessionId, Why)> {
        let mut rounds: Vec<&Entry> = self.entries.values().filter(|entry| entry.in_rounds && entry.waits()).collect();
        rounds.sort_by_cached_key(|entry| self.turn_order(entry));
        let mut debts: Vec<&Entry> = self.entries.values().filter(|entry| !entry.in_rounds && entry.waits()).collect();
        debts.sort_by_cached_key(|entry| (entry.defaults, self.merit(entry)));
        let served = self.entries.values().filter(|entry| !entry.waits()).map(|entry| (entry, 0));
        let lines = [rounds, debts].into_iter().flat_map(|line| line.into_iter().zip(1..));
        served.chain(lines).map(|(entry, place)| (entry.view.session, self.why(entry, place))).collect()
    }

    fn why(&self, entry: &Entry, place: usize) -> Why {
        let generous = entry.view.account.is_generous();
        match entry.slot {
            _ if !entry.view.interested => Why::WantsNothing,
            Slot::Optimistic => Why::Optimistic,
            Slot::Regular if entry.in_rounds => Why::Turn { generous },
            Slot::Regular => Why::Reciprocity,
            Slot::None if !entry.in_rounds && entry.defaults => Why::Defaults,
            Slot::None => Why::InLine { place, generous },
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Turn { generous: true } => f.write_str("generous: turn"),
            Why::Turn { generous: false } => f.write_str("turn"),
            Why::Reciprocity => f.write_str("reciprocity"),
            Why::Optimistic => f.write_str("optimistic"),
            Why::InLine { place, generous } => {
                let ending = match (place % 10, place % 100) {
                    (_, 11..=13) => "th",
                    (1, _) => "st",
                    (2, _) => "nd",
                    (3, _) => "rd",
                    _ => "th",
                };
                write!(f, "{}{place}{ending} in line", if *generous { "generous: " } else { "" })
            }
            Why::Defaults => f.write_str("takes and does not give"),
            Why::WantsNothing => f.write_str("wants nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spelt_as_people_do() {
        let spelt = |place| Why::InLine { place, generous: place == 3 }.to_string();
        for (place, text) in
            [(1, "1st"), (2, "2nd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")]
        {
            assert_eq!(spelt(place), format!("{text} in line"));
        }
        assert_eq!(spelt(3), "generous: 3rd in line");
    }
}
