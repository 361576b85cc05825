//! Names to words: accents folded, case folded, `Some.Name-S01_v2.mkv` taken apart.

use icu_normalizer::DecomposingNormalizerBorrowed;

use super::MAX_QUERY_WORDS;

/// A longer word is cut, in names and queries alike: nobody types more, and it bounds the dictionary.
const MAX_WORD_CHARS: usize = 64;
/// Words taken from one torrent: enough for some thousand file names; a folder of 200,000 is found by the first of them.
pub const MAX_WORDS: usize = 20_000;
/// So many words come before a full list is looked through for repetitions again.
const LOOK_EVERY: usize = 1_000;
/// A longer text is taken apart with more care for its length.
const MAX_PLAIN_BYTES: usize = 4_096;

/// One word of a query: `whole` as it was typed, and the pieces that may stand apart in a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryWord {
    pub whole: String,
    /// `S01E02` is also `s01` and `e02`, `SomeName` also `some` and `name`; empty when there is nothing to split.
    pub parts: Vec<String>,
    /// Chinese and Japanese are written without spaces: every pair of neighbours must occur, the whole need not be a word.
    pub unspaced: bool,
}

/// The words of a query, in order; of a query that has too many, one more than [`MAX_QUERY_WORDS`].
pub fn query_words(text: &str) -> Vec<QueryWord> {
    runs(text, MAX_QUERY_WORDS + 1)
        .into_iter()
        .map(|run| match run {
            Run::Spaced(chars) => {
                let parts = chunks(&pieces(&chars));
                let parts = if parts.len() > 1 { parts } else { Vec::new() };
                QueryWord { whole: lower(&chars), parts, unspaced: false }
            }
            Run::Unspaced(chars) => {
                let parts = chars.windows(2).map(|pair| pair.iter().collect()).collect();
                QueryWord { whole: lower(&chars), parts, unspaced: true }
            }
        })
        .collect()
}

/// What takes the words of a torrent, one after the other.
pub trait Words {
    /// May have come before.
    fn push(&mut self, word: &str);
    /// Whether [`MAX_WORDS`] different ones have come.
    fn is_full(&mut self) -> bool;
}

/// Words of a torrent, one behind the other.
#[derive(Default)]
pub struct WordList {
    text: String,
    /// Where each begins and ends.
    spans: Vec<(u32, u32)>,
    /// So many have been looked at for repetitions.
    looked_at: usize,
}

impl WordList {
    /// Takes out the repetitions.
    pub fn each_once(&mut self) {
        let text = &self.text;
        let word = |(begin, end): (u32, u32)| &text[begin as usize..end as usize];
        self.spans.sort_unstable_by(|one, other| word(*one).cmp(word(*other)));
        self.spans.dedup_by(|one, other| word(*one) == word(*other));
        self.looked_at = self.spans.len();
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.spans.iter().map(|(begin, end)| &self.text[*begin as usize..*end as usize])
    }
}

impl Words for WordList {
    fn push(&mut self, word: &str) {
        let begin = self.text.len() as u32;
        self.text.push_str(word);
        self.spans.push((begin, self.text.len() as u32));
    }

    fn is_full(&mut self) -> bool {
        // Not at each of many repetitions: that would be a sort for every file name.
        if self.spans.len() >= MAX_WORDS.max(self.looked_at + LOOK_EVERY) {
            self.each_once();
        }
        self.looked_at >= MAX_WORDS
    }
}

/// Tells every word that a name can be found by, with repetitions.
pub fn name_words(text: &str, words: &mut impl Words) {
    if plain_ascii_words(text, words) {
        return;
    }
    for run in runs(text, MAX_WORDS) {
        match run {
            Run::Spaced(chars) => {
                let pieces = pieces(&chars);
                if pieces.len() > 1 {
                    pieces.iter().for_each(|piece| words.push(&lower(piece)));
                    chunks(&pieces).iter().for_each(|chunk| words.push(chunk));
                }
                words.push(&lower(&chars));
            }
            Run::Unspaced(chars) => {
                chars.windows(2).for_each(|pair| words.push(&pair.iter().collect::<String>()));
                // The last character begins no pair.
                chars.last().iter().for_each(|char| words.push(&char.to_string()));
                words.push(&lower(&chars));
            }
        }
        if words.is_full() {
            break;
        }
    }
}

/// The same for what most names are, without a copy of each word: a quarter of the time. Nothing is added to the others.
fn plain_ascii_words(text: &str, words: &mut impl Words) -> bool {
    let Some(runs) = plain_ascii_runs(text) else { return false };
    let mut lower = [0; MAX_WORD_CHARS];
    for run in runs {
        let lower = &mut lower[..run.len()];
        lower.copy_from_slice(run);
        lower.make_ascii_lowercase();
        let Ok(word) = std::str::from_utf8(lower) else { continue };
        let (mut piece, mut chunk, mut letters_before) = (0, 0, false);
        for at in 1..=run.len() {
            let here = run.get(at).copied().map(char::from);
            let after = run.get(at + 1).copied().map(char::from);
            if here.is_some_and(|here| !is_border(char::from(run[at - 1]), here, after))
                || (here.is_none() && piece == 0)
            {
                continue;
            }
            let number = run[piece].is_ascii_digit();
            words.push(&word[piece..at]);
            // A number belongs to the letters before it.
            if number && letters_before {
                words.push(&word[chunk..at]);
            }
            (chunk, piece, letters_before) = (piece, at, !number);
        }
        words.push(word);
    }
    true
}

