//! One value of every kind, for the tests that hold the wire's bytes and `--json`'s fields.

use super::*;

fn key(byte: u8) -> InfoHash {
    InfoHash::new([byte; 20])
}

fn addr() -> SocketAddr {
    "10.0.0.2:6881".parse().unwrap()
}

pub fn requests() -> Vec<Request> {
    let words = || What::Words("got".into());
    vec![
        Request::Get(Get { what: What::Torrent(Vec::new()), to: None, detach: false }),
        Request::Get(Get { what: What::InfoHash(key(0xAB)), to: Some("/a b".into()), detach: true }),
        Request::Get(Get { what: words(), to: None, detach: false }),
        Request::List,
        Request::Search(Search { words: "got s01".into(), limit: 50, offset: 0 }),
        Request::Show(words()),
        Request::Status,
        Request::Peers(None),
        Request::Peers(Some(words())),
        Request::Ledger,
        Request::Pause(words()),
        Request::Resume(words()),
        Request::Verify(words()),
        Request::Remove(Remove { what: words(), data: true, yes: false }),
        Request::Share(Share { path: "/a".into(), public: true }),
        Request::Leave,
        Request::GetInOrder(Get { what: words(), to: None, detach: false }),
        Request::Limit(SetLimits { up_bytes_per_s: Some(2 << 20), down_bytes_per_s: None }),
    ]
}

pub fn candidates() -> Vec<Candidate> {
    let remote = Candidate::from(search_hit());
    let own = Candidate { seeders: None, leechers: None, key: key(2), ..remote.clone() };
    vec![remote, own]
}

pub fn started() -> Started {
    Started { name: "got5.mp4".into(), key: key(1), size: 1_048_577, n_parts: 17, path: "/d/got5.mp4".into() }
}

pub fn progress() -> Progress {
    Progress {
        state: State::Downloading,
        name: "got5.mp4".into(),
        key: Some(Key(key(1))),
        have_bytes: 524_288,
        total_bytes: 1_048_577,
        rate_bytes_per_s: 262_144,
        peers: 3,
        pieces_have: 8,
        pieces_total: 17,
        eta_s: Some(3),
    }
}

pub fn done() -> Done {
    Done {
        name: "got5.mp4".into(),
        key: key(1),
        path: "/d/got5.mp4".into(),
        size: 1_048_577,
        n_parts: 17,
        received_bytes: 524_289,
        elapsed_ms: 2_500,
    }
}

pub fn torrent_rows() -> Vec<TorrentRow> {
    let row = TorrentRow {
        name: "got5.mp4".into(),
        key: Some(Key(key(1))),
        path: "/d/got5.mp4".into(),
        size: 1_048_577,
        have_bytes: 524_288,
        state: State::Downloading,
        down_bytes_per_s: 262_144,
        up_bytes_per_s: 0,
        peers: 3,
        seeders: 1,
        private: true,
        origin: Origin::Downloaded,
        error: None,
    };
    let hashing = TorrentRow {
        name: "new".into(),
        key: None,
        state: State::Hashing,
        origin: Origin::Upload,
        error: Some("slow disk".into()),
        ..row.clone()
    };
    vec![row, hashing]
}

pub fn search_hit() -> SearchHit {
    SearchHit {
        name: "got5.mp4".into(),
        file_type: "mp4".into(),
        path: "series".into(),
        torrent: format!("{}.torrent", key(1)),
        key: key(1),
        size: 1_048_577,
        n_parts: 17,
        seeders: 2,
        leechers: 3,
        added: 1_700_000_000,
        matched: Match::Exact,
    }
}

pub fn shown() -> Shown {
    Shown {
        name: "got5.mp4".into(),
        key: key(1),
        size: 1_048_577,
        n_parts: 17,
        piece_bytes: 65_536,
        private: true,
        trackers: vec![vec!["http://10.0.0.1:6969/announce".into()]],
        upload_path: Some("series".into()),
        here: Some(Here {
            state: State::Seeding,
            path: "/d/got5.mp4".into(),
            have_bytes: 1_048_577,
            pieces_have: 17,
            origin: Origin::InPlace,
            error: Some("short read".into()),
        }),
    }
}

pub fn files() -> Vec<FileRow> {
    vec![FileRow { path: "got5.mp4".into(), size: 1_048_577, have_bytes: 1_048_577 }]
}

pub fn swarm() -> Swarm {
    let peers = vec![SwarmPeer { ip: "2001:db8::1".parse().unwrap(), port: 6881, seeder: true }];
    Swarm { total: 5, peers, error: Some("no answer".into()) }
}

