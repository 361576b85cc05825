//! The `.torrent` (BEP 3, 12, 27, 47), both ways, with the root keys of our own beside `info`: `Name`, `Key`, `size`,
//! `n_parts` and `Path`. Whoever reads one computes the first four from `info`; one that has all four and lies is refused.
//!
//! Everything a download will do with a torrent is decided here: names that would leave the folder, sizes that overflow,
//! pieces that do not match. What passes can be laid out on disk without looking again.

use std::ops::Range;

use sha1::{Digest, Sha1};

use super::bencode::{self, BencodeError, Dict, Encoder, Limits, List, Value};
use super::id::{InfoHash, PieceCheck};
use super::layout::{Layout, LayoutError, PieceIndex};
use super::name::{FileName, NameError, RelPath};

/// The longest `.torrent` that is read: 2 Mi pieces would need 40 MiB, but 10 MiB hold any that is passed around.
pub const MAX_TORRENT_BYTES: usize = 10 << 20;
/// A `.torrent` is five deep; other people's additions may be deeper.
const MAX_DEPTH: usize = 100;
/// Six values for each file, and room.
const MAX_TOKENS: usize = 3_000_000;
/// Files of one torrent. With [`MAX_PATHS_BYTES`] it keeps a parsed torrent under four times 10 MiB.
pub const MAX_FILES: usize = 200_000;
/// All paths together, the torrent's name in front of each.
const MAX_PATHS_BYTES: usize = 16 << 20;
/// Trackers of one torrent; those after them are not asked.
pub const MAX_TRACKERS: usize = 64;
/// A tracker's URL; a longer one is not asked.
const MAX_TRACKER_BYTES: usize = 2048;
const SHA1_BYTES: usize = 20;

const LIMITS: Limits = Limits { max_bytes: MAX_TORRENT_BYTES, max_depth: MAX_DEPTH, max_tokens: MAX_TOKENS };

