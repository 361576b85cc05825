//! What `peerctl` and `peerd` say to each other over the Unix socket. Both sides of one frame, bytes to types:
//!
//! ```text
//! length u32 | version u16 | request id u32 | kind u16 | payload (postcard)
//! ```
//!
//! Numbers are big-endian; `length` counts what follows it, at most [`MAX_FRAME_BYTES`]. The client chooses the request
//! id; every frame of the answer repeats it. The highest bit of `kind`, [`LAST`], marks the last frame of a request and
//! the last frame of an answer. A request is one frame, preceded by frames of the kind [`CHUNK`] when it carries a
//! `.torrent`; an answer is any number of frames. An answer with request id 0 concerns the connection.
//!
//! **Kinds are only added, never changed**: a payload that needs another field becomes another kind. The test at the
//! foot of `control/kinds.rs` holds the bytes of each. An unknown kind is answered [`Answer::Unsupported`].

mod frame;
mod kinds;
#[cfg(test)]
pub mod samples;

pub use frame::{
    AnswerDecoder, EncodeError, Frame, FrameDecoder, FrameError, Received, ReceivedAnswer, RequestDecoder,
};
pub use frame::{encode_answer, encode_request};
pub use kinds::{Answer, Request};

use super::catalogue::{self, Match, key_serde};
use super::id::InfoHash;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The envelope's version. It changes only when frames could no longer be told apart; new commands are new kinds.
pub const VERSION: u16 = 1;
/// `length` of a frame at most: what one side can make the other hold.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Bytes of the envelope after `length`.
pub const ENVELOPE_BYTES: usize = 8;
/// The bit of `kind` that marks the last frame of a request or an answer.
pub const LAST: u16 = 0x8000;
/// The kind of a frame that carries a part of a `.torrent`, raw, ahead of the request that speaks of it.
pub const CHUNK: u16 = 0x00FF;
/// Bytes of one part of a `.torrent`: well inside a frame.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes of a `.torrent` at most, as everywhere.
pub const MAX_TORRENT_BYTES: usize = 10 << 20;
/// Bytes of rows after which a long answer begins another frame: far enough below the cap for any one row.
pub const ROWS_BYTES: usize = 256 * 1024;
/// Bytes that fit a Unix socket's address (`sun_path` has 108 with the NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where `peerctl` looks for a daemon that it was not told about, and where a daemon links its socket: the user's
/// runtime folder when there is one.
pub fn well_known_socket(runtime_dir: Option<&Path>, uid: u32) -> PathBuf {
    runtime_dir.map_or_else(|| private_dir(uid), Path::to_path_buf).join("peerd.sock")
}

/// The folder that takes the runtime folder's part where there is none. Both sides use it only when it is the user's
/// own and nobody else can enter it.
pub fn private_dir(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/peerd-{uid}"))
}

/// A path as the file system has it. In JSON it is text, bytes that are not UTF-8 replaced.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PathBytes(pub Vec<u8>);

impl PathBytes {
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0.clone()))
    }

    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl<P: AsRef<Path>> From<P> for PathBytes {
    fn from(path: P) -> PathBytes {
        PathBytes(path.as_ref().as_os_str().as_bytes().to_vec())
    }
}

impl Serialize for PathBytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.serialize_str(&self.to_text()) } else { to.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for PathBytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PathBytes, D::Error> {
        if from.is_human_readable() {
            Ok(PathBytes(String::deserialize(from)?.into_bytes()))
        } else {
            Ok(PathBytes(<&[u8]>::deserialize(from)?.to_vec()))
        }
    }
}

// ---- Requests ------------------------------------------------------------------------------------------------------

/// Which torrent a command means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum What {
    /// The bytes of a `.torrent`. They travel ahead of the request, in [`CHUNK`]s; here they are put together.
    Torrent(#[serde(skip)] Vec<u8>),
    InfoHash(#[serde(with = "key_serde")] InfoHash),
    /// For `get` and `show`, words for the search; for the other commands a name among the daemon's own torrents.
    Words(String),
}

/// `get`: fetch a torrent. Answered by [`Started`], [`Progress`] about once a second and [`Done`], or by candidates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Get {
    pub what: What,
    /// An absolute folder; the daemon's download folder if absent.
    pub to: Option<PathBytes>,
    /// End the answer with [`Started`].
    pub detach: bool,
}