pub fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 77,
        uptime_s: 3_600,
        identity: "0f".repeat(32),
        listen: vec![addr(), "[::]:6881".parse().unwrap()],
        trackers: vec![TrackerStatus {
            url: "http://10.0.0.1:6969".into(),
            state: TrackerState::Down,
            embedded: false,
            last_error: Some("connection refused".into()),
            next_try_s: Some(8),
        }],
        torrents: 12,
        downloading: 2,
        seeding: 9,
        down_bytes_per_s: 1_000,
        up_bytes_per_s: 2_000,
        received_bytes: 3_000,
        sent_bytes: 4_000,
        sessions: 6,
        hashing_files: 1,
        hashing_bytes: 500,
        clock_offset_s: Some(-90),
        upload_dir: "/u".into(),
        download_dir: "/d".into(),
        state_dir: "/s".into(),
        warnings: vec!["the clock is off".into()],
    }
}

pub fn peer_rows() -> Vec<PeerRow> {
    vec![PeerRow {
        torrent: "got5.mp4".into(),
        key: key(1),
        addr: addr(),
        client: "peerd 0.1.0".into(),
        direction: Direction::Out,
        down_bytes_per_s: 100,
        up_bytes_per_s: 200,
        am_choking: false,
        am_interested: true,
        peer_choking: false,
        peer_interested: true,
        slot: Slot::Optimistic,
        pieces_have: 4,
        pieces_total: 17,
        given_ever_bytes: 900,
        received_bytes: 300,
        sent_bytes: 400,
        why: "optimistic".into(),
    }]
}

pub fn peer_identities() -> Vec<PeerIdentity> {
    vec![PeerIdentity { key: key(1), addr: addr(), identity: format!("key {}", "0f".repeat(32)) }]
}

pub fn ledger_rows() -> Vec<LedgerRow> {
    let peer = LedgerPeer {
        identity: "10.0.0.2".into(),
        addr: Some(addr()),
        received_bytes: 900,
        sent_bytes: 400,
        first_seen: 1_700_000_000,
        last_seen: 1_700_000_600,
        why: "served first, turns 2.4 x as long".into(),
    };
    let file = LedgerFile { name: "got5.mp4".into(), key: key(1), received_bytes: 900, sent_bytes: 400 };
    let others = LedgerPeer { identity: "others".into(), addr: None, why: String::new(), ..peer.clone() };
    vec![LedgerRow::Peer(peer), LedgerRow::File(file), LedgerRow::Peer(others)]
}

pub fn changed() -> Changed {
    Changed { name: "got5.mp4".into(), key: key(1), state: State::Paused }
}

pub fn verified() -> Verified {
    Verified {
        name: "got5.mp4".into(),
        key: key(1),
        state: State::Seeding,
        path: "/d/got5.mp4".into(),
        size: 1_048_577,
        have_bytes: 1_048_577,
        pieces_have: 17,
        pieces_total: 17,
    }
}

pub fn removed() -> Removed {
    Removed { name: "got5.mp4".into(), key: key(1), path: "/u/got5.mp4".into(), data_deleted: false, declined: true }
}

pub fn shared() -> Shared {
    Shared {
        name: "got5.mp4".into(),
        key: key(1),
        size: 1_048_577,
        n_parts: 17,
        path: "/u/got5.mp4".into(),
        private: true,
        published: true,
    }
}

pub fn limits() -> Limits {
    Limits { up_bytes_per_s: 2_097_152, down_bytes_per_s: 0, lan_exempt: true }
}

pub fn left() -> Left {
    Left {
        torrents: 12,
        told: vec!["http://10.0.0.1:6969".into()],
        not_told: vec![NotTold { url: "udp://10.0.0.9:1".into(), error: "no answer".into() }],
    }
}

pub fn answers() -> Vec<Answer> {
    vec![
        Answer::Failed(Failure::not_found("nobody shares it")),
        Answer::Unsupported(Unsupported { kind: 0x00AA, version: 1 }),
        Answer::End,
        Answer::Busy,
        Answer::Ambiguous(candidates()),
        Answer::DidYouMean(candidates()),
        Answer::Started(started()),
        Answer::Progress(progress()),
        Answer::Done(done()),
        Answer::Torrents(torrent_rows()),
        Answer::SearchTotal(300),
        Answer::SearchHits(vec![search_hit()]),
        Answer::Shown(shown()),
        Answer::Files(files()),
        Answer::Swarm(swarm()),
        Answer::Status(status()),
        Answer::Peers(peer_rows()),
        Answer::Ledger(ledger_rows()),
        Answer::Changed(changed()),
        Answer::Verified(verified()),
        Answer::Removed(removed()),
        Answer::Shared(shared()),
        Answer::Left(left()),
        Answer::Limits(limits()),
        Answer::PeerIdentities(peer_identities()),
    ]
}