/// Why bytes are not taken as a `.torrent`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    #[error("not a .torrent: {0}")]
    Bencode(#[from] BencodeError),
    #[error("not a .torrent: no dictionary at its root")]
    NotADictionary,
    #[error("the .torrent has no usable `{0}`")]
    Missing(&'static str),
    #[error("a version 2 torrent (BEP 52) without a version 1 part: these are not supported yet")]
    OnlyVersion2,
    #[error("the .torrent has both `length` and `files`")]
    LengthAndFiles,
    #[error("the .torrent's `{name}` is refused: {error}", name = .key.escape_debug())]
    Name { key: &'static str, error: NameError },
    #[error("file {index} of the .torrent is refused: {error}")]
    FileName { index: usize, error: NameError },
    #[error("file {index} of the .torrent has no usable `{key}`")]
    File { index: usize, key: &'static str },
    #[error("file {index} of the .torrent is a symbolic link: these are not created")]
    Symlink { index: usize },
    #[error("the .torrent names {0} twice, or as a file and as a folder")]
    SamePath(RelPath),
    #[error("the .torrent has more than {MAX_FILES} files, or their paths more than {MAX_PATHS_BYTES} bytes")]
    TooManyFiles,
    #[error("the .torrent's sizes add up to more than any file can have")]
    TooLarge,
    #[error("the .torrent has {0}")]
    Layout(#[from] LayoutError),
    #[error("the .torrent has {got} bytes of piece hashes where its sizes ask for {expected}")]
    Pieces { got: usize, expected: usize },
    #[error("the .torrent's `{0}` beside `info` does not agree with `info`: do not trust where it came from")]
    RootKeysLie(&'static str),
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Below the folder downloaded into; of a multi-file torrent it begins with the torrent's name.
    pub path: RelPath,
    /// Where it begins in the torrent's byte stream.
    pub offset: u64,
    /// Bytes; 0 is allowed, such a file owns no piece.
    pub len: u64,
    /// Filler between files (BEP 47): never written, hashed as zeros.
    pub padding: bool,
}

/// What the first four root keys must say, computed from `info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootKeys<'a> {
    /// `Name`
    pub name: &'a FileName,
    /// `Key`, written as 40 hex digits
    pub key: InfoHash,
    /// `size`, bytes
    pub size: u64,
    /// `n_parts`, pieces
    pub n_parts: u32,
}

/// A `.torrent` that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    raw: Box<[u8]>,
    /// Spans of `raw`.
    info: Range<usize>,
    pieces: Range<usize>,
    piece_layers: Option<Range<usize>>,
    info_hash: InfoHash,
    name: FileName,
    layout: Layout,
    files: Vec<FileEntry>,
    multi_file: bool,
    private: bool,
    announce: Option<String>,
    trackers: Vec<Vec<String>>,
    upload_path: Option<RelPath>,
}

impl Metainfo {
    /// A hybrid torrent (BEP 52) is read as the version 1 torrent that it also is. `name.utf-8` and `path.utf-8` are
    /// ignored: the bytes of `name` and `path` are what every client agrees on.
    ///
    /// # Errors
    /// When the bytes are no `.torrent`, ask for something that is refused, or lie.
    pub fn parse(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        let root = bencode::decode(bytes, &LIMITS)?.as_dict().ok_or(MetainfoError::NotADictionary)?;
        let [info, announce, announce_list, piece_layers] =
            root.get_many([b"info", b"announce", b"announce-list", b"piece layers"]);
        let info = info.and_then(Value::as_dict).ok_or(MetainfoError::Missing("info"))?;
        let parsed = Info::parse(info)?;
        let announce = announce.and_then(tracker_url);
        let mut metainfo = Metainfo {
            raw: bytes.into(),
            info: span(bytes, info.raw()),
            pieces: span(bytes, parsed.pieces),
            piece_layers: piece_layers.and_then(Value::as_dict).map(|layers| span(bytes, layers.raw())),
            info_hash: InfoHash::new(Sha1::digest(info.raw()).into()),
            name: parsed.name,
            layout: parsed.layout,
            files: parsed.files,
            multi_file: parsed.multi_file,
            private: parsed.private,
            trackers: tiers(announce.as_deref(), announce_list.and_then(Value::as_list)),
            announce,
            upload_path: None,
        };
        metainfo.upload_path = check_root_keys(root, metainfo.root_keys())?;
        Ok(metainfo)
    }

    pub const fn info_hash(&self) -> InfoHash {
        self.info_hash
    }

    /// The whole `.torrent`, as it was read.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The bytes whose SHA-1 is the info-hash.
    pub fn info_bytes(&self) -> &[u8] {
        self.raw.get(self.info.clone()).unwrap_or_default()
    }

    /// The file's name, or the folder's.
    pub const fn name(&self) -> &FileName {
        &self.name
    }

    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// How `piece` is known to be right.
    ///
    /// # Panics
    /// When the index comes from another torrent's layout and lies beyond this one's last piece.
    pub fn piece_check(&self, piece: PieceIndex) -> PieceCheck {
        let digests = self.raw.get(self.pieces.clone()).unwrap_or_default();
        let digest = digests.chunks_exact(SHA1_BYTES).nth(piece.as_usize());
        match digest.and_then(|digest| digest.try_into().ok()) {
            Some(digest) => PieceCheck::Sha1(digest),
            None => panic!("piece {piece:?} of a torrent of {} pieces", self.layout.piece_count()),
        }
    }

    /// In the order of the byte stream, which they fill without a gap.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    pub const fn is_multi_file(&self) -> bool {
        self.multi_file
    }

    /// Whether only its own trackers may name peers (BEP 27).
    pub const fn is_private(&self) -> bool {
        self.private
    }

    /// `announce` alone, if it is a URL that would be asked.
    pub fn announce(&self) -> Option<&str> {
        self.announce.as_deref()
    }

    /// The trackers in tiers (BEP 12): `announce-list` if it names any, else `announce`.
    pub fn trackers(&self) -> &[Vec<String>] {
        &self.trackers
    }

    /// The folder below upload/ in which its publisher has it: for display and search alone.
    pub const fn upload_path(&self) -> Option<&RelPath> {
        self.upload_path.as_ref()
    }

    pub const fn root_keys(&self) -> RootKeys<'_> {
        RootKeys {
            name: &self.name,
            key: self.info_hash,
            size: self.layout.total_bytes(),
            n_parts: self.layout.piece_count(),
        }
    }

    /// The same torrent with `announce` as its only tracker, our root keys written. Of what else lay beside `info` only
    /// `piece layers` stays: a hybrid torrent is not complete without it.
    pub fn with_announce(&self, announce: Option<&str>) -> Vec<u8> {
        let piece_layers = self.piece_layers.clone().and_then(|layers| self.raw.get(layers));
        write_root(self.root_keys(), self.info_bytes(), announce, self.upload_path(), piece_layers)
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn span(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start + part.len()
}

/// What is read from `info`.
struct Info<'a> {
    name: FileName,
    layout: Layout,
    pieces: &'a [u8],
    files: Vec<FileEntry>,
    multi_file: bool,
    private: bool,
}

impl<'a> Info<'a> {
    fn parse(info: Dict<'a>) -> Result<Info<'a>, MetainfoError> {
        let [name, piece_length, pieces, private, length, files, attr, version] = info.get_many([
            b"name",
            b"piece length",
            b"pieces",
            b"private",
            b"length",
            b"files",
            b"attr",
            b"meta version",
        ]);
        let Some(pieces) = pieces.and_then(Value::as_bytes) else {
            let version_2 = version.and_then(Value::as_int) == Some(2);
            return Err(if version_2 { MetainfoError::OnlyVersion2 } else { MetainfoError::Missing("pieces") });
        };
        let name = name.and_then(Value::as_bytes).ok_or(MetainfoError::Missing("name"))?;
        let name = FileName::new(name).map_err(|error| MetainfoError::Name { key: "name", error })?;
        let piece_length = piece_length.and_then(Value::as_u64).ok_or(MetainfoError::Missing("piece length"))?;
        let multi_file = files.is_some();
        let files = match (length, files) {
            (Some(_), Some(_)) => return Err(MetainfoError::LengthAndFiles),
            (None, Some(files)) => multi(&name, files.as_list().ok_or(MetainfoError::Missing("files"))?)?,
            (length, None) => vec![single(&name, length, attr)?],
        };
        let total_bytes = files.last().map_or(0, |last| last.offset + last.len);
        let layout = Layout::new(total_bytes, piece_length)?;
        let expected = layout.piece_count() as usize * SHA1_BYTES;
        if pieces.len() != expected {
            return Err(MetainfoError::Pieces { got: pieces.len(), expected });
        }
        // Whatever is not plainly "no" is taken as private: what leaked cannot be taken back.
        let private = private.is_some_and(|private| private != Value::Int(0));
        Ok(Info { name, layout, pieces, files, multi_file, private })
    }
}

fn single(name: &FileName, length: Option<Value<'_>>, attr: Option<Value<'_>>) -> Result<FileEntry, MetainfoError> {
    if has_attr(attr, b'l') {
        return Err(MetainfoError::Symlink { index: 0 });
    }
    let len = length.and_then(Value::as_u64).ok_or(MetainfoError::Missing("length"))?;
    Ok(FileEntry { path: name.clone().into(), offset: 0, len, padding: false })
}

fn multi(name: &FileName, list: List<'_>) -> Result<Vec<FileEntry>, MetainfoError> {
    // Room for exactly as many: grown by doubling they would take more than four times their bytes.
    let mut files = Vec::with_capacity(list.iter().take(MAX_FILES).count());
    let mut offset: u64 = 0;
    let mut paths_bytes = 0;
    for (index, file) in list.iter().enumerate() {
        let file = file.as_dict().ok_or(MetainfoError::File { index, key: "path" })?;
        let [len, path, attr] = file.get_many([b"length", b"path", b"attr"]);
        if has_attr(attr, b'l') {
            return Err(MetainfoError::Symlink { index });
        }
        let len = len.and_then(Value::as_u64).ok_or(MetainfoError::File { index, key: "length" })?;
        let path = path.and_then(Value::as_list).ok_or(MetainfoError::File { index, key: "path" })?;
        let path = file_path(name, path, index)?;
        paths_bytes += path.as_bytes().len();
        if index >= MAX_FILES || paths_bytes > MAX_PATHS_BYTES {
            return Err(MetainfoError::TooManyFiles);
        }
        files.push(FileEntry { path, offset, len, padding: has_attr(attr, b'p') });
        // Offsets are also `off_t`s: signed.
        offset = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok()).ok_or(MetainfoError::TooLarge)?;
    }
    if files.is_empty() {
        return Err(MetainfoError::Missing("files"));
    }
    refuse_same_paths(&files)?;
    Ok(files)
}

fn file_path(name: &FileName, components: List<'_>, index: usize) -> Result<RelPath, MetainfoError> {
    let mut path = vec![name.as_bytes()];
    for component in components {
        path.push(component.as_bytes().ok_or(MetainfoError::File { index, key: "path" })?);
        if path.len() > super::name::MAX_PATH_DEPTH {
            return Err(MetainfoError::FileName { index, error: NameError::TooDeep });
        }
    }
    if path.len() == 1 {
        return Err(MetainfoError::File { index, key: "path" });
    }
    RelPath::from_components(path).map_err(|error| MetainfoError::FileName { index, error })
}

/// Whether BEP 47's `attr` has this letter.
fn has_attr(attr: Option<Value<'_>>, letter: u8) -> bool {
    attr.and_then(Value::as_bytes).is_some_and(|attr| attr.contains(&letter))
}

/// No path may be there twice, nor be a folder of another. Padding is never written and may repeat itself.
fn refuse_same_paths(files: &[FileEntry]) -> Result<(), MetainfoError> {
    let mut paths: Vec<&RelPath> = Vec::with_capacity(files.len());
    paths.extend(files.iter().filter(|file| !file.padding).map(|file| &file.path));
    // Compared name by name, what lies below a path follows it directly.
    paths.sort_unstable_by(|a, b| a.components().cmp(b.components()));
    for pair in paths.windows(2) {
        if let [a, b] = pair
            && (a == b || b.is_below(a))
        {
            return Err(MetainfoError::SamePath((*a).clone()));
        }
    }
    Ok(())
}

fn tracker_url(value: Value<'_>) -> Option<String> {
    let url = value.as_str()?.trim();
    (!url.is_empty() && url.len() <= MAX_TRACKER_BYTES).then(|| url.to_owned())
}

/// BEP 12: a tracker counts where it is named first, tiers keep their order.
fn tiers(announce: Option<&str>, list: Option<List<'_>>) -> Vec<Vec<String>> {
    let mut tiers: Vec<Vec<String>> = Vec::new();
    let mut count = 0;
    for tier in list.into_iter().flatten().filter_map(Value::as_list) {
        let mut urls: Vec<String> = Vec::new();
        for url in tier.iter().filter_map(tracker_url) {
            if count == MAX_TRACKERS {
                break;
            }
            if !urls.contains(&url) && !tiers.iter().flatten().any(|known| *known == url) {
                urls.push(url);
                count += 1;
            }
        }
        if !urls.is_empty() {
            tiers.push(urls);
        }
    }
    if tiers.is_empty() {
        tiers.extend(announce.map(|url| vec![url.to_owned()]));
    }
    tiers
}

/// Holds the root keys against `info`; returns `Path`. A `.torrent` without all of the first four is not ours, and what
/// it means by the others is its own affair.
fn check_root_keys(root: Dict<'_>, truth: RootKeys<'_>) -> Result<Option<RelPath>, MetainfoError> {
    let [name, key, size, n_parts, path] = root.get_many([b"Name", b"Key", b"size", b"n_parts", b"Path"]);
    let (Some(name), Some(key), Some(size), Some(n_parts)) = (name, key, size, n_parts) else {
        return Ok(None);
    };
    let key = key.as_str().and_then(|hex| hex.parse::<InfoHash>().ok());
    for (root_key, agrees) in [
        ("Name", name.as_bytes() == Some(truth.name.as_bytes())),
        ("Key", key == Some(truth.key)),
        ("size", size.as_u64() == Some(truth.size)),
        ("n_parts", n_parts.as_u64() == Some(u64::from(truth.n_parts))),
    ] {
        if !agrees {
            return Err(MetainfoError::RootKeysLie(root_key));
        }
    }
    let Some(path) = path else { return Ok(None) };
    let path = path.as_bytes().ok_or(MetainfoError::Missing("Path"))?;
    RelPath::parse(path).map(Some).map_err(|error| MetainfoError::Name { key: "Path", error })
}

fn write_root(
    keys: RootKeys<'_>,
    info: &[u8],
    announce: Option<&str>,
    upload_path: Option<&RelPath>,
    piece_layers: Option<&[u8]>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(info.len() + piece_layers.map_or(0, <[u8]>::len) + 1024);
    Encoder::new(&mut out).dict(|root| {
        root.bytes(b"Key", keys.key.to_hex().as_bytes());
        root.bytes(b"Name", keys.name.as_bytes());
        if let Some(path) = upload_path {
            root.bytes(b"Path", path.as_bytes());
        }
        if let Some(url) = announce {
            root.bytes(b"announce", url.as_bytes());
        }
        root.raw(b"info", info);
        root.int(b"n_parts", i64::from(keys.n_parts));
        if let Some(layers) = piece_layers {
            root.raw(b"piece layers", layers);
        }
        // A layout's total was an i64 when it was read or written.
        root.int(b"size", i64::try_from(keys.size).unwrap_or(i64::MAX));
    });
    out
}

/// What a torrent is made of.
#[derive(Clone, Debug)]
pub struct InfoSpec {
    /// The file's or the folder's.
    pub name: FileName,
    pub files: SpecFiles,
    /// By [`super::recipe::piece_bytes_for`] for everything of ours.
    pub piece_bytes: u32,
    /// One for each piece, in order.
    pub pieces: Vec<PieceCheck>,
    /// Only its tracker may name peers (BEP 27).
    pub private: bool,
}

/// One file, or those of a folder.
#[derive(Clone, Debug)]
pub enum SpecFiles {
    /// Bytes.
    Single(u64),
    /// Paths below the folder and bytes, in the order in which they were hashed.
    Multi(Vec<(RelPath, u64)>),
}

/// Why no torrent was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("a size that no torrent can state")]
    TooLarge,
    /// What would be written could not be read again.
    #[error("cannot make a .torrent: {0}")]
    Refused(#[from] MetainfoError),
}

/// Writes a canonical `.torrent`. `info` holds exactly `files` or `length`, `name`, `piece length`, `pieces`, and
/// `private` = 1 if the torrent is private; neither `announce` nor `upload_path` touch the key.
///
/// # Errors
/// When a reader would refuse the result: no files, piece hashes that do not match the sizes, colliding paths.
pub fn build(spec: &InfoSpec, announce: Option<&str>, upload_path: Option<&RelPath>) -> Result<Vec<u8>, BuildError> {
    let info = write_info(spec)?;
    let total_bytes = match &spec.files {
        SpecFiles::Single(len) => *len,
        SpecFiles::Multi(files) => {
            files.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len)).unwrap_or(u64::MAX)
        }
    };
    let layout = Layout::new(total_bytes, u64::from(spec.piece_bytes)).map_err(MetainfoError::Layout)?;
    let keys = RootKeys {
        name: &spec.name,
        key: InfoHash::new(Sha1::digest(&info).into()),
        size: total_bytes,
        n_parts: layout.piece_count(),
    };
    let torrent = write_root(keys, &info, announce, upload_path, None);
    Metainfo::parse(&torrent)?;
    Ok(torrent)
}