/// `search`: answered by [`Answer::SearchTotal`] and [`Answer::SearchHits`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Search {
    /// Empty: the newest on the tracker.
    pub words: String,
    /// Hits wanted.
    pub limit: u32,
    /// Hits skipped.
    pub offset: u32,
}

/// `remove`: forget a torrent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remove {
    pub what: What,
    /// Delete its files too.
    pub data: bool,
    /// Even files in upload/.
    pub yes: bool,
}

/// `share`: share a file or folder where it lies, or publish a `.torrent`. Answered by [`Progress`] and [`Shared`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// Absolute.
    pub path: PathBytes,
    /// Make a torrent that any client may announce anywhere: not private (BEP 27).
    pub public: bool,
}

// ---- Answers -------------------------------------------------------------------------------------------------------

/// What kind of failure it is; `peerctl` exits with its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// 1
    Failed,
    /// 2: the command cannot be meant so.
    Usage,
    /// 4
    NotFound,
    /// 5
    Ambiguous,
}

impl FailureClass {
    pub const fn exit_code(self) -> u8 {
        match self {
            FailureClass::Failed => 1,
            FailureClass::Usage => 2,
            FailureClass::NotFound => 4,
            FailureClass::Ambiguous => 5,
        }
    }
}

/// A command that did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub class: FailureClass,
    /// What happened, to which file or peer, what to do next.
    pub message: String,
}

impl Failure {
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { class: FailureClass::Failed, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { class: FailureClass::Usage, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure { class: FailureClass::NotFound, message: message.into() }
    }

    pub fn ambiguous(message: impl Into<String>) -> Failure {
        Failure { class: FailureClass::Ambiguous, message: message.into() }
    }
}

/// The answer to a kind or a version that the daemon does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unsupported {
    /// As it was sent, without [`LAST`].
    pub kind: u16,
    /// The version the daemon speaks.
    pub version: u16,
}

/// A torrent that words may have meant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Candidate {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// The folder below upload/ of its publisher, or where its data lies here.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Pieces.
    pub n_parts: u32,
    /// As the tracker counts; absent for a torrent of the daemon's own.
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
}

impl From<SearchHit> for Candidate {
    fn from(hit: SearchHit) -> Candidate {
        Candidate {
            name: hit.name,
            key: hit.key,
            path: hit.path,
            size: hit.size,
            n_parts: hit.n_parts,
            seeders: Some(hit.seeders),
            leechers: Some(hit.leechers),
        }
    }
}

/// What a torrent is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Hashing,
    Checking,
    Downloading,
    Seeding,
    Paused,
    Error,
    Missing,
}

/// How a torrent came to be here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It lies in upload/.
    Upload,
    Downloaded,
    /// `peerctl share` of something that lies elsewhere.
    InPlace,
}

/// `get` has begun: the torrent is known, its data wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Started {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Bytes.
    pub size: u64,
    /// Pieces.
    pub n_parts: u32,
    /// Where the data will lie.
    pub path: PathBytes,
}

/// How far a torrent is. Sent about once a second, and at least every 10 s while a command waits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    pub state: State,
    pub name: String,
    /// Absent while it is hashed for the first time.
    pub key: Option<Key>,
    /// Verified, or hashed.
    pub have_bytes: u64,
    pub total_bytes: u64,
    pub rate_bytes_per_s: u64,
    /// Sessions.
    pub peers: u32,
    pub pieces_have: u32,
    pub pieces_total: u32,
    /// Seconds to go; absent when nothing comes.
    pub eta_s: Option<u64>,
}

/// An info-hash where serde needs a type of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(#[serde(with = "key_serde")] pub InfoHash);

