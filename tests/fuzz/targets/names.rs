//! Names and paths of files, and text on its way to a terminal.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use peerd::wire::name::{self, FileName, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_PATH_DEPTH, NameError, RelPath};

use super::bounds::{SLACK_BYTES, bounded, bounded_by};

/// A control character of one byte is escaped by six, in a text that grows by doubling.
const ESCAPED_PER_BYTE: usize = 3 * 6;

/// Strict: names are never rewritten. Text for a terminal is not read back; escaped, it has nothing to escape.
pub fn run(input: &[u8]) {
    check(input, FileName::new);
    path(input);
    terminal(&String::from_utf8_lossy(input));
}

pub fn check(input: &[u8], decode: impl Fn(&[u8]) -> Result<FileName, NameError>) {
    let Ok(name) = bounded(input, || decode(input)) else { return };
    assert_eq!(name.as_bytes(), input);
    assert!((1..=MAX_NAME_BYTES).contains(&input.len()));
    assert!(!input.contains(&b'/') && !input.contains(&0) && input != b"." && input != b"..");
    assert_eq!(RelPath::from(name.clone()), RelPath::parse(input).expect("a name is a path"));
    assert_eq!(name.to_string(), name::escape_for_terminal(&name.to_string_lossy()));
    assert!(name.as_os_str() == OsStr::from_bytes(input) && format!("{name:?}").is_ascii());
    let text = name.to_string_lossy();
    let (stem, kind) = name::split_extension(&text);
    assert!(*stem == *text || text.starts_with(&format!("{stem}.")) && (kind == "-" || text.ends_with(kind)));
}

fn path(input: &[u8]) {
    let Ok(path) = bounded(input, || RelPath::parse(input)) else { return };
    assert_eq!(path.as_bytes(), input);
    assert!(input.len() <= MAX_PATH_BYTES && path.components().count() <= MAX_PATH_DEPTH);
    assert!(path.components().all(|name| FileName::new(name).is_ok()));
    assert_eq!(RelPath::from_components(path.components()).as_ref(), Ok(&path));
    assert!(path.as_path().is_relative());
    assert_eq!(RelPath::from_path(&path.to_path()).as_ref(), Ok(&path));
    assert_eq!(path.to_string(), name::escape_for_terminal(&path.to_string_lossy()));
    assert!(format!("{path:?}").is_ascii());
    assert_eq!(Borrow::<[u8]>::borrow(&path), input);
    if let Some(folder) = path.parent() {
        assert!(path.is_below(&folder) && !folder.is_below(&path) && !path.is_below(&path));
        assert_eq!(folder.join(&path.file_name()), Ok(path));
    }
}

fn terminal(text: &str) {
    let slack = SLACK_BYTES + ESCAPED_PER_BYTE * text.len();
    let escaped = bounded_by(text.as_bytes(), slack, || name::escape_for_terminal(text));
    assert!(!escaped.chars().any(harmful), "{escaped:?}");
    assert_eq!(name::escape_for_terminal(&escaped), escaped);
    assert!(text.chars().any(harmful) || escaped == text);
}

/// Controls, and what turns the direction of writing or ends a line.
fn harmful(char: char) -> bool {
    const TURNS: [char; 14] = [
        '\u{61C}', '\u{200E}', '\u{200F}', '\u{2028}', '\u{2029}', '\u{202A}', '\u{202B}', '\u{202C}', '\u{202D}',
        '\u{202E}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
    ];
    char.is_control() || TURNS.contains(&char)
}
