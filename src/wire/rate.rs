//! A rate as people write it: `500K`, `2M`, `1G`, bytes per second, powers of 1024; `0` is none.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Bytes per second, or no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    bytes_per_s: u64,
}

/// What was given is no rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is no rate: give bytes per second, as in 500K, 2M or 1G; 0 is no limit")]
pub struct RateError(String);

impl Rate {
    pub const UNLIMITED: Rate = Rate { bytes_per_s: 0 };

    /// Zero is no limit.
    pub const fn from_bytes_per_s(bytes_per_s: u64) -> Rate {
        Rate { bytes_per_s }
    }

    /// Zero where there is no limit.
    pub const fn bytes_per_s(self) -> u64 {
        self.bytes_per_s
    }

    pub const fn is_unlimited(self) -> bool {
        self.bytes_per_s == 0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Rate, RateError> {
        let wrong = || RateError(text.to_owned());
        let (digits, shift) = match text.char_indices().next_back() {
            Some((at, 'k' | 'K')) => (&text[..at], 10),
            Some((at, 'm' | 'M')) => (&text[..at], 20),
            Some((at, 'g' | 'G')) => (&text[..at], 30),
            _ => (text, 0),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes_per_s = number.checked_mul(1 << shift).ok_or_else(wrong)?;
        Ok(Rate { bytes_per_s })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        let exact = |shift: u32| self.bytes_per_s > 0 && self.bytes_per_s.trailing_zeros() >= shift;
        match units.into_iter().find(|&(shift, _)| exact(shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.bytes_per_s >> shift),
            None => write!(f, "{}", self.bytes_per_s),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Rate, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_powers_of_1024_and_nothing_else_is_taken() {
        for (text, expected) in
            [("0", 0), ("500K", 512_000), ("2M", 2 << 20), ("1g", 1 << 30), ("1000", 1_000), ("0K", 0)]
        {
            assert_eq!(text.parse::<Rate>().unwrap().bytes_per_s(), expected, "{text}");
        }
        for text in ["", "K", "-1", "+1", "1.5M", "2T", "1 M", "MM", "99999999999G", "é"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        for bytes in [0, 1, 1_023, 1_024, 1_025, 1 << 20, 3 << 19, 5 << 30] {
            let rate = Rate::from_bytes_per_s(bytes);
            assert_eq!(rate.to_string().parse(), Ok(rate), "{bytes}");
        }
    }
}
