//! A word as the dictionary has it: small, and compared without a look at another place in memory.

/// Bytes of a text that stand in the word itself: most have no more.
const BEGIN_BYTES: usize = 8;

/// Words stand in the order of their texts, which have no NUL in them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Word {
    /// Big-endian, so that numbers compare as texts do; zeros behind a shorter text.
    begin: u64,
    rest: Box<[u8]>,
}

impl Word {
    pub fn new(text: &str) -> Word {
        let (begin, rest) = text.as_bytes().split_at(text.len().min(BEGIN_BYTES));
        let mut bytes = [0; BEGIN_BYTES];
        bytes[..begin.len()].copy_from_slice(begin);
        Word { begin: u64::from_be_bytes(bytes), rest: rest.into() }
    }

    /// What stands for a word that has no more than this; two such words never share it.
    pub fn short(&self) -> Option<u64> {
        self.rest.is_empty().then_some(self.begin)
    }

    /// The word of which [`Word::short`] gave this.
    pub fn of_short(begin: u64) -> Word {
        Word { begin, rest: Box::default() }
    }

    /// Whether its text begins with that of `prefix`, which is so many bytes long.
    pub fn starts_with(&self, prefix: &Word, prefix_bytes: usize) -> bool {
        let ignored = BEGIN_BYTES.saturating_sub(prefix_bytes) as u32 * u8::BITS;
        let differing = (self.begin ^ prefix.begin).checked_shr(ignored).unwrap_or(0);
        differing == 0 && self.rest.starts_with(&prefix.rest)
    }

    /// Its letters beyond ASCII.
    pub fn beyond_ascii(&self) -> Vec<char> {
        const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
        if self.begin & HIGH_BITS == 0 && self.rest.is_ascii() {
            return Vec::new();
        }
        let text = [&self.begin.to_be_bytes()[..], &self.rest].concat();
        String::from_utf8_lossy(&text).chars().filter(|char| !char.is_ascii()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_what_their_texts_are(a in "[abé東\u{1}]{0,12}", b in "[abé東\u{1}]{0,12}", cut in 0_usize..12) {
            let (one, other) = (Word::new(&a), Word::new(&b));
            prop_assert_eq!(one.cmp(&other), a.cmp(&b));
            prop_assert_eq!(one.short().is_some(), a.len() <= BEGIN_BYTES);
            prop_assert_eq!(one.short().map_or(one.clone(), Word::of_short), one.clone());
            prop_assert_eq!(one.starts_with(&other, b.len()), a.starts_with(&b));
            let prefix: String = a.chars().take(cut).collect();
            prop_assert!(one.starts_with(&Word::new(&prefix), prefix.len()));
            prop_assert_eq!(one.beyond_ascii(), a.chars().filter(|char| !char.is_ascii()).collect::<Vec<_>>());
        }
    }
}