/// The runs of letters and digits of what most names are: plain ASCII, no run too long. `None` for all others.
fn plain_ascii_runs(text: &str) -> Option<impl Iterator<Item = &[u8]> + Clone> {
    let plain = text.is_ascii() && text.len() <= MAX_PLAIN_BYTES && !text.contains('\'');
    let runs = text.as_bytes().split(|byte| !byte.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
    let short = plain && runs.clone().next().is_some() && runs.clone().all(|run| run.len() <= MAX_WORD_CHARS);
    short.then_some(runs)
}

/// The words of a text with one space between: equal for names that differ in case, accents and punctuation alone.
pub fn plain(text: &str) -> String {
    if let Some(runs) = plain_ascii_runs(text) {
        let mut words = String::with_capacity(text.len());
        for (n, run) in runs.enumerate() {
            words.extend((n > 0).then_some(' '));
            words.extend(run.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        return words;
    }
    let words: Vec<String> = runs(text, MAX_WORDS).iter().map(|run| lower(run.chars())).collect();
    words.join(" ")
}

enum Run {
    Spaced(Vec<char>),
    Unspaced(Vec<char>),
}

impl Run {
    fn chars(&self) -> &[char] {
        match self {
            Run::Spaced(chars) | Run::Unspaced(chars) => chars,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Unspaced,
    /// Belongs to the word without showing: accents, apostrophes, soft hyphens.
    Nothing,
    Separator,
}

fn class(char: char) -> Class {
    match char {
        // Most are.
        '0'..='9' | 'a'..='z' | 'A'..='Z' => Class::Letter,
        '\'' | '\u{2019}' | '\u{AD}' | '\u{200B}'..='\u{200D}' => Class::Nothing,
        '\u{300}'..='\u{36F}' | '\u{1AB0}'..='\u{1AFF}' | '\u{1DC0}'..='\u{1DFF}' | '\u{20D0}'..='\u{20FF}' => {
            Class::Nothing
        }
        // Kana with their marks, and the ideographs.
        '\u{3005}' | '\u{3041}'..='\u{30FA}' | '\u{30FC}'..='\u{30FF}' | '\u{31F0}'..='\u{31FF}' => Class::Unspaced,
        '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}' => {
            Class::Unspaced
        }
        _ if char.is_alphanumeric() => Class::Letter,
        _ => Class::Separator,
    }
}

/// Maximal runs of letters and digits, and of unspaced script, the first `max` of them. A text without any is one run of
/// what it is, so that even `???` can be found.
fn runs(text: &str, max: usize) -> Vec<Run> {
    if text.is_ascii() {
        return runs_of(text, text.chars(), max);
    }
    runs_of(text, DecomposingNormalizerBorrowed::new_nfkd().normalize_iter(text.chars()), max)
}

fn runs_of(text: &str, decomposed: impl Iterator<Item = char>, max: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut last = Class::Separator;
    for char in decomposed {
        let class = class(char);
        let full = runs.len() == max;
        match class {
            Class::Nothing => continue,
            Class::Separator => {}
            Class::Letter | Class::Unspaced => match runs.last_mut().filter(|_| last == class) {
                Some(Run::Spaced(chars) | Run::Unspaced(chars)) => {
                    if chars.len() < MAX_WORD_CHARS {
                        chars.push(char);
                    }
                }
                // One character may stand for four words (U+FDFA): a text's length bounds its runs too loosely.
                None if full => return runs,
                None if class == Class::Letter => runs.push(Run::Spaced(vec![char])),
                None => runs.push(Run::Unspaced(vec![char])),
            },
        }
        last = class;
    }
    if runs.is_empty() {
        let rest: Vec<char> = text.trim().chars().take(MAX_WORD_CHARS).collect();
        if !rest.is_empty() {
            runs.push(Run::Spaced(rest));
        }
    }
    runs
}

fn is_border(before: char, here: char, after: Option<char>) -> bool {
    let digit_border = before.is_numeric() != here.is_numeric();
    let hump = before.is_lowercase() && here.is_uppercase();
    let end_of_capitals = before.is_uppercase() && here.is_uppercase() && after.is_some_and(char::is_lowercase);
    digit_border || hump || end_of_capitals
}

/// Where the kind of character changes within a run: `SomeHTMLPage2` is Some, HTML, Page, 2.
fn pieces(chars: &[char]) -> Vec<&[char]> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for at in 1..chars.len() {
        let (before, here) = (chars[at - 1], chars[at]);
        let after = chars.get(at + 1);
        if is_border(before, here, after.copied()) {
            pieces.push(&chars[start..at]);
            start = at;
        }
    }
    pieces.push(&chars[start..]);
    pieces
}

/// Pieces in lower case, a number put together with the letters before it: `S01E02` is `s01`, `e02`.
fn chunks(pieces: &[&[char]]) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    let mut letters_before = false;
    for piece in pieces {
        let number = piece.first().is_some_and(|char| char.is_numeric());
        match chunks.last_mut().filter(|_| number && letters_before) {
            Some(chunk) => chunk.push_str(&lower(piece)),
            None => chunks.push(lower(piece)),
        }
        letters_before = !number;
    }
    chunks
}

fn lower(chars: &[char]) -> String {
    let mut word = String::with_capacity(chars.len());
    if chars.iter().all(char::is_ascii) {
        word.extend(chars.iter().map(char::to_ascii_lowercase));
        return word;
    }
    for char in chars.iter().flat_map(|char| char.to_lowercase()) {
        // Letters that Unicode does not take apart, and that people type without.
        match char {
            'ß' => word.push_str("ss"),
            'æ' => word.push_str("ae"),
            'œ' => word.push_str("oe"),
            'þ' => word.push_str("th"),
            'ø' => word.push('o'),
            'ł' => word.push('l'),
            'đ' | 'ð' => word.push('d'),
            'ħ' => word.push('h'),
            'ı' => word.push('i'),
            'ς' => word.push('σ'),
            // The dot that Turkish lower case leaves behind.
            '\u{307}' => {}
            _ => word.push(char),
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// Each once.
    fn words(text: &str) -> Vec<String> {
        let mut words = WordList::default();
        name_words(text, &mut words);
        words.each_once();
        words.iter().map(str::to_owned).collect()
    }

    /// What is plain is taken apart as all else is.
    #[test]
    fn the_short_way_gives_the_same_words() {
        let seed = 11;
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let text: String =
                (0..rng.random_range(1..24)).map(|_| char::from(b"aAbB12.- "[rng.random_range(0..9)])).collect();
            let text = format!("z {text}");
            // The mark is no part of any word, and makes it go the long way.
            let marked = format!("{text}.\u{2019}");
            assert_eq!(words(&text), words(&marked), "seed {seed}: {text:?}");
            assert_eq!(plain(&text), plain(&marked), "seed {seed}: {text:?}");
        }
    }

    fn check(text: &str, expected: &str) {
        let words = words(text);
        let mut expected: Vec<&str> = expected.split(' ').filter(|word| !word.is_empty()).collect();
        expected.sort_unstable();
        assert_eq!(words, expected, "{text}");
    }

    #[test]
    fn names_come_apart() {
        check("Some.Name-S01_v2.mkv", "some name s01 s 01 v2 v 2 mkv");
        check("S01E02", "s01e02 s 01 e 02 s01 e02");
        check("SomeHTMLPage", "somehtmlpage some html page");
        check("Schindler's List", "schindlers list");
        check("1080p", "1080p 1080 p");
        check("???", "???");
        check(" \t", "");
    }

    #[test]
    fn accents_and_case_fold_however_they_are_encoded() {
        check("Škoda ÉTÉ", "skoda ete");
        check("e\u{301}te\u{301}", "ete");
        check("Straße Łódź Smørrebrød", "strasse lodz smorrebrod");
        check("Ёлка ВОЙНА", "елка воина");
        check("ＦＵＬＬ", "full");
        check("Οδυσσεύς", "οδυσσευσ");
        check("İstanbul", "istanbul");
    }

    #[test]
    fn unspaced_scripts_give_pairs_and_stand_apart_from_latin() {
        check("東京物語1953", "東京 京物 物語 語 東京物語 1953");
        check("七", "七");
        assert_eq!(query_words("京物")[0].parts, ["京物"]);
    }

    #[test]
    fn query_words_know_their_parts() {
        let words = query_words("S01E02 someName plain v2");
        let parts: Vec<String> = words.iter().map(|word| word.parts.join("+")).collect();
        assert_eq!(parts, ["s01+e02", "some+name", "", ""]);
        assert_eq!(words[0].whole, "s01e02");
        assert_eq!(query_words(&"\u{FDFA}".repeat(300)).len(), MAX_QUERY_WORDS + 1);
    }

    #[test]
    fn plain_form_ignores_punctuation() {
        assert_eq!(plain("Some.Name_(2020)"), plain("some name 2020"));
        assert_ne!(plain("a b"), plain("ab"));
    }

    #[test]
    fn repetitions_leave_room_for_others() {
        let mut words = WordList::default();
        let mut push = |word: &str| {
            words.push(word);
            words.is_full()
        };
        assert!((0..3 * MAX_WORDS).all(|_| !push("same")));
        let others = (0..2 * MAX_WORDS).take_while(|n| !push(&n.to_string())).count();
        assert!((MAX_WORDS - 2..MAX_WORDS + LOOK_EVERY).contains(&others), "{others}");
    }

    #[test]
    fn a_name_without_end_is_cut() {
        assert_eq!(words(&"x".repeat(100_000)), ["x".repeat(64)]);
        let mut many = WordList::default();
        name_words(&"a b ".repeat(100_000), &mut many);
        assert!(many.iter().count() <= MAX_WORDS + 1);
    }
}
