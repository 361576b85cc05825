//! The `.torrent`.

use peerd::wire::id::PieceCheck;
use peerd::wire::metainfo::{self, InfoSpec, Metainfo, MetainfoError, SpecFiles};
use peerd::wire::name::{MAX_NAME_BYTES, RelPath};

use super::bounds::{SLACK_BYTES, bounded_by};

/// The fewest bytes in which a `.torrent` can name a file.
const FILE_BYTES: usize = b"d6:lengthi0e4:pathl1:aee".len();

/// Strict about `info`, whose bytes are the identity: they are kept as they came. Lenient about what lies beside it:
/// what is not ours is passed over, and gone from what is written.
///
/// Beside four times the input it may allocate the torrent's name once for each file, for every path begins with it;
/// `MAX_PATHS_BYTES` bounds that.
pub fn run(input: &[u8]) {
    check(input, Metainfo::parse);
}

pub fn check(input: &[u8], decode: impl Fn(&[u8]) -> Result<Metainfo, MetainfoError>) {
    let slack = SLACK_BYTES + input.len() / FILE_BYTES * MAX_NAME_BYTES;
    let Ok(torrent) = bounded_by(input, slack, || decode(input)) else { return };
    assert_eq!(torrent.raw(), input);
    check_layout(&torrent);

    let written = torrent.with_announce(torrent.announce());
    let read = Metainfo::parse(&written).expect("what was written is read");
    assert_eq!(read.info_bytes(), torrent.info_bytes());
    assert_eq!(read.root_keys(), torrent.root_keys());
    assert_eq!(read.files(), torrent.files());
    assert_eq!(read.announce(), torrent.announce());
    assert_eq!(read.upload_path(), torrent.upload_path());
    assert_eq!((read.is_private(), read.is_multi_file()), (torrent.is_private(), torrent.is_multi_file()));
    assert_eq!(read.with_announce(read.announce()), written);
    made_again(&torrent);
}

/// What was read can be made by our own writer, but for padding, which it does not know: that may repeat a path.
fn made_again(torrent: &Metainfo) {
    if torrent.files().iter().any(|file| file.padding) {
        return;
    }
    let below = |path: &RelPath| RelPath::from_components(path.components().skip(1)).expect("names that were checked");
    let files = match torrent.files() {
        [file] if !torrent.is_multi_file() => SpecFiles::Single(file.len),
        files => SpecFiles::Multi(files.iter().map(|file| (below(&file.path), file.len)).collect()),
    };
    let layout = torrent.layout();
    let spec = InfoSpec {
        name: torrent.name().clone(),
        files,
        piece_bytes: layout.piece_bytes(),
        pieces: layout.pieces().map(|piece| torrent.piece_check(piece)).collect(),
        private: torrent.is_private(),
    };
    let made = metainfo::build(&spec, torrent.announce(), torrent.upload_path()).expect("what was read can be made");
    let made = Metainfo::parse(&made).expect("what was made is read");
    assert_eq!((made.layout(), made.files()), (layout, torrent.files()));
    assert_eq!((made.is_private(), made.upload_path()), (torrent.is_private(), torrent.upload_path()));
    assert_eq!(made.info_hash() == torrent.info_hash(), made.info_bytes() == torrent.info_bytes());
}

/// The files fill the pieces, and lie where they may.
fn check_layout(torrent: &Metainfo) {
    let mut end = 0;
    for file in torrent.files() {
        assert_eq!(file.offset, end);
        end += file.len;
        assert_eq!(RelPath::parse(file.path.as_bytes()).as_ref(), Ok(&file.path));
        assert_eq!(file.path.components().next(), Some(torrent.name().as_bytes()));
        assert_eq!(file.path.components().count() > 1, torrent.is_multi_file());
    }
    let layout = torrent.layout();
    assert_eq!(layout.total_bytes(), end);
    let in_pieces: u64 = layout.pieces().map(|piece| u64::from(layout.piece_len(piece))).sum();
    assert_eq!(in_pieces, end);
    let checks = layout.pieces().map(|piece| torrent.piece_check(piece));
    let digests: Vec<u8> = checks.flat_map(|PieceCheck::Sha1(digest)| digest).collect();
    assert!(digests.is_empty() || torrent.info_bytes().windows(digests.len()).any(|window| window == digests));
}
