//! What the ledger says of an identity, and the credit that follows from it.

/// Below this, what somebody gave earns no credit: aMule's rule, against those who give a little to everybody.
const EARNS_FROM_BYTES: u64 = 1 << 20;
/// Nobody's credit is less, and nobody's more (aMule).
const LEAST_CREDIT: f64 = 1.0;
const MOST_CREDIT: f64 = 10.0;
const MIB: f64 = (1 << 20) as f64;

/// The ledger's account of an identity, over all time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Account {
    /// Verified bytes that it gave us.
    pub given_bytes: u64,
    /// Bytes that we sent it.
    pub taken_bytes: u64,
}

impl Account {
    /// It gave enough for that to count.
    pub fn is_generous(&self) -> bool {
        self.given_bytes >= EARNS_FROM_BYTES
    }

    /// How many times as long as a stranger it may hold a slot: aMule's `min(2 given / taken, sqrt(given_MiB + 2))`,
    /// within 1 and 10. It is spent by taking.
    pub fn credit(&self) -> f64 {
        if !self.is_generous() {
            return LEAST_CREDIT;
        }
        let given = self.given_bytes as f64;
        let ratio = if self.taken_bytes == 0 { MOST_CREDIT } else { 2.0 * given / self.taken_bytes as f64 };
        ratio.min((given / MIB + 2.0).sqrt()).clamp(LEAST_CREDIT, MOST_CREDIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_grows_with_what_was_given_and_is_spent_by_taking() {
        let credit = |given_mib: u64, taken_mib: u64| {
            Account { given_bytes: given_mib << 20, taken_bytes: taken_mib << 20 }.credit()
        };
        assert_eq!(Account { given_bytes: (1 << 20) - 1, taken_bytes: 0 }.credit(), 1.0);
        assert_eq!(credit(0, 0), 1.0);
        assert_eq!(credit(2, 0), 2.0, "two MiB are not yet a fortune");
        assert_eq!(credit(7, 0), 3.0);
        assert_eq!(credit(100_000, 0), 10.0);
        assert_eq!(credit(100_000, 50_000), 4.0);
        assert_eq!(credit(100_000, 400_000), 1.0, "it took more than it gave");
    }
}
