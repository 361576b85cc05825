//! Words one typo away: a letter left out, put in, changed, or two neighbours swapped.
//!
//! The candidates are made and looked up: some hundred for a word, which is far less than the dictionary's length.

use std::collections::BTreeSet;

/// Letters tried at each place: a script's alphabet, not every ideograph that occurs.
const MAX_LETTERS: usize = 128;

/// Calls `try_word` with every word that is one typo away, letters from `known_letters` (those beyond ASCII). Some come
/// twice.
pub fn one_away(word: &str, known_letters: &BTreeSet<char>, mut try_word: impl FnMut(&str)) {
    let chars: Vec<char> = word.chars().collect();
    let letters = alphabet(&chars, known_letters);
    let mut near = String::with_capacity(word.len() + 4);
    let mut attempt = |parts: [&[char]; 3]| {
        near.clear();
        near.extend(parts.into_iter().flatten());
        try_word(&near);
    };
    for at in 0..=chars.len() {
        let (before, after) = chars.split_at(at);
        for letter in &letters {
            attempt([before, &[*letter], after]);
        }
        let [first, rest @ ..] = after else { continue };
        attempt([before, &[], rest]);
        for letter in letters.iter().filter(|letter| *letter != first) {
            attempt([before, &[*letter], rest]);
        }
        if let [second, rest @ ..] = rest {
            attempt([before, &[*second, *first], rest]);
        }
    }
}

/// The letters that could stand in this word: of the scripts that it is written in.
fn alphabet(word: &[char], known_letters: &BTreeSet<char>) -> Vec<char> {
    let mut letters = Vec::new();
    if word.iter().any(char::is_ascii) {
        letters.extend(('a'..='z').chain('0'..='9'));
    }
    // Unicode keeps scripts in blocks of 256; a word has one or two.
    let mut blocks: Vec<u32> = word.iter().filter(|char| !char.is_ascii()).map(|char| u32::from(*char) >> 8).collect();
    blocks.sort_unstable();
    blocks.dedup();
    for block in blocks {
        let first = char::from_u32(block << 8).unwrap_or(char::MAX);
        let of_block = known_letters.range(first..).take_while(|char| u32::from(**char) >> 8 == block);
        letters.extend(of_block.take(MAX_LETTERS));
    }
    letters.truncate(MAX_LETTERS);
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(word: &str, near: &str, expected: bool) {
        let letters = "абвгдежзиклмнопрстуфхцчшщ".chars().collect();
        let mut hit = false;
        one_away(word, &letters, |candidate| hit |= candidate == near);
        assert_eq!(hit, expected, "{word} {near}");
    }

    #[test]
    fn the_four_kinds_of_typo_at_every_place() {
        for near in ["hrones", "thrnes", "throne", "athrones", "thraones", "thronesa", "xhrones", "throxes", "thronex"]
        {
            check("thrones", near, true);
            check(near, "thrones", true);
        }
        check("thrones", "htrones", true);
        check("thrones", "thronse", true);
        check("москва", "моства", true);
        check("thrones", "throns5", false);
        check("thrones", "shornes", false);
    }
}