/// `get` is done: all pieces verified and committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub path: PathBytes,
    /// Bytes.
    pub size: u64,
    pub n_parts: u32,
    /// Payload that came over the network for it since `get` was typed; the rest was here.
    pub received_bytes: u64,
    pub elapsed_ms: u64,
}

/// One line of `list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TorrentRow {
    pub name: String,
    /// Absent while it is hashed for the first time.
    pub key: Option<Key>,
    /// Where the data lies.
    pub path: PathBytes,
    /// Bytes.
    pub size: u64,
    /// Verified.
    pub have_bytes: u64,
    pub state: State,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    /// Sessions, of which `seeders` have everything.
    pub peers: u32,
    pub seeders: u32,
    pub private: bool,
    pub origin: Origin,
    /// Why its state is `error` or `missing`.
    pub error: Option<String>,
}

/// One hit of `search`: what the tracker said of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SearchHit {
    pub name: String,
    #[serde(rename = "type")]
    pub file_type: String,
    /// The folder below upload/.
    pub path: String,
    /// `<key>.torrent`
    pub torrent: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Bytes.
    pub size: u64,
    pub n_parts: u32,
    pub seeders: u32,
    pub leechers: u32,
    /// Seconds since 1970.
    pub added: u64,
    #[serde(rename = "match")]
    pub matched: Match,
}

impl From<catalogue::Hit> for SearchHit {
    fn from(hit: catalogue::Hit) -> SearchHit {
        let catalogue::Hit { name, file_type, path, torrent, key, size, n_parts, seeders, leechers, added, matched } =
            hit;
        SearchHit { name, file_type, path, torrent, key, size, n_parts, seeders, leechers, added, matched }
    }
}

/// `show`: the torrent. Its files follow in [`Answer::Files`], the swarm in [`Answer::Swarm`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shown {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Bytes.
    pub size: u64,
    pub n_parts: u32,
    pub piece_bytes: u32,
    pub private: bool,
    /// By tier (BEP 12); the first hundred addresses.
    pub trackers: Vec<Vec<String>>,
    /// The folder below its publisher's upload/.
    pub upload_path: Option<String>,
    /// The rest is there only if the daemon has this torrent.
    pub here: Option<Here>,
}

/// What the daemon has of a torrent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Here {
    pub state: State,
    pub path: PathBytes,
    /// Verified.
    pub have_bytes: u64,
    pub pieces_have: u32,
    pub origin: Origin,
    pub error: Option<String>,
}

/// One file of a torrent (padding files are left out).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileRow {
    /// `/` between components; begins with the torrent's name.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Verified.
    pub have_bytes: u64,
}

/// Who has a torrent, as the tracker says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Swarm {
    /// Peers at the tracker, of which `peers` are a sample.
    pub total: u64,
    pub peers: Vec<SwarmPeer>,
    /// Why the tracker could not be asked.
    pub error: Option<String>,
}

/// One peer at the tracker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SwarmPeer {
    pub ip: IpAddr,
    pub port: u16,
    pub seeder: bool,
}

impl From<catalogue::SwarmPeer> for SwarmPeer {
    fn from(peer: catalogue::SwarmPeer) -> SwarmPeer {
        SwarmPeer { ip: peer.ip, port: peer.port, seeder: peer.seeder }
    }
}

/// Answer to `status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_s: u64,
    /// Hex of the Ed25519 public key.
    pub identity: String,
    /// Addresses that take peers.
    pub listen: Vec<SocketAddr>,
    pub trackers: Vec<TrackerStatus>,
    pub torrents: u32,
    pub downloading: u32,
    pub seeding: u32,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    /// Verified, over all time.
    pub received_bytes: u64,
    /// Over all time.
    pub sent_bytes: u64,
    pub sessions: u32,
    /// Files that wait to be hashed or are being hashed, and their bytes.
    pub hashing_files: u32,
    pub hashing_bytes: u64,
    /// The tracker's clock minus ours, when it matters.
    pub clock_offset_s: Option<i64>,
    pub upload_dir: PathBytes,
    pub download_dir: PathBytes,
    pub state_dir: PathBytes,
    /// What the user should know and act on.
    pub warnings: Vec<String>,
}

