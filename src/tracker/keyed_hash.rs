//! The hash of tables whose keys strangers choose: info-hashes and addresses.
//!
//! Multilinear hashing: each 32-bit word of the key times a secret 64-bit number, summed. Whoever chooses keys without
//! knowing the numbers makes two of them collide in the upper 32 bits once in 2^32 (Lemire and Kaser, *Strongly universal
//! string hashing is fast*, 2014), and a short key costs a few nanoseconds.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// The longest key is an address and an info-hash: 12 words with the lengths that std writes before arrays. The last
/// number is for the end.
const MAX_WORDS: usize = 16;

/// Drawn from the system once for the process; the tables' content never depends on it.
static NUMBERS: LazyLock<[u64; MAX_WORDS]> =
    LazyLock::new(|| std::array::from_fn(|place| RandomState::new().hash_one(place)));

/// For `HashMap` and `HashSet`. Keys have fewer than [`MAX_WORDS`] words.
#[derive(Clone, Copy, Default, Debug)]
pub struct BuildKeyedHasher;

impl BuildHasher for BuildKeyedHasher {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { numbers: &NUMBERS, place: 0, sum: 0 }
    }
}

pub struct KeyedHasher {
    numbers: &'static [u64; MAX_WORDS],
    place: usize,
    sum: u64,
}

impl KeyedHasher {
    fn add(&mut self, word: u32) {
        debug_assert!(self.place < MAX_WORDS - 1, "a key of {MAX_WORDS} words or more");
        let number = self.numbers[self.place % MAX_WORDS];
        self.sum = self.sum.wrapping_add(number.wrapping_mul(u64::from(word) + 1));
        self.place += 1;
    }
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        words.iter().for_each(|word| self.add(u32::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            self.add(u32::from_le_bytes(word));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.add(u32::from(number));
    }

    /// Lengths and discriminants: small numbers.
    fn write_usize(&mut self, number: usize) {
        self.add(number as u32);
    }

    /// The sum's upper half is the good one, and tables use both ends of a hash: folded by one more multiplication.
    fn finish(&self) -> u64 {
        let wide = u128::from(self.sum) * u128::from(self.numbers[MAX_WORDS - 1] | 1);
        (wide as u64) ^ ((wide >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hash;
    use std::net::{IpAddr, Ipv4Addr};

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use crate::wire::id::InfoHash;

    fn hash(key: impl Hash) -> u64 {
        BuildKeyedHasher.hash_one(key)
    }

    #[test]
    fn every_byte_of_a_key_counts() {
        let key = [0; 20];
        for place in 0..20 {
            let mut other = key;
            other[place] = 1;
            assert_ne!(hash(InfoHash::new(key)), hash(InfoHash::new(other)), "{place}");
        }
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_ne!(hash((ip, InfoHash::new(key))), hash((IpAddr::from([127, 0, 0, 2]), InfoHash::new(key))));
        assert_ne!(hash((ip, 1_u16)), hash((ip, 2_u16)));
    }

    /// Keys that differ in a few bits alone, as addresses of one network and ports do.
    #[test]
    fn neighbours_spread() {
        const BUCKETS: usize = 1_024;
        let mut rng = SmallRng::seed_from_u64(11);
        let numbers: &'static [u64; MAX_WORDS] = Box::leak(Box::new(std::array::from_fn(|_| rng.random())));
        for shift in [0, 8, 16] {
            let (mut low, mut high) = ([0_u32; BUCKETS], [0_u32; 128]);
            for n in 0..65_536_u32 {
                let mut hasher = KeyedHasher { numbers, place: 0, sum: 0 };
                Ipv4Addr::from_bits(n << shift).hash(&mut hasher);
                let hash = hasher.finish();
                low[hash as usize % BUCKETS] += 1;
                high[(hash >> 57) as usize] += 1;
            }
            // 64 and 512 are due.
            assert!(low.iter().all(|count| *count < 128), "{:?}", low.iter().max());
            assert!(high.iter().all(|count| *count < 1_024), "{:?}", high.iter().max());
        }
    }
}