fn write_info(spec: &InfoSpec) -> Result<Vec<u8>, BuildError> {
    let int = |len: u64| i64::try_from(len).map_err(|_| BuildError::TooLarge);
    let mut digests = Vec::with_capacity(spec.pieces.len() * SHA1_BYTES);
    for PieceCheck::Sha1(digest) in &spec.pieces {
        digests.extend_from_slice(digest);
    }
    let (length, files) = match &spec.files {
        SpecFiles::Single(len) => (Some(int(*len)?), None),
        SpecFiles::Multi(files) => {
            let files: Result<Vec<(&RelPath, i64)>, BuildError> =
                files.iter().map(|(path, len)| Ok((path, int(*len)?))).collect();
            (None, Some(files?))
        }
    };
    let mut out = Vec::with_capacity(digests.len() + 512);
    Encoder::new(&mut out).dict(|info| {
        if let Some(files) = files {
            info.list(b"files", |list| files.into_iter().for_each(|(path, len)| write_file(list, path, len)));
        }
        if let Some(length) = length {
            info.int(b"length", length);
        }
        info.bytes(b"name", spec.name.as_bytes());
        info.int(b"piece length", i64::from(spec.piece_bytes));
        info.bytes(b"pieces", &digests);
        if spec.private {
            info.int(b"private", 1);
        }
    });
    Ok(out)
}