/// A tracker as the daemon sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TrackerStatus {
    pub url: String,
    pub state: TrackerState,
    /// It runs inside this daemon.
    pub embedded: bool,
    pub last_error: Option<String>,
    /// Seconds to the next attempt, while it is down.
    pub next_try_s: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackerState {
    /// Not asked yet.
    Waiting,
    Up,
    Down,
}

/// One session, for `peers`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerRow {
    /// The torrent's name and key.
    pub torrent: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub addr: SocketAddr,
    /// As it calls itself, else its peer id's beginning.
    pub client: String,
    pub direction: Direction,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub am_choking: bool,
    pub am_interested: bool,
    pub peer_choking: bool,
    pub peer_interested: bool,
    /// The upload slot it holds.
    pub slot: Slot,
    /// Pieces that it says it has, of `pieces_total`.
    pub pieces_have: u32,
    pub pieces_total: u32,
    /// Verified bytes that this identity has given us over all time, by the ledger.
    pub given_ever_bytes: u64,
    /// In this session; verified.
    pub received_bytes: u64,
    /// In this session.
    pub sent_bytes: u64,
    /// Why it is served, or what it waits for.
    pub why: String,
}

/// Who is at the other end of a session: beside the [`PeerRow`] of the same torrent and address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// The torrent's.
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub addr: SocketAddr,
    /// As the ledger names it: a proven key, or an address.
    pub identity: String,
}

/// Who opened the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// They did.
    In,
    /// We did.
    Out,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    Regular,
    Optimistic,
    None,
}

/// One row of the ledger. The files of a peer follow it; a long list is cut between any two rows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LedgerRow {
    Peer(LedgerPeer),
    /// Belongs to the last [`LedgerRow::Peer`].
    File(LedgerFile),
}

/// What passed between us and one peer, over all time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LedgerPeer {
    /// Whom the ledger means: a proven key, an address, or `others`.
    pub identity: String,
    /// Where it was seen last.
    pub addr: Option<SocketAddr>,
    /// Verified.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Seconds since 1970.
    pub first_seen: u64,
    pub last_seen: u64,
    /// What its generosity buys it now; empty if nothing.
    pub why: String,
}

/// The part of it that was one torrent's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LedgerFile {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Verified.
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// Answer to `pause` and `resume`: the torrent and its state now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub state: State,
}

/// Answer to `verify`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verified {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub state: State,
    pub path: PathBytes,
    /// Bytes in all, and in pieces that are right.
    pub size: u64,
    pub have_bytes: u64,
    pub pieces_have: u32,
    pub pieces_total: u32,
}

/// Answer to `remove`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removed {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    pub path: PathBytes,
    /// Its files were deleted.
    pub data_deleted: bool,
    /// It lies in upload/ still, and is not shared again until its content changes.
    pub declined: bool,
}

/// Answer to `share`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shared {
    pub name: String,
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Bytes.
    pub size: u64,
    pub n_parts: u32,
    pub path: PathBytes,
    pub private: bool,
    /// The tracker knows it; if not, the daemon goes on trying.
    pub published: bool,
}

/// `limit`: how fast to go from now on, bytes per second, until the daemon ends; 0 is no limit, `None` leaves what is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetLimits {
    pub up_bytes_per_s: Option<u64>,
    pub down_bytes_per_s: Option<u64>,
}

/// Answer to `limit`: what holds now; 0 is no limit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    /// Peers of our own subnets are not held back.
    pub lan_exempt: bool,
}

/// Answer to `leave`: the daemon has told the trackers and exits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Left {
    /// Torrents that were announced as stopped.
    pub torrents: u32,
    /// Trackers that heard it.
    pub told: Vec<String>,
    /// Trackers that did not.
    pub not_told: Vec<NotTold>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotTold {
    pub url: String,
    pub error: String,
}
