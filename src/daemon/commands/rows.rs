//! `list`, `show`, `status`, `peers`, `ledger`: what there is to see, read off snapshots, never behind disk work.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Commands, Found};
use crate::daemon::control::Reply;
use crate::daemon::ledger::identity_text;
use crate::daemon::torrent::{Active, Origin, Phase, Status, Torrent};
use crate::swarm::choker::Why;
use crate::swarm::{Identity, SessionId};
use crate::wire::control::{
    self, Answer, Direction, Failure, FileRow, Here, Key, LedgerFile, LedgerPeer, LedgerRow, PathBytes, PeerIdentity,
    PeerRow, Progress, Shown, Slot, State, Swarm, SwarmPeer, TorrentRow, What,
};
use crate::wire::id::to_hex;
use crate::wire::metainfo::Metainfo;
use crate::wire::name::RelPath;

/// Of long tracker lists `show` prints so many.
const TRACKERS_SHOWN: usize = 100;

/// A `.torrent`, and the torrent if it is here.
pub(super) type MetaFound = (Metainfo, Option<Arc<Torrent>>);

/// What the swarm of one torrent looks like just now.
#[derive(Default)]
struct Glance {
    have_bytes: u64,
    pieces_have: u32,
    down_bytes_per_s: u64,
    up_bytes_per_s: u64,
    peers: u32,
    seeders: u32,
}

pub(super) fn state_of(status: &Status) -> State {
    match status.phase {
        Phase::Error(_) => State::Error,
        Phase::Missing => State::Missing,
        _ if status.paused => State::Paused,
        Phase::Checking => State::Checking,
        Phase::Downloading => State::Downloading,
        Phase::Seeding => State::Seeding,
    }
}

pub(super) fn origin_of(origin: &Origin) -> control::Origin {
    match origin {
        Origin::Upload { .. } => control::Origin::Upload,
        Origin::InPlace { .. } => control::Origin::InPlace,
        Origin::Download { .. } => control::Origin::Downloaded,
    }
}

fn error_of(status: &Status) -> Option<String> {
    match &status.phase {
        Phase::Error(message) => Some(message.clone()),
        Phase::Missing if matches!(status.origin, Origin::Upload { .. }) => {
            Some("its file in upload/ is being changed; it is shared again once it has stopped changing".to_owned())
        }
        Phase::Missing => Some("the data is not where it was; put it back and type peerctl resume".to_owned()),
        _ => None,
    }
}

impl Commands {
    fn glance(&self, torrent: &Torrent, complete: bool, checking: bool) -> Glance {
        let layout = torrent.summary.layout;
        let mut glance = Glance::default();
        if complete {
            glance.have_bytes = layout.total_bytes();
            glance.pieces_have = layout.piece_count();
        }
        let Some(active) = torrent.active() else {
            if !complete && let Some(recorded) = self.core.recorded_pieces(torrent) {
                glance.have_bytes = recorded.iter_set(layout).map(|piece| u64::from(layout.piece_len(piece))).sum();
                glance.pieces_have = recorded.count();
            }
            return glance;
        };
        let inner = active.lock();
        if !complete {
            glance.have_bytes = layout.total_bytes() - inner.swarm.left_bytes();
            glance.pieces_have = inner.swarm.have().count();
        }
        for report in inner.swarm.reports(self.core.clock.now()) {
            glance.peers += 1;
            glance.seeders += u32::from(report.pieces == layout.piece_count());
            glance.down_bytes_per_s += report.receive_bytes_per_s;
            glance.up_bytes_per_s += report.send_bytes_per_s;
        }
        drop(inner);
        if checking {
            glance.have_bytes = torrent.check.bytes.load(Ordering::Relaxed);
        }
        glance
    }

    pub(super) fn progress(&self, torrent: &Torrent) -> Progress {
        let status = torrent.status();
        let glance = self.glance(torrent, status.complete, status.phase == Phase::Checking);
        let total = torrent.summary.layout.total_bytes();
        let left = total - glance.have_bytes.min(total);
        Progress {
            state: state_of(&status),
            name: torrent.summary.name.to_string_lossy().into_owned(),
            key: Some(Key(torrent.key())),
            have_bytes: glance.have_bytes,
            total_bytes: total,
            rate_bytes_per_s: glance.down_bytes_per_s,
            peers: glance.peers,
            pieces_have: glance.pieces_have,
            pieces_total: torrent.summary.layout.piece_count(),
            eta_s: (glance.down_bytes_per_s > 0).then(|| left / glance.down_bytes_per_s),
        }
    }