fn write_file(list: &mut Encoder<'_>, path: &RelPath, len: i64) {
    list.dict(|file| {
        file.int(b"length", len);
        file.list(b"path", |out| path.components().for_each(|component| out.bytes(component)));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn torrent(info: &str) -> Vec<u8> {
        format!("d4:info{info}e").into_bytes()
    }

    const DIGEST: &str = "aaaaaaaaaaaaaaaaaaaa";

    fn single_info(name: &str, len: &str, piece_length: &str, digests: usize) -> Vec<u8> {
        let pieces = DIGEST.repeat(digests);
        torrent(&format!(
            "d6:lengthi{len}e4:name{}:{name}12:piece lengthi{piece_length}e6:pieces{}:{pieces}e",
            name.len(),
            pieces.len()
        ))
    }

    /// A folder `n` of files; each is its `path` list and what else its dictionary holds before it.
    fn multi_info(files: &[(&str, &str)], digests: usize) -> Vec<u8> {
        let list: String = files.iter().map(|(before, path)| format!("d{before}4:pathl{path}ee")).collect();
        let pieces = DIGEST.repeat(digests);
        torrent(&format!("d5:filesl{list}e4:name1:n12:piece lengthi65536e6:pieces{}:{pieces}e", pieces.len()))
    }

    fn name(name: &str) -> FileName {
        FileName::new(name.as_bytes()).unwrap()
    }

    fn path(path: &str) -> RelPath {
        RelPath::parse(path.as_bytes()).unwrap()
    }

    fn error(bytes: &[u8]) -> MetainfoError {
        Metainfo::parse(bytes).unwrap_err()
    }

    #[test]
    fn the_same_file_gives_the_same_key_to_the_byte() {
        // What "abc" is when somebody drops it into upload/.
        let abc: [u8; 20] = Sha1::digest(b"abc").into();
        let spec = InfoSpec {
            name: name("abc.txt"),
            files: SpecFiles::Single(3),
            piece_bytes: crate::wire::recipe::piece_bytes_for(3),
            pieces: vec![PieceCheck::Sha1(abc)],
            private: true,
        };
        let info = [
            &b"d6:lengthi3e4:name7:abc.txt12:piece lengthi65536e6:pieces20:"[..],
            b"\xa9\x99\x3e\x36\x47\x06\x81\x6a\xba\x3e\x25\x71\x78\x50\xc2\x6c\x9c\xd0\xd8\x9d",
            b"7:privatei1ee",
        ]
        .concat();
        let key = "7285196f0ebcd822363dd346917a03fdaa145484";
        let expected = [
            format!("d3:Key40:{key}4:Name7:abc.txt4:Path5:a/b c8:announce24:http://10.0.0.1:6969/ann4:info").as_bytes(),
            &info,
            b"7:n_partsi1e4:sizei3ee",
        ]
        .concat();
        let made = build(&spec, Some("http://10.0.0.1:6969/ann"), Some(&path("a/b c"))).unwrap();
        assert_eq!(made.escape_ascii().to_string(), expected.escape_ascii().to_string());
        let bare = build(&spec, None, None).unwrap();
        let (made, bare) = (Metainfo::parse(&made).unwrap(), Metainfo::parse(&bare).unwrap());
        assert_eq!(made.info_hash().to_hex(), key);
        assert_eq!(bare.info_hash(), made.info_hash());
        assert_eq!((bare.upload_path(), bare.announce()), (None, None));
        let public = Metainfo::parse(&build(&InfoSpec { private: false, ..spec }, None, None).unwrap()).unwrap();
        assert_ne!(public.info_hash(), made.info_hash());
        assert_eq!(public.info_bytes().len(), info.len() - b"7:privatei1e".len());
    }

    #[test]
    fn a_folder_is_laid_out_in_its_order() {
        let spec = InfoSpec {
            name: name("dir"),
            files: SpecFiles::Multi(vec![(path("a"), 70_000), (path("b/empty"), 0), (path("b/z"), 5)]),
            piece_bytes: 65_536,
            pieces: vec![PieceCheck::Sha1([1; 20]), PieceCheck::Sha1([2; 20])],
            private: false,
        };
        let made = build(&spec, None, None).unwrap();
        let expected = "5:filesld6:lengthi70000e4:pathl1:aeed6:lengthi0e4:pathl1:b5:emptyeed6:lengthi5e4:pathl1:b1:zeee4:name3:dir";
        assert!(made.escape_ascii().to_string().contains(expected));
        let read = Metainfo::parse(&made).unwrap();
        assert_eq!(read.files.capacity(), 3, "room for more files than there are");
        assert!(read.is_multi_file() && !read.is_private());
        let entry = |at: &str, offset, len| FileEntry { path: path(at), offset, len, padding: false };
        assert_eq!(
            read.files(),
            [entry("dir/a", 0, 70_000), entry("dir/b/empty", 70_000, 0), entry("dir/b/z", 70_000, 5)]
        );
        let checks: Vec<PieceCheck> = read.layout().pieces().map(|piece| read.piece_check(piece)).collect();
        assert_eq!(checks, spec.pieces);
    }

    #[test]
    fn what_cannot_be_read_is_not_made() {
        let spec = |files, pieces: usize| InfoSpec {
            name: name("n"),
            files,
            piece_bytes: 65_536,
            pieces: vec![PieceCheck::Sha1([0; 20]); pieces],
            private: true,
        };
        let refused = |files, pieces| build(&spec(files, pieces), None, None).unwrap_err();
        assert_eq!(
            refused(SpecFiles::Single(65_537), 1),
            BuildError::Refused(MetainfoError::Pieces { got: 20, expected: 40 })
        );
        assert_eq!(refused(SpecFiles::Single(u64::MAX), 0), BuildError::TooLarge);
        assert_eq!(refused(SpecFiles::Multi(vec![]), 0), BuildError::Refused(MetainfoError::Missing("files")));
        let twice = SpecFiles::Multi(vec![(path("a"), 0), (path("a/b"), 0)]);
        assert_eq!(refused(twice, 0), BuildError::Refused(MetainfoError::SamePath(path("n/a"))));
    }

    #[test]
    fn with_announce_changes_the_tracker_and_nothing_else() {
        let foreign = b"d8:announce9:udp://a:113:announce-listll9:udp://b:1ee7:comment2:hi4:infod6:lengthi0e4:name1:n12:piece lengthi65536e6:pieces0:e12:piece layersdee";
        let read = Metainfo::parse(foreign).unwrap();
        assert_eq!(read.trackers(), [["udp://b:1"]], "BEP 12: the list is asked in place of announce");
        assert_eq!(read.announce(), Some("udp://a:1"));
        let key = read.info_hash();
        let expected = format!(
            "d3:Key40:{key}4:Name1:n8:announce9:udp://c:14:infod6:lengthi0e4:name1:n12:piece lengthi65536e6:pieces0:e\
             7:n_partsi0e12:piece layersde4:sizei0ee"
        );
        let ours = read.with_announce(Some("udp://c:1"));
        assert_eq!(ours.escape_ascii().to_string(), expected);
        let again = Metainfo::parse(&ours).unwrap();
        assert_eq!((again.info_hash(), again.trackers()), (key, &[vec!["udp://c:1".to_owned()]][..]));
        assert_eq!(again.with_announce(Some("udp://c:1")), ours);
        assert!(Metainfo::parse(&read.with_announce(None)).unwrap().trackers().is_empty());
    }

    #[test]
    fn root_keys_that_lie_are_refused() {
        let honest = Metainfo::parse(&single_info("got5.mp4", "70000", "65536", 2)).unwrap().with_announce(None);
        let honest = String::from_utf8(honest).unwrap();
        let key = Metainfo::parse(honest.as_bytes()).unwrap().info_hash().to_hex();
        let other_key = key.replace(char::is_numeric, "f");
        let lies = [
            ("Name", "4:Name8:got5.mp4", "4:Name8:got6.mp4"),
            ("Name", "4:Name8:got5.mp4", "4:Namei5e"),
            ("Key", &key, &other_key),
            ("Key", &format!("40:{key}"), "2:ab"),
            ("size", "4:sizei70000e", "4:sizei70001e"),
            ("size", "4:sizei70000e", "4:sizei-1e"),
            ("n_parts", "7:n_partsi2e", "7:n_partsi3e"),
        ];
        for (root_key, truth, lie) in lies {
            assert!(honest.contains(truth), "{truth}");
            let lying = honest.replacen(truth, lie, 1);
            assert_eq!(error(lying.as_bytes()), MetainfoError::RootKeysLie(root_key), "{lie}");
        }
        let with_path = |path: &str| honest.replacen("4:info", &format!("4:Path{}:{path}4:info", path.len()), 1);
        assert_eq!(Metainfo::parse(with_path("a/b").as_bytes()).unwrap().upload_path(), Some(&path("a/b")));
        for (bad, error_is) in [("../x", NameError::Dots), ("/x", NameError::Empty), ("", NameError::Empty)] {
            let refused = MetainfoError::Name { key: "Path", error: error_is };
            assert_eq!(error(with_path(bad).as_bytes()), refused, "{bad}");
        }
        let deep = vec!["d"; 65].join("/");
        assert!(matches!(error(with_path(&deep).as_bytes()), MetainfoError::Name { error: NameError::TooDeep, .. }));
        let other_meaning = honest.replacen("7:n_partsi2e", "", 1).replacen("i70000ee", "i1ee", 1);
        assert!(Metainfo::parse(other_meaning.as_bytes()).is_ok(), "without all four they are somebody else's keys");
    }

    #[test]
    fn sizes_that_do_not_add_up_are_refused() {
        for piece_length in ["0", "1", "3", "16383", "67108865", "2147483648"] {
            let refused = LayoutError::PieceLength(piece_length.parse().unwrap());
            assert_eq!(error(&single_info("n", "1", piece_length, 1)), MetainfoError::Layout(refused));
        }
        assert_eq!(error(&single_info("n", "1", "-1", 1)), MetainfoError::Missing("piece length"));
        assert_eq!(error(&single_info("n", "-1", "65536", 1)), MetainfoError::Missing("length"));
        for (len, digests) in [("65537", 1), ("65536", 2), ("0", 1), ("1", 0)] {
            assert!(matches!(error(&single_info("n", len, "65536", digests)), MetainfoError::Pieces { .. }), "{len}");
        }
        let huge = single_info("n", "9223372036854775807", "65536", 1);
        assert!(matches!(error(&huge), MetainfoError::Layout(LayoutError::TooManyPieces(_))));
        let cut = String::from_utf8(single_info("n", "1", "65536", 1)).unwrap().replace("20:aaaaa", "15:");
        assert_eq!(error(cut.as_bytes()), MetainfoError::Pieces { got: 15, expected: 20 });
        let half = "6:lengthi4611686018427387904e";
        assert_eq!(error(&multi_info(&[(half, "1:a"), (half, "1:b")], 1)), MetainfoError::TooLarge);
        assert!(Metainfo::parse(&single_info("n", "0", "65536", 0)).is_ok());
        assert!(Metainfo::parse(&single_info("n", "5000000000", "4194304", 1193)).is_ok());
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let long = "n".repeat(300);
        for (bad, is) in [
            ("", NameError::Empty),
            (".", NameError::Dots),
            ("..", NameError::Dots),
            ("/etc", NameError::Separator),
            ("a\0", NameError::Separator),
            (&long, NameError::TooLong(300)),
        ] {
            assert_eq!(error(&single_info(bad, "1", "65536", 1)), MetainfoError::Name { key: "name", error: is });
            let component = format!("1:a{}:{bad}", bad.len());
            let in_path = multi_info(&[("6:lengthi1e", "1:x"), ("6:lengthi1e", &component)], 1);
            assert_eq!(error(&in_path), MetainfoError::FileName { index: 1, error: is });
        }
        let deep = multi_info(&[("6:lengthi1e", &"1:d".repeat(64))], 1);
        assert_eq!(error(&deep), MetainfoError::FileName { index: 0, error: NameError::TooDeep });
        assert_eq!(error(&multi_info(&[("6:lengthi1e", "")], 1)), MetainfoError::File { index: 0, key: "path" });
        assert_eq!(error(&multi_info(&[("6:lengthi1e", "i1e")], 1)), MetainfoError::File { index: 0, key: "path" });
        assert_eq!(error(&multi_info(&[("", "1:a")], 1)), MetainfoError::File { index: 0, key: "length" });
    }

    #[test]
    fn files_in_each_others_way_are_refused() {
        let len = "6:lengthi1e";
        for paths in [["1:a", "1:a"], ["1:a", "1:a1:b"], ["1:a1:b", "1:a"], ["1:a1:b1:c", "1:a1:b"]] {
            let files: Vec<(&str, &str)> = [paths[0], "3:a-b", paths[1]].map(|path| (len, path)).to_vec();
            assert!(matches!(error(&multi_info(&files, 1)), MetainfoError::SamePath(_)), "{paths:?}");
        }
        assert!(Metainfo::parse(&multi_info(&[(len, "1:a1:b"), (len, "1:a1:c"), (len, "2:ab")], 1)).is_ok());
    }

    #[test]
    fn links_are_refused_and_padding_is_marked() {
        let link = multi_info(&[("4:attr1:l6:lengthi0e", "1:a")], 0);
        assert_eq!(error(&link), MetainfoError::Symlink { index: 0 });
        let pad = "4:attr1:p6:lengthi9e";
        let padded = Metainfo::parse(&multi_info(
            &[("6:lengthi1e", "1:a"), (pad, "4:.pad1:9"), ("6:lengthi1e", "1:b"), (pad, "4:.pad1:9")],
            1,
        ));
        let padding: Vec<bool> = padded.unwrap().files().iter().map(|file| file.padding).collect();
        assert_eq!(padding, [false, true, false, true]);
    }

    #[test]
    fn versions_and_shapes() {
        let v2 = torrent("d9:file treede12:meta versioni2e4:name1:n12:piece lengthi65536ee");
        assert_eq!(error(&v2), MetainfoError::OnlyVersion2);
        let hybrid = torrent(&format!(
            "d9:file treede6:lengthi1e12:meta versioni2e4:name1:n12:piece lengthi65536e6:pieces20:{DIGEST}e"
        ));
        assert!(Metainfo::parse(&hybrid).is_ok());
        let both = torrent("d5:filesle6:lengthi0e4:name1:n12:piece lengthi65536e6:pieces0:e");
        assert_eq!(error(&both), MetainfoError::LengthAndFiles);
        assert_eq!(error(&torrent("de")), MetainfoError::Missing("pieces"));
        assert_eq!(error(b"de"), MetainfoError::Missing("info"));
        assert_eq!(error(b"le"), MetainfoError::NotADictionary);
        assert!(matches!(error(b"<html>"), MetainfoError::Bencode(_)));
        let unsorted = torrent(&format!("d6:pieces20:{DIGEST}6:lengthi1e4:name1:n12:piece lengthi65536e7:privatei1ee"));
        let unsorted_read = Metainfo::parse(&unsorted).unwrap();
        assert_eq!(unsorted_read.info_hash(), InfoHash::new(Sha1::digest(&unsorted[7..unsorted.len() - 1]).into()));
        assert!(unsorted_read.is_private());
        let utf8 = torrent("d6:lengthi0e4:name1:\u{7f}10:name.utf-82:..12:piece lengthi65536e6:pieces0:e");
        assert_eq!(Metainfo::parse(&utf8).unwrap().name().as_bytes(), b"\x7f");
    }

    #[test]
    fn trackers_are_capped() {
        let list: String = (0..100).map(|n| format!("l9:udp://{n:03}e")).collect();
        let long = format!("{}:{}", MAX_TRACKER_BYTES + 1, "x".repeat(MAX_TRACKER_BYTES + 1));
        let info = "4:infod6:lengthi0e4:name1:n12:piece lengthi65536e6:pieces0:e";
        let many = format!("d13:announce-listl9:not-a-tierl{long}el1:a1:aee{info}e").replace("9:not", "10:not");
        assert_eq!(Metainfo::parse(many.as_bytes()).unwrap().trackers(), [["a"]]);
        let many = format!("d13:announce-listl{list}e{info}e");
        assert_eq!(Metainfo::parse(many.as_bytes()).unwrap().trackers().len(), MAX_TRACKERS);
    }

    #[test]
    fn file_counts_are_capped() {
        let file = |n: usize| format!("d6:lengthi0e4:pathl6:{n:06}ee");
        let list: String = (0..=MAX_FILES).map(file).collect();
        let bytes = torrent(&format!("d5:filesl{list}e4:name1:n12:piece lengthi65536e6:pieces0:e"));
        assert_eq!(error(&bytes), MetainfoError::TooManyFiles);
        let name = "n".repeat(255);
        let list: String = (0..70_000).map(file).collect();
        let bytes = torrent(&format!("d5:filesl{list}e4:name255:{name}12:piece lengthi65536e6:pieces0:e"));
        assert_eq!(error(&bytes), MetainfoError::TooManyFiles, "a long name in front of each");
    }

    #[test]
    fn mutated_torrents_neither_panic_nor_lie() {
        let corpus = [
            single_info("got5.mp4", "70000", "65536", 2),
            multi_info(&[("6:lengthi1e", "1:a"), ("4:attr1:p6:lengthi9e", "4:.pad1:9"), ("6:lengthi1e", "1:b")], 1),
            Metainfo::parse(&single_info("n", "1", "65536", 1)).unwrap().with_announce(Some("udp://a:1")),
        ];
        let mut rng = SmallRng::seed_from_u64(7);
        let mut accepted = 0;
        for round in 0..30_000 {
            let mut bytes = corpus[round % corpus.len()].clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] = rng.random(),
                    1 => bytes[at] = b"deil0123456789:-"[rng.random_range(0..16)],
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(4)),
                }
            }
            let Ok(read) = Metainfo::parse(&bytes) else { continue };
            accepted += 1;
            assert_eq!(read.raw(), bytes);
            let ours = Metainfo::parse(&read.with_announce(None)).unwrap();
            assert_eq!((ours.info_hash(), ours.files()), (read.info_hash(), read.files()));
            let checks: Vec<PieceCheck> = ours.layout().pieces().map(|piece| ours.piece_check(piece)).collect();
            assert_eq!(checks.len(), ours.root_keys().n_parts as usize);
        }
        assert!(accepted > 1000, "only {accepted} mutations were accepted: the test looks at nothing");
    }
}
