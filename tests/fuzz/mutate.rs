//! Inputs near the corpus: seeded, so that a run repeats itself.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// An input grows no longer: what depends on length alone has tests of its own.
const MAX_INPUT_BYTES: usize = 16 << 10;
/// One input in so many is grown to [`MAX_INPUT_BYTES`]: these take most of the time.
const GROWN: u32 = 256;
/// The most changes to one input.
const MAX_CHANGES: u32 = 6;

/// Numbers next to which decoders go wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    255,
    256,
    65_535,
    65_536,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x1_0000_0000,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX - 1,
    u64::MAX,
];

pub struct Mutator<'a> {
    rng: SmallRng,
    corpus: &'a [Vec<u8>],
    /// What the decoder knows: keys, separators, ends.
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    pub fn new(seed: u64, corpus: &'a [Vec<u8>], words: &'a [&'a str]) -> Mutator<'a> {
        assert!(!corpus.is_empty() && !words.is_empty());
        Mutator { rng: SmallRng::seed_from_u64(seed), corpus, words }
    }

    /// The next input: one of the corpus with some changes.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.other().to_vec();
        if self.rng.random_ratio(1, GROWN) {
            self.grow(&mut input);
        }
        for _ in 0..self.rng.random_range(1..=MAX_CHANGES) {
            self.change(&mut input);
        }
        input.truncate(MAX_INPUT_BYTES);
        input
    }

    fn other(&mut self) -> &'a [u8] {
        &self.corpus[self.rng.random_range(0..self.corpus.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.random_range(0..=input.len());
        let span = self.span(input.len());
        match self.rng.random_range(0..13) {
            0 => self.with_byte(input, at, |byte, random| byte ^ (1 << (random % 8))),
            1 => self.with_byte(input, at, |_, random| random),
            2 => self.with_byte(input, at, |byte, random| byte.wrapping_add(random % 2 * 2).wrapping_sub(1)),
            3 => input.insert(at, self.rng.random()),
            4 if at < input.len() => {
                input.remove(at);
            }
            5 => drop(input.drain(span)),
            6 => input.truncate(at),
            7 => {
                let copy = input[span].to_vec();
                input.splice(at..at, copy);
            }
            8 => {
                let other = self.other();
                let part = self.span(other.len());
                input.splice(span, other[part].iter().copied());
            }
            9 => {
                let word = self.words[self.rng.random_range(0..self.words.len())];
                input.splice(at..at, word.bytes());
            }
            10 => {
                let word = self.words[self.rng.random_range(0..self.words.len())];
                input.splice(span, word.bytes());
            }
            11 => self.binary_number(input, at),
            _ => self.decimal_number(input, at),
        }
    }

    fn with_byte(&mut self, input: &mut [u8], at: usize, change: impl Fn(u8, u8) -> u8) {
        if let Some(byte) = input.get_mut(at) {
            *byte = change(*byte, self.rng.random());
        }
    }

    /// Mostly short.
    fn span(&mut self, len: usize) -> std::ops::Range<usize> {
        let from = self.rng.random_range(0..=len);
        let longest = if self.rng.random_ratio(1, 4) { len } else { 8 };
        from..len.min(from + self.rng.random_range(0..=longest))
    }

    fn number(&mut self) -> u64 {
        NUMBERS[self.rng.random_range(0..NUMBERS.len())]
    }

    /// A big-endian number of one to eight bytes over what is there.
    fn binary_number(&mut self, input: &mut [u8], at: usize) {
        let width = 1usize << self.rng.random_range(0..4);
        let bytes = self.number().to_be_bytes();
        if let Some(field) = input.get_mut(at..at + width) {
            field.copy_from_slice(&bytes[8 - width..]);
        }
    }

    /// The decimal digits that follow become another number: near the old one, or one of [`NUMBERS`].
    fn decimal_number(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(skip) = input[at..].iter().position(u8::is_ascii_digit) else { return };
        let from = at + skip;
        let to = input[from..].iter().position(|byte| !byte.is_ascii_digit()).map_or(input.len(), |len| from + len);
        let old: u64 = str::from_utf8(&input[from..to]).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let new = match self.rng.random_range(0..4) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            2 => self.rng.random_range(0..300),
            _ => self.number(),
        };
        input.splice(from..to, new.to_string().into_bytes());
    }

    /// Something of it over and over: what takes steps or memory in proportion to its square shows.
    fn grow(&mut self, input: &mut Vec<u8>) {
        let span = self.span(input.len());
        let (at, part) = (span.end, input[span].to_vec());
        if !part.is_empty() {
            let times = MAX_INPUT_BYTES.saturating_sub(input.len()) / part.len();
            input.splice(at..at, part.repeat(times));
        }
    }
}