    pub(super) async fn list(&self, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let rows = self.core.torrents().into_iter().filter_map(|torrent| self.row(&torrent));
        let hashing = self.core.shares.hashing_paths().into_iter().map(|(path, bytes)| self.hashing_row(&path, bytes));
        // Made as they are sent: peerctl is at work on the first while the last are looked up.
        reply.send_rows(rows.chain(hashing), Answer::Torrents).await?;
        Ok(Answer::End)
    }

    /// None of what is withdrawn.
    fn row(&self, torrent: &Torrent) -> Option<TorrentRow> {
        struct Seen {
            complete: bool,
            state: State,
            origin: control::Origin,
            error: Option<String>,
            path: PathBuf,
        }
        // Ten thousand at a time: no more is copied than is shown.
        let seen = torrent.with_status(|status| {
            (!status.withdrawn).then(|| Seen {
                complete: status.complete,
                state: state_of(status),
                origin: origin_of(&status.origin),
                error: error_of(status),
                path: self.core.path_of(torrent, &status.origin),
            })
        })?;
        let glance = self.glance(torrent, seen.complete, seen.state == State::Checking);
        Some(TorrentRow {
            name: torrent.summary.name.to_string_lossy().into_owned(),
            key: Some(Key(torrent.key())),
            path: PathBytes::from(seen.path),
            size: torrent.summary.layout.total_bytes(),
            have_bytes: glance.have_bytes,
            state: seen.state,
            down_bytes_per_s: glance.down_bytes_per_s,
            up_bytes_per_s: glance.up_bytes_per_s,
            peers: glance.peers,
            seeders: glance.seeders,
            private: torrent.summary.private,
            origin: seen.origin,
            error: seen.error,
        })
    }

    /// A file of upload/ that has no key yet.
    fn hashing_row(&self, path: &RelPath, bytes: u64) -> TorrentRow {
        TorrentRow {
            name: path.file_name().to_string_lossy().into_owned(),
            key: None,
            path: PathBytes::from(self.core.options.upload_dir.join(path.as_path())),
            size: bytes,
            have_bytes: 0,
            state: State::Hashing,
            down_bytes_per_s: 0,
            up_bytes_per_s: 0,
            peers: 0,
            seeders: 0,
            private: !self.core.options.public,
            origin: control::Origin::Upload,
            error: None,
        }
    }

