//! Names of files as they travel: bytes, checked, never rewritten. What a check refuses is refused as a whole; a name
//! that was quietly changed would make two peers disagree about the same torrent.

use std::borrow::{Borrow, Cow};
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest name of one file or folder, in bytes: Linux takes no longer one (NAME_MAX).
pub const MAX_NAME_BYTES: usize = 255;
/// The deepest path, in names. `upload/` is shared as deep as this, and no torrent needs more.
pub const MAX_PATH_DEPTH: usize = 64;
/// The longest path, in bytes with its slashes: Linux takes no longer one in a call (PATH_MAX less the NUL).
pub const MAX_PATH_BYTES: usize = 4095;

/// Why bytes are no name or path that would be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("an empty name")]
    Empty,
    #[error("the name `.` or `..`")]
    Dots,
    #[error("a name with a slash or a NUL in it")]
    Separator,
    #[error("a name of {0} bytes: at most {MAX_NAME_BYTES} are allowed")]
    TooLong(usize),
    #[error("a path more than {MAX_PATH_DEPTH} names deep")]
    TooDeep,
    #[error("a path of more than {MAX_PATH_BYTES} bytes")]
    PathTooLong,
}

fn check_name(name: &[u8]) -> Result<(), NameError> {
    match name {
        b"" => Err(NameError::Empty),
        b"." | b".." => Err(NameError::Dots),
        _ if name.len() > MAX_NAME_BYTES => Err(NameError::TooLong(name.len())),
        _ if name.contains(&b'/') || name.contains(&0) => Err(NameError::Separator),
        _ => Ok(()),
    }
}

/// One component of a path: 1 to 255 bytes of any encoding without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Box<[u8]>);

