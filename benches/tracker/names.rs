//! A million names like those that people share, and what they would type to find them. From a seed: the same everywhere.

use std::collections::HashSet;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const SEED: u64 = 4;
/// Words of which names are made: a large dictionary of one language.
const VOCABULARY: usize = 60_000;
const SYLLABLES: [&str; 48] = [
    "ka", "lo", "mer", "tin", "sha", "dor", "vel", "ri", "no", "an", "est", "pro", "con", "ver", "der", "la", "mo",
    "cha", "ring", "ton", "ba", "li", "gra", "fu", "sky", "wa", "ter", "nigh", "t", "star", "fi", "re", "qui", "zen",
    "hol", "ly", "gar", "den", "mi", "ra", "co", "del", "bur", "nes", "po", "lis", "hu", "ven",
];
const CYRILLIC: [&str; 16] =
    ["мо", "ск", "ва", "сле", "зы", "не", "ве", "рит", "ёж", "ту", "ман", "дом", "ре", "ка", "лё", "зим"];
const CJK: &str = "東京物語日本山川田中大小高新古今天地人心水火木金土月年時間国家学校生活電車映画音楽歌手";
const TAGS: [&str; 8] = ["1080p", "720p", "2160p", "WEB", "BluRay", "x264", "x265", "HDTV"];
const GROUPS: [&str; 6] = ["NTb", "FLUX", "RARBG", "SPARKS", "GalaxyTV", "KiNGS"];
const TYPES: [&str; 10] = ["pdf", "zip", "mp3", "flac", "epub", "iso", "tar.gz", "jpg", "txt", "mp4"];

pub struct Names {
    words: Vec<String>,
}

impl Names {
    pub fn new() -> Names {
        let mut rng = SmallRng::seed_from_u64(SEED);
        let mut known = HashSet::new();
        let mut words = Vec::with_capacity(VOCABULARY);
        while words.len() < VOCABULARY {
            // The frequent ones are short, as in every language.
            let syllables = rng.random_range(1..=2) + (words.len() + 1).ilog10() as usize / 2;
            let from: &[&str] = if rng.random_ratio(1, 20) { &CYRILLIC } else { &SYLLABLES };
            let word: String = (0..syllables).filter_map(|_| from.choose(&mut rng).copied()).collect();
            if word.chars().count() >= 2 && known.insert(word.clone()) {
                words.push(word);
            }
        }
        Names { words }
    }

    /// The `n`th name: the same whenever it is asked for. All differ, by a number that is part of what people share.
    pub fn name(&self, n: u32) -> String {
        let mut rng = SmallRng::seed_from_u64(SEED << 32 | u64::from(n));
        let rng = &mut rng;
        let title: Vec<String> = (0..rng.random_range(1..=4)).map(|_| capital(self.word(rng))).collect();
        match rng.random_range(0..100) {
            0..35 => {
                let (season, episode) = (rng.random_range(1..=20), rng.random_range(1..=24));
                let (tag, group) = (pick(&TAGS, rng), pick(&GROUPS, rng));
                format!("{}.S{season:02}E{episode:02}.{tag}.x264-{group}.{n}.mkv", title.join("."))
            }
            35..55 => {
                let (year, tag) = (rng.random_range(1930..=2025), pick(&TAGS, rng));
                format!("{} ({year}) [{tag}] {n}.mp4", title.join(" "))
            }
            55..70 => format!("{} - {} {n}.mp3", title.join(" "), capital(self.word(rng))),
            70..80 => format!("{}_v{}.{}", title.concat(), n, pick(&TYPES, rng)),
            80..85 => {
                let characters: Vec<char> = CJK.chars().collect();
                let name: String = (0..rng.random_range(2..=6)).filter_map(|_| characters.choose(rng)).collect();
                format!("{name} 第{n}話.mkv")
            }
            _ => format!("{}-{n}.{}", title.join("_"), pick(&TYPES, rng)),
        }
    }

    /// By Zipf's law: the word of rank r with a probability of about 1 / r.
    fn word(&self, rng: &mut SmallRng) -> &str {
        let rank = (self.words.len() as f64).powf(rng.random::<f64>()) as usize;
        &self.words[rank.saturating_sub(1).min(self.words.len() - 1)]
    }

    /// `wanted` different queries of one to three words of one name, names drawn by Zipf's law too: of 100, 60 of whole
    /// words, 25 whose last word is a prefix of three letters or more, 15 with a typo.
    pub fn queries(&self, names: u32, wanted: usize) -> Vec<String> {
        let mut rng = SmallRng::seed_from_u64(SEED + 1);
        let rng = &mut rng;
        let mut known = HashSet::new();
        let mut queries = Vec::with_capacity(wanted);
        while queries.len() < wanted {
            let n = f64::from(names).powf(rng.random::<f64>()) as u32 - 1;
            let name = self.name(n);
            let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            let first = rng.random_range(0..words.len());
            let count = rng.random_range(1..=3);
            let mut words: Vec<String> = words.iter().skip(first).take(count).map(|word| word.to_lowercase()).collect();
            let kind = rng.random_range(0..100);
            let changed = match kind {
                0..60 => true,
                60..85 => words.last_mut().is_some_and(|word| shorten(word, rng)),
                _ => words.iter_mut().max_by_key(|word| word.chars().count()).is_some_and(|word| mistype(word, rng)),
            };
            let query = words.join(" ");
            if changed && known.insert(query.clone()) {
                queries.push(query);
            }
        }
        queries
    }
}

fn pick<'a>(from: &[&'a str], rng: &mut SmallRng) -> &'a str {
    from.choose(rng).copied().unwrap_or_default()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// To a prefix of three letters or more, if it has more than that.
fn shorten(word: &mut String, rng: &mut SmallRng) -> bool {
    let chars: Vec<char> = word.chars().collect();
    if chars.len() < 4 {
        return false;
    }
    *word = chars[..rng.random_range(3..chars.len())].iter().collect();
    true
}

/// A letter left out, put in, changed, or two swapped, in a word of five letters or more.
fn mistype(word: &mut String, rng: &mut SmallRng) -> bool {
    let mut chars: Vec<char> = word.chars().collect();
    if chars.len() < 5 {
        return false;
    }
    let at = rng.random_range(0..chars.len() - 1);
    let letter = char::from(rng.random_range(b'a'..=b'z'));
    match rng.random_range(0..4) {
        0 => drop(chars.remove(at)),
        1 => chars.insert(at, letter),
        2 => chars[at] = letter,
        _ => chars.swap(at, at + 1),
    }
    let typo: String = chars.into_iter().collect();
    let changed = typo != *word;
    *word = typo;
    changed
}
