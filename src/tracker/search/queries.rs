//! What people type and what they mean: the queries by which the search is judged.

use super::tests::{catalogue, names};
use crate::wire::catalogue::Match::{self, Exact, Prefix, Typo, Words};
use crate::wire::catalogue::SearchQuery;

/// The catalogue that they are asked of: name, path, seeders. The last is the newest.
pub(super) const NAMES: &[(&str, &str, u32)] = &[
    ("got5.mp4", "", 1),
    ("got5", "", 0),
    ("Game.of.Thrones.S01E02.1080p.mkv", "series/got", 9),
    ("Game of Thrones S01E03.mkv", "series/got", 2),
    ("Amélie Poulain.avi", "films", 3),
    ("Москва слезам не верит.mkv", "фильмы", 4),
    ("Ёжик в тумане.mp4", "", 1),
    ("東京物語.mkv", "", 2),
    ("ドラゴンボール 第01話.mkv", "", 2),
    ("SomeCamelCaseName_v2.pdf", "docs", 0),
    ("linux-6.9.1.tar.xz", "src/kernel", 7),
    ("Linux Kernel Development.pdf", "books", 5),
    ("report-2023.pdf", "", 0),
    ("report-2023-final.pdf", "", 8),
    ("Schindler's List.mkv", "", 1),
    ("Smørrebrød & Øl.txt", "", 0),
    ("İstanbul Hatırası.mp3", "", 0),
    ("???", "", 0),
    ("holiday_photos__lake.2019.zip", "", 1),
    ("parseHTTPRequest.rs", "", 1),
    ("Lake Poem.txt", "", 6),
    ("Lakeside Poem.txt", "", 60),
    ("lake poem (draft).txt", "", 6),
];

const THRONES: &[&str] = &["Game.of.Thrones.S01E02.1080p.mkv", "Game of Thrones S01E03.mkv"];
const KERNEL: &[&str] = &["linux-6.9.1.tar.xz", "Linux Kernel Development.pdf"];
const CAMEL: &[&str] = &["SomeCamelCaseName_v2.pdf"];
const MOSCOW: &[&str] = &["Москва слезам не верит.mkv"];
const TOKYO: &[&str] = &["東京物語.mkv"];
const PHOTOS: &[&str] = &["holiday_photos__lake.2019.zip"];