impl FileName {
    /// # Errors
    /// When the bytes could not be a file's name, or would mean another place.
    pub fn new(name: &[u8]) -> Result<FileName, NameError> {
        check_name(name).map(|()| FileName(name.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// As text: for JSON and for search. For a terminal use `Display`, which escapes.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

/// For people: lossy, and control characters escaped.
impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_for_terminal(&self.to_string_lossy()))
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A path below some root: 1 to 64 checked names. Held as bytes joined by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<[u8]>);

impl RelPath {
    /// # Errors
    /// When there is no component, one of them is no name, or the whole is too deep or too long.
    pub fn from_components<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> Result<RelPath, NameError> {
        let mut joined = Vec::new();
        for (depth, name) in components.into_iter().enumerate() {
            check_name(name)?;
            if depth >= MAX_PATH_DEPTH {
                return Err(NameError::TooDeep);
            }
            if depth > 0 {
                joined.push(b'/');
            }
            joined.extend_from_slice(name);
            if joined.len() > MAX_PATH_BYTES {
                return Err(NameError::PathTooLong);
            }
        }
        if joined.is_empty() {
            return Err(NameError::Empty);
        }
        Ok(RelPath(joined.into()))
    }

    /// From bytes joined by `/`, as [`RelPath::as_bytes`] gives them.
    ///
    /// # Errors
    /// As [`RelPath::from_components`]; a slash at either end or two in a row make an empty name.
    pub fn parse(joined: &[u8]) -> Result<RelPath, NameError> {
        RelPath::from_components(joined.split(|&byte| byte == b'/'))
    }

    /// From a relative path of the file system.
    ///
    /// # Errors
    /// As [`RelPath::parse`]; an absolute path is one that begins with an empty name.
    pub fn from_path(path: &Path) -> Result<RelPath, NameError> {
        RelPath::parse(path.as_os_str().as_bytes())
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> FileName {
        FileName(self.components().next_back().unwrap_or_default().into())
    }

    /// The path without its last component; `None` when there is only one.
    pub fn parent(&self) -> Option<RelPath> {
        let slash = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(RelPath(self.0.get(..slash)?.into()))
    }

    /// # Errors
    /// When the result is too deep or too long.
    pub fn join(&self, name: &FileName) -> Result<RelPath, NameError> {
        RelPath::from_components(self.components().chain([name.as_bytes()]))
    }

    /// Whether this path lies below `folder`. No path lies below itself.
    pub fn is_below(&self, folder: &RelPath) -> bool {
        self.0.strip_prefix(&*folder.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn to_path(&self) -> PathBuf {
        self.as_path().to_path_buf()
    }

    /// As text: for JSON and for search. For a terminal use `Display`, which escapes.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

/// Paths order as their bytes do, so that a map of paths can be asked for all that begin alike.
impl Borrow<[u8]> for RelPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<FileName> for RelPath {
    fn from(name: FileName) -> RelPath {
        RelPath(name.0)
    }
}

/// For people: lossy, and control characters escaped.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_for_terminal(&self.to_string_lossy()))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Text from a stranger, fit for a terminal and for a file of lines: control characters (C0, DEL, C1), line and
/// paragraph separators and those that turn the direction of writing become `\uXXXX`.
pub fn escape_for_terminal(text: &str) -> String {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        let harmful = char.is_control()
            || matches!(char, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        if harmful {
            // A String takes whatever is written to it.
            let _ = write!(escaped, "\\u{:04X}", u32::from(char));
        } else {
            escaped.push(char);
        }
    }
    escaped
}

/// Text out of a stranger's bytes: what is no UTF-8 replaced, then at most `max_bytes` of it in whole characters.
pub(in crate::wire) fn text_within(bytes: &[u8], max_bytes: usize) -> String {
    // A character has at most four bytes: with three more the last one that is kept is never a broken one.
    let near = bytes.get(..max_bytes + 3).unwrap_or(bytes);
    let mut text = String::from_utf8_lossy(near).into_owned();
    text.truncate(text.floor_char_boundary(max_bytes));
    text
}

/// A name's stem and type: up to the last dot, and after it; the type is `-` if there is none. A dot at the very
/// beginning separates nothing.
pub fn split_extension(name: &str) -> (&str, &str) {
    match name.rsplit_once('.') {
        None | Some(("", _)) => (name, "-"),
        Some((stem, "")) => (stem, "-"),
        Some((stem, kind)) => (stem, kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_mean_another_place_are_refused() {
        for (name, error) in [
            (&b""[..], NameError::Empty),
            (b".", NameError::Dots),
            (b"..", NameError::Dots),
            (b"a/b", NameError::Separator),
            (b"/", NameError::Separator),
            (b"a\0", NameError::Separator),
            (&[b'n'; 256], NameError::TooLong(256)),
        ] {
            assert_eq!(FileName::new(name), Err(error), "{}", name.escape_ascii());
        }
        for name in [&b"..."[..], b" ", b"a\\b", b"..a", b"\xFF\xFE", "имя.txt".as_bytes(), &[b'n'; 255]] {
            assert_eq!(FileName::new(name).map(|n| n.as_bytes().to_vec()), Ok(name.to_vec()));
        }
    }

    #[test]
    fn paths_are_checked_name_by_name() {
        for (path, error) in [
            (&b""[..], NameError::Empty),
            (b"/etc/passwd", NameError::Empty),
            (b"a//b", NameError::Empty),
            (b"a/", NameError::Empty),
            (b"a/../../b", NameError::Dots),
            (b"a/./b", NameError::Dots),
            (b"a/b\0c", NameError::Separator),
        ] {
            assert_eq!(RelPath::parse(path), Err(error), "{}", path.escape_ascii());
        }
        assert_eq!(RelPath::from_components([&b"a"[..], b"b/c"]), Err(NameError::Separator));
        assert_eq!(RelPath::from_components([]), Err(NameError::Empty));
        assert!(RelPath::parse(&["d"; 64].join("/").into_bytes()).is_ok());
        assert_eq!(RelPath::parse(&["d"; 65].join("/").into_bytes()), Err(NameError::TooDeep));
        let long = vec!["n".repeat(255); 17].join("/");
        assert_eq!(RelPath::parse(long.as_bytes()), Err(NameError::PathTooLong));
    }

    #[test]
    fn parts_of_a_path() {
        let path = RelPath::parse(b"a/b/c.txt").unwrap();
        assert_eq!(path.file_name().as_bytes(), b"c.txt");
        assert_eq!(path.parent(), RelPath::parse(b"a/b").ok());
        assert_eq!(RelPath::parse(b"a").unwrap().parent(), None);
        assert_eq!(path.parent().unwrap().join(&path.file_name()), Ok(path.clone()));
        assert!(path.is_below(&RelPath::parse(b"a").unwrap()) && !path.is_below(&path));
        assert!(!RelPath::parse(b"ab").unwrap().is_below(&RelPath::parse(b"a").unwrap()));
        assert_eq!(path.to_path(), PathBuf::from("a/b/c.txt"));
    }

    #[test]
    fn what_people_see_moves_no_cursor_and_turns_no_text() {
        assert_eq!(escape_for_terminal("a\u{1b}[2Jb\nc\u{7f}\u{9b}"), "a\\u001B[2Jb\\u000Ac\\u007F\\u009B");
        assert_eq!(escape_for_terminal("exe.\u{202E}4pm\u{2066}"), "exe.\\u202E4pm\\u2066");
        assert_eq!(escape_for_terminal("имя 名前 é"), "имя 名前 é");
        assert_eq!(FileName::new(b"a\x1B\xFF").unwrap().to_string(), "a\\u001B\u{FFFD}");
    }

    #[test]
    fn the_type_follows_the_last_dot() {
        for (name, parts) in [
            ("got5.mp4", ("got5", "mp4")),
            ("a.tar.gz", ("a.tar", "gz")),
            ("README", ("README", "-")),
            (".profile", (".profile", "-")),
            ("end.", ("end", "-")),
        ] {
            assert_eq!(split_extension(name), parts);
        }
    }

    /// What is no UTF-8 takes three bytes for each that came: a cap on what came is none on what is kept.
    #[test]
    fn text_is_cut_after_it_was_made_and_between_characters() {
        assert_eq!(text_within(b"peerd", 64), "peerd");
        assert_eq!(text_within(&[b'v'; 200], 64), "v".repeat(64));
        assert_eq!(text_within(&[0xFF; 200], 64), "\u{FFFD}".repeat(21));
        assert_eq!(text_within("xяя".as_bytes(), 4), "xя");
        assert_eq!(text_within("xяя".as_bytes(), 5), "xяя");
        assert_eq!(text_within("😀".as_bytes(), 3), "");
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_root(bytes in prop::collection::vec(
            prop_oneof![Just(b'.'), Just(b'/'), Just(b'a'), Just(0u8), any::<u8>()], 0..40,
        )) {
            if let Ok(path) = RelPath::parse(&bytes) {
                prop_assert_eq!(path.as_bytes(), &bytes[..]);
                let plain = path.as_path().components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(plain && !bytes.contains(&0));
                prop_assert_eq!(RelPath::from_components(path.components()), Ok(path.clone()));
            }
        }
    }
}