    pub(super) async fn show(&self, what: What, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let (meta, here) = match self.meta_of(what).await? {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let keys = meta.root_keys();
        let shown = Shown {
            name: keys.name.to_string_lossy().into_owned(),
            key: keys.key,
            size: keys.size,
            n_parts: keys.n_parts,
            piece_bytes: meta.layout().piece_bytes(),
            private: meta.is_private(),
            trackers: self.trackers_shown(&meta, here.as_deref()),
            upload_path: meta.upload_path().map(|path| path.to_string_lossy().into_owned()),
            here: here.as_ref().map(|torrent| self.here_row(torrent)),
        };
        reply.send(&Answer::Shown(shown)).await?;
        let active = here.as_ref().and_then(|torrent| torrent.active());
        let complete = here.as_ref().is_some_and(|torrent| torrent.with_status(|status| status.complete));
        let files: Vec<FileRow> = meta
            .files()
            .iter()
            .filter(|file| !file.padding)
            .map(|file| FileRow {
                path: file.path.to_string_lossy().into_owned(),
                size: file.len,
                have_bytes: if complete { file.len } else { have_of(active.as_deref(), file.offset, file.len) },
            })
            .collect();
        reply.send_rows(files, Answer::Files).await?;
        let swarm = match self.core.catalogue().peers(meta.info_hash()).await {
            Ok(peers) => {
                Swarm { total: peers.total, peers: peers.peers.into_iter().map(SwarmPeer::from).collect(), error: None }
            }
            Err(error) => Swarm { total: 0, peers: Vec::new(), error: Some(error.to_string()) },
        };
        Ok(Answer::Swarm(swarm))
    }

    fn trackers_shown(&self, meta: &Metainfo, here: Option<&Torrent>) -> Vec<Vec<String>> {
        match here.filter(|torrent| torrent.with_status(|status| status.ours)) {
            Some(_) => vec![self.core.our_tracker_urls()],
            None => meta.trackers().iter().take(TRACKERS_SHOWN).cloned().collect(),
        }
    }

    fn here_row(&self, torrent: &Torrent) -> Here {
        let status = torrent.status();
        let glance = self.glance(torrent, status.complete, status.phase == Phase::Checking);
        Here {
            state: state_of(&status),
            path: PathBytes::from(self.core.data_path(torrent)),
            have_bytes: glance.have_bytes,
            pieces_have: glance.pieces_have,
            origin: origin_of(&status.origin),
            error: error_of(&status),
        }
    }

    /// A torrent of ours, of the file given, or of the tracker.
    async fn meta_of(&self, what: What) -> Result<Result<MetaFound, Answer>, Failure> {
        if let What::Torrent(bytes) = &what {
            let meta = Metainfo::parse(bytes).map_err(|error| Failure::failed(error.to_string()))?;
            let here = self.core.torrent(meta.info_hash());
            return Ok(Ok((meta, here)));
        }
        match self.find(&what) {
            Ok(Found::One(torrent)) => Ok(Ok((self.read_meta(&torrent).await?, Some(torrent)))),
            Ok(Found::Answer(answer)) => Ok(Err(*answer)),
            Err(_) => self.meta_at_tracker(what).await,
        }
    }

    async fn meta_at_tracker(&self, what: What) -> Result<Result<MetaFound, Answer>, Failure> {
        let key = match what {
            What::InfoHash(key) => key,
            What::Words(words) => match self.key_of_words(&words).await? {
                Ok(key) => key,
                Err(answer) => return Ok(Err(answer)),
            },
            What::Torrent(_) => return Err(Failure::failed("this is no usable .torrent")),
        };
        let (meta, _) = self.fetch_meta(key).await?;
        let here = self.core.torrent(key);
        Ok(Ok((meta, here)))
    }

    async fn read_meta(&self, torrent: &Arc<Torrent>) -> Result<Metainfo, Failure> {
        let (core, position) = (self.core.clone(), torrent.summary.position);
        let read = tokio::task::spawn_blocking(move || core.segments.read(position)).await;
        let bytes = read.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| Failure::failed(e.to_string()))?;
        Metainfo::parse(&bytes).map_err(|error| Failure::failed(error.to_string()))
    }

    pub(super) async fn peers(&self, what: Option<What>, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let torrents = match what {
            None => self.core.live_torrents(),
            Some(what) => match self.find(&what)? {
                Found::One(torrent) => vec![torrent],
                Found::Answer(answer) => return Ok(*answer),
            },
        };
        let reasons: BTreeMap<SessionId, Why> = self.core.choker().reasons().into_iter().collect();
        let (mut rows, mut identities) = (Vec::new(), Vec::new());
        for torrent in &torrents {
            if let Some(active) = torrent.active() {
                self.peer_rows(torrent, &active, &reasons, &mut rows);
                identities.extend(active.lock().sessions.values().map(|handle| PeerIdentity {
                    key: torrent.key(),
                    addr: handle.addr,
                    identity: identity_text(Some(&handle.identity())),
                }));
            }
        }
        reply.send_rows(identities, Answer::PeerIdentities).await?;
        reply.send_rows(rows, Answer::Peers).await?;
        Ok(Answer::End)
    }

    fn peer_rows(
        &self,
        torrent: &Torrent,
        active: &Active,
        reasons: &BTreeMap<SessionId, Why>,
        rows: &mut Vec<PeerRow>,
    ) {
        let now = self.core.clock.now();
        let inner = active.lock();
        for handle in inner.sessions.values() {
            let Some(report) = inner.swarm.report(now, handle.id) else { continue };
            let why = reasons.get(&handle.id);
            rows.push(PeerRow {
                torrent: torrent.summary.name.to_string_lossy().into_owned(),
                key: torrent.key(),
                addr: handle.addr,
                client: handle.client(),
                direction: if handle.outgoing { Direction::Out } else { Direction::In },
                down_bytes_per_s: report.receive_bytes_per_s,
                up_bytes_per_s: report.send_bytes_per_s,
                am_choking: report.we_choke,
                am_interested: report.we_interested,
                peer_choking: report.peer_chokes,
                peer_interested: report.peer_interested,
                slot: match why {
                    _ if report.we_choke => Slot::None,
                    Some(Why::Optimistic) => Slot::Optimistic,
                    _ => Slot::Regular,
                },
                pieces_have: report.pieces,
                pieces_total: torrent.summary.layout.piece_count(),
                given_ever_bytes: self.core.ledger.given_bytes(report.identity),
                received_bytes: report.verified_bytes,
                sent_bytes: report.sent_bytes,
                why: why.map(Why::to_string).unwrap_or_default(),
            });
        }
    }