/// What is typed, and all that is found, best first.
type Row = (&'static str, &'static [&'static str], Match);

/// By kind, how many there must be at least of each.
const FOUND: &[(&str, usize, &[Row])] = &[
    (
        "accents",
        4,
        &[
            ("amelie", &["Amélie Poulain.avi"], Words),
            ("AME\u{301}LIE", &["Amélie Poulain.avi"], Words),
            ("smorrebrod ol", &["Smørrebrød & Øl.txt"], Exact),
            ("istanbul hatirasi", &["İstanbul Hatırası.mp3"], Exact),
        ],
    ),
    (
        "Cyrillic",
        4,
        &[
            ("москва", MOSCOW, Words),
            ("ежик", &["Ёжик в тумане.mp4"], Words),
            ("Верит слез", MOSCOW, Prefix),
            ("фильмы", MOSCOW, Words),
        ],
    ),
    (
        "CJK",
        4,
        &[
            ("東京", TOKYO, Words),
            ("京物語", TOKYO, Words),
            ("語", TOKYO, Words),
            ("ボール", &["ドラゴンボール 第01話.mkv"], Words),
        ],
    ),
    (
        "dots and underscores",
        4,
        &[
            ("6.9.1", &["linux-6.9.1.tar.xz"], Words),
            ("holiday photos lake", PHOTOS, Words),
            ("photos.lake_2019", PHOTOS, Words),
            ("game_of_thrones", THRONES, Words),
        ],
    ),
    (
        "season and episode",
        4,
        &[
            ("s01e03", &["Game of Thrones S01E03.mkv"], Words),
            ("S01 E03", &["Game of Thrones S01E03.mkv"], Words),
            ("s01", THRONES, Words),
            ("thrones s01e02", &["Game.of.Thrones.S01E02.1080p.mkv"], Words),
        ],
    ),
    (
        "camel case",
        4,
        &[
            ("camel name", CAMEL, Words),
            ("someCamel v2", CAMEL, Words),
            ("somecamelcasename", CAMEL, Words),
            ("http request", &["parseHTTPRequest.rs"], Words),
        ],
    ),
    (
        "prefixes",
        4,
        &[
            ("thro", THRONES, Prefix),
            ("rep fin", &["report-2023-final.pdf"], Prefix),
            ("photos lak", PHOTOS, Prefix),
            ("parseht", &["parseHTTPRequest.rs"], Prefix),
        ],
    ),
    (
        "a letter put in",
        4,
        &[
            ("thorones", THRONES, Typo),
            ("kernnel", KERNEL, Typo),
            ("xholiday", PHOTOS, Typo),
            ("москвва", MOSCOW, Typo),
        ],
    ),
    (
        "a letter left out",
        4,
        &[
            ("thrnes", THRONES, Typo),
            ("hrones", THRONES, Typo),
            ("kernl", KERNEL, Typo),
            ("hatirsi", &["İstanbul Hatırası.mp3"], Typo),
        ],
    ),
    (
        "a letter changed",
        4,
        &[
            ("kermel", KERNEL, Typo),
            ("thronez", THRONES, Typo),
            ("poulaim", &["Amélie Poulain.avi"], Typo),
            ("москга", MOSCOW, Typo),
        ],
    ),
    (
        "two letters swapped",
        4,
        &[
            ("shcindlers", &["Schindler's List.mkv"], Typo),
            ("poulian amelie", &["Amélie Poulain.avi"], Typo),
            ("hoilday", PHOTOS, Typo),
            ("мосвка", MOSCOW, Typo),
        ],
    ),
    (
        "word order",
        4,
        &[
            ("thrones game", THRONES, Words),
            ("THRONES 1080p game", &["Game.of.Thrones.S01E02.1080p.mkv"], Words),
            ("верит не москва", MOSCOW, Words),
            ("development kernel", &["Linux Kernel Development.pdf"], Words),
        ],
    ),
    (
        "ranking",
        4,
        &[
            // The whole name, then the name without its type, then words, then prefixes; more seeders, then the newer.
            ("got5", &["got5", "got5.mp4"], Exact),
            ("GOT5.MP4", &["got5.mp4"], Exact),
            ("report 2023", &["report-2023.pdf", "report-2023-final.pdf"], Exact),
            ("poem", &["Lakeside Poem.txt", "lake poem (draft).txt", "Lake Poem.txt"], Words),
            ("lake poem", &["Lake Poem.txt", "lake poem (draft).txt", "Lakeside Poem.txt"], Exact),
            ("kernel", KERNEL, Words),
        ],
    ),
    (
        "apostrophes and marks",
        1,
        &[
            ("schindlers", &["Schindler's List.mkv"], Words),
            ("schindler’s list", &["Schindler's List.mkv"], Exact),
            ("???", &["???"], Exact),
        ],
    ),
];

const NOTHING: &[&str] =
    &["gots", "thoronse", "kernel thrones", "京東", "xyzzy", "!!!", "rones", "москва kernel", "s09e09", "thronexx"];

#[test]
fn each_finds_what_is_meant() {
    let index = catalogue();
    let mut asked = 0;
    for (kind, least, rows) in FOUND {
        assert!(rows.len() >= *least, "{kind}");
        asked += rows.len();
        for (text, expected, first) in *rows {
            let found = index.search(&SearchQuery::words(*text)).unwrap();
            assert_eq!(names(&found), *expected, "{kind}: {text}");
            assert_eq!(found.hits.first().map(|hit| hit.1), Some(*first), "{kind}: {text}");
            assert_eq!(found.total, expected.len() as u64, "{kind}: {text}");
        }
    }
    assert!(asked >= 40 && NOTHING.len() >= 8);
    for text in NOTHING {
        assert_eq!(names(&index.search(&SearchQuery::words(*text)).unwrap()), [""; 0], "{text}");
    }
}