    pub(super) async fn ledger(&self, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let (accounts, today) = (self.core.ledger.accounts(), self.core.clock.unix_seconds());
        let why = |identity: Option<Identity>| {
            let account = identity.map(|identity| self.core.ledger.account(identity, today)).unwrap_or_default();
            if account.is_generous() {
                format!("served first, turns {:.1} x as long", account.credit())
            } else {
                String::new()
            }
        };
        let rows = accounts.into_iter().flat_map(|account| {
            let peer = LedgerRow::Peer(LedgerPeer {
                identity: identity_text(account.identity.as_ref()),
                addr: None,
                received_bytes: account.totals.received_bytes,
                sent_bytes: account.totals.sent_bytes,
                first_seen: account.totals.first_seen,
                last_seen: account.totals.last_seen,
                why: why(account.identity),
            });
            let files = account.files.into_iter().map(|(key, row)| {
                LedgerRow::File(LedgerFile {
                    name: row.name,
                    key,
                    received_bytes: row.received_bytes,
                    sent_bytes: row.sent_bytes,
                })
            });
            std::iter::once(peer).chain(files)
        });
        reply.send_rows(rows, Answer::Ledger).await?;
        Ok(Answer::End)
    }

    pub(super) fn status(&self) -> Result<Answer, Failure> {
        let core = &self.core;
        let torrents = core.torrents_unsorted();
        let (mut downloading, mut seeding) = (0, 0);
        let (mut down, mut up, mut sessions) = (0, 0, 0);
        for torrent in &torrents {
            let status = torrent.status();
            match state_of(&status) {
                State::Downloading => downloading += 1,
                State::Seeding => seeding += 1,
                _ => {}
            }
            let glance = self.glance(torrent, status.complete, status.phase == Phase::Checking);
            down += glance.down_bytes_per_s;
            up += glance.up_bytes_per_s;
            sessions += glance.peers;
        }
        let (received, sent) = core.ledger.totals();
        let (hashing_files, hashing_bytes) = core.shares.hashing();
        Ok(Answer::Status(control::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: core.clock.now().since(core.started).as_secs(),
            identity: to_hex(&core.identity.public_key()),
            listen: core.listening.clone(),
            trackers: core.announcer.tracker_rows(core.clock.now(), &core.publisher.reached()),
            torrents: torrents.len() as u32,
            downloading,
            seeding,
            down_bytes_per_s: down,
            up_bytes_per_s: up,
            received_bytes: received,
            sent_bytes: sent,
            sessions,
            hashing_files: hashing_files as u32,
            hashing_bytes,
            clock_offset_s: Some(core.catalogue().clock_offset_s()).filter(|offset| *offset != 0),
            upload_dir: PathBytes::from(&core.options.upload_dir),
            download_dir: PathBytes::from(&core.options.download_dir),
            state_dir: PathBytes::from(&core.options.state_dir),
            warnings: core.warnings(),
        }))
    }
}

/// Verified bytes within a span of the torrent.
fn have_of(active: Option<&Active>, offset: u64, len: u64) -> u64 {
    let Some(active) = active else { return 0 };
    let layout = active.meta.layout();
    let inner = active.lock();
    let have = inner.swarm.have();
    let first = offset / u64::from(layout.piece_bytes());
    let last = (offset + len).div_ceil(u64::from(layout.piece_bytes()));
    (first..last)
        .filter_map(|index| layout.piece(index as u32))
        .filter(|piece| have.get(*piece))
        .map(|piece| {
            let start = layout.piece_start(piece);
            let end = start + u64::from(layout.piece_len(piece));
            end.min(offset + len).saturating_sub(start.max(offset))
        })
        .sum()
}
