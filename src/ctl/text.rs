//! Answers for people: aligned tables, sizes in KiB, MiB, GiB, and no stranger's control character.

use super::json::PeerEntry;
use crate::wire::control::{
    Candidate, Direction, FileRow, LedgerRow, Left, Limits, Origin, PeerRow, Removed, SearchHit, Shared, Shown, Slot,
    State, Status, Swarm, TorrentRow, TrackerState, Verified,
};
use crate::wire::name::escape_for_terminal;
use crate::wire::rate::Rate;
use std::io::{self, Write};
use std::time::Duration;

/// Rows of cells, padded to their column's width; the last column is free. `>` before a heading aligns to the right.
struct Table {
    right: Vec<bool>,
    /// Characters.
    widths: Vec<usize>,
    /// All cells, row by row, without a gap: tens of thousands of rows in one piece of memory.
    text: String,
    /// By cell, where it ends in `text`, and how many characters it has.
    cells: Vec<(usize, usize)>,
}

impl Table {
    fn new(headings: &[&str]) -> Table {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let mut table = Table { right, widths: vec![0; headings.len()], text: String::new(), cells: Vec::new() };
        headings.iter().enumerate().for_each(|(column, heading)| table.cell(column, heading.trim_start_matches('>')));
        table
    }

    fn cell(&mut self, column: usize, cell: &str) {
        let begin = self.text.len();
        self.text.push_str(&escape_for_terminal(cell));
        let cell = &self.text[begin..];
        let chars = if cell.is_ascii() { cell.len() } else { cell.chars().count() };
        self.cells.push((self.text.len(), chars));
        if let Some(width) = self.widths.get_mut(column) {
            *width = chars.max(*width);
        }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        cells.iter().enumerate().for_each(|(column, cell)| self.cell(column, cell));
    }

    /// In one piece: standard output passes on every line that it is given.
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut text = String::with_capacity(self.text.len() * 2);
        let mut begin_of_cell = 0;
        for row in self.cells.chunks(self.right.len()) {
            let begin = text.len();
            for ((&(end, chars), &width), &right) in row.iter().zip(&self.widths).zip(&self.right) {
                let cell = &self.text[begin_of_cell..end];
                begin_of_cell = end;
                let padding = std::iter::repeat_n(' ', width - chars);
                if right {
                    text.extend(padding);
                    text.push_str(cell);
                } else {
                    text.push_str(cell);
                    text.extend(padding);
                }
                text.push_str("  ");
            }
            text.truncate(begin + text[begin..].trim_end().len());
            text.push('\n');
        }
        out.write_all(text.as_bytes())
    }
}

/// `1023 B`, `1.0 KiB`, `12.5 GiB`
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    // 1023.95 would be shown as 1024.0 of the smaller unit.
    while value >= 1023.95
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    format!("{value:.1} {}", unit.unwrap_or(&"KiB"))
}

pub(super) fn rate(bytes_per_s: u64) -> String {
    if bytes_per_s == 0 { "-".to_owned() } else { format!("{}/s", bytes(bytes_per_s)) }
}

/// `1 file`, `2 files`
pub(super) fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `7 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Never 100 % of something unfinished.
pub(super) fn percent(have: u64, total: u64) -> String {
    if have >= total { "100 %".to_owned() } else { format!("{:.1} %", percent_floor(have, total)) }
}

/// In tenths, rounded down.
fn percent_floor(have: u64, total: u64) -> f64 {
    (u128::from(have) * 1_000 / u128::from(total.max(1))) as f64 / 10.0
}

pub(super) const fn state(state: State) -> &'static str {
    match state {
        State::Hashing => "hashing",
        State::Checking => "checking",
        State::Downloading => "downloading",
        State::Seeding => "seeding",
        State::Paused => "paused",
        State::Error => "error",
        State::Missing => "missing",
    }
}

const fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Upload => "upload folder",
        Origin::Downloaded => "downloaded",
        Origin::InPlace => "shared in place",
    }
}

const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

pub(super) fn candidates(out: &mut dyn Write, candidates: &[Candidate]) -> io::Result<()> {
    numbered(out, candidates, false)
}

/// With a number before each, for the user to choose by.
pub(super) fn numbered_candidates(out: &mut dyn Write, candidates: &[Candidate]) -> io::Result<()> {
    numbered(out, candidates, true)
}

fn numbered(out: &mut dyn Write, candidates: &[Candidate], numbers: bool) -> io::Result<()> {
    let mut table = Table::new(&[if numbers { ">NO" } else { "" }, ">SIZE", ">SEEDERS", "KEY", "NAME"]);
    for (index, candidate) in candidates.iter().enumerate() {
        table.row([
            if numbers { (index + 1).to_string() } else { String::new() },
            bytes(candidate.size),
            candidate.seeders.map_or("-".to_owned(), |seeders| seeders.to_string()),
            candidate.key.to_hex(),
            with_folder(&candidate.name, &candidate.path),
        ]);
    }
    table.write(out)
}

fn with_folder(name: &str, folder: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{name}  (in {folder})") }
}

/// The answer to `list`, put together while it comes.
pub(super) struct List {
    table: Table,
    rows: usize,
}

impl List {
    pub fn new() -> List {
        let headings = ["STATE", ">DONE", ">SIZE", ">DOWN", ">UP", ">PEERS", ">SEEDERS", "KEY", "NAME"];
        List { table: Table::new(&headings), rows: 0 }
    }

    pub fn add(&mut self, row: TorrentRow) {
        self.rows += 1;
        let name = match &row.error {
            Some(error) => format!("{}  ({error})", row.name),
            None => row.name,
        };
        self.table.row([
            state(row.state).to_owned(),
            percent(row.have_bytes, row.size),
            bytes(row.size),
            rate(row.down_bytes_per_s),
            rate(row.up_bytes_per_s),
            row.peers.to_string(),
            row.seeders.to_string(),
            row.key.map_or("-".to_owned(), |key| key.0.to_hex()),
            name,
        ]);
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 0 {
            return writeln!(
                out,
                "Nothing yet: copy files into the upload folder, or fetch some with `peerctl get WHAT`."
            );
        }
        self.table.write(out)
    }
}

pub(super) fn search(out: &mut dyn Write, total: u64, hits: &[SearchHit]) -> io::Result<()> {
    if hits.is_empty() {
        return writeln!(out, "Nothing found.");
    }
    let mut table = Table::new(&[">SIZE", ">SEEDERS", ">LEECHERS", "KEY", "NAME"]);
    for hit in hits {
        table.row([
            bytes(hit.size),
            hit.seeders.to_string(),
            hit.leechers.to_string(),
            hit.key.to_hex(),
            with_folder(&hit.name, &hit.path),
        ]);
    }
    table.write(out)?;
    if total > hits.len() as u64 {
        writeln!(out, "{} of {total} are shown: more words narrow it down.", hits.len())?;
    }
    Ok(())
}

/// `Name: value`, the value escaped.
fn field(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "{name}: {}", escape_for_terminal(value))
}

/// Name, Key, size, n_parts first: the root keys that the `.torrent` carries.
pub(super) fn show(out: &mut dyn Write, shown: &Shown, files: &[FileRow], swarm: Option<&Swarm>) -> io::Result<()> {
    field(out, "Name", &shown.name)?;
    field(out, "Key", &shown.key.to_hex())?;
    field(out, "size", &format!("{} ({})", shown.size, bytes(shown.size)))?;
    field(out, "n_parts", &shown.n_parts.to_string())?;
    field(out, "piece length", &bytes(u64::from(shown.piece_bytes)))?;
    field(out, "private", yes_no(shown.private))?;
    if let Some(folder) = &shown.upload_path {
        field(out, "folder", folder)?;
    }
    for tracker in shown.trackers.iter().flatten() {
        field(out, "tracker", tracker)?;
    }
    if let Some(here) = &shown.here {
        let have =
            format!("{} ({} of {} pieces)", percent(here.have_bytes, shown.size), here.pieces_have, shown.n_parts);
        field(out, "state", state(here.state))?;
        field(out, "have", &have)?;
        field(out, "path", &here.path.to_text())?;
        field(out, "origin", origin(here.origin))?;
        if let Some(error) = &here.error {
            field(out, "error", error)?;
        }
    }
    if files.len() > 1 {
        writeln!(out, "files:")?;
        let mut table = Table::new(&["", ">SIZE", ">HAVE", "PATH"]);
        for file in files {
            let have = percent(file.have_bytes, file.size);
            table.row([String::new(), bytes(file.size), have, file.path.clone()]);
        }
        table.write(out)?;
    }
    swarm.map_or(Ok(()), |swarm| show_swarm(out, swarm))
}

fn show_swarm(out: &mut dyn Write, swarm: &Swarm) -> io::Result<()> {
    if let Some(error) = &swarm.error {
        return field(out, "peers", &format!("unknown: {error}"));
    }
    field(out, "peers", &swarm.total.to_string())?;
    let mut table = Table::new(&["", "IP", ">PORT", "HAS"]);
    for peer in &swarm.peers {
        let has = if peer.seeder { "all" } else { "a part" };
        table.row([String::new(), peer.ip.to_string(), peer.port.to_string(), has.to_owned()]);
    }
    if swarm.peers.is_empty() { Ok(()) } else { table.write(out) }
}

pub(super) fn status(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let up_for = duration(status.uptime_s);
    field(out, "peerd", &format!("{}, process {}, up for {up_for}", status.version, status.pid))?;
    field(out, "identity", &status.identity)?;
    for addr in &status.listen {
        field(out, "listens on", &addr.to_string())?;
    }
    for tracker in &status.trackers {
        let mut text = tracker.url.clone();
        text.push_str(match tracker.state {
            TrackerState::Waiting => ": not asked yet",
            TrackerState::Up => ": up",
            TrackerState::Down => ": down",
        });
        text.push_str(if tracker.embedded { ", inside this peerd" } else { "" });
        if let Some(error) = &tracker.last_error {
            text.push_str(&format!(", {error}"));
        }
        if let Some(seconds) = tracker.next_try_s {
            text.push_str(&format!(", tried again in {}", duration(seconds)));
        }
        field(out, "tracker", &text)?;
    }
    let Status { torrents, downloading, seeding, sessions, .. } = status;
    field(out, "torrents", &format!("{torrents}, {downloading} downloading, {seeding} seeding"))?;
    field(out, "sessions", &sessions.to_string())?;
    let traffic = |now, ever| format!("{}, {} over all time", rate(now), bytes(ever));
    field(out, "down", &traffic(status.down_bytes_per_s, status.received_bytes))?;
    field(out, "up", &traffic(status.up_bytes_per_s, status.sent_bytes))?;
    if status.hashing_files > 0 {
        field(
            out,
            "hashing",
            &format!("{}, {}", counted(status.hashing_files.into(), "file"), bytes(status.hashing_bytes)),
        )?;
    }
    if let Some(offset) = status.clock_offset_s {
        let side = if offset > 0 { "behind" } else { "ahead of" };
        field(out, "clock", &format!("{} {side} the tracker's", duration(offset.unsigned_abs())))?;
    }
    field(out, "upload folder", &status.upload_dir.to_text())?;
    field(out, "download folder", &status.download_dir.to_text())?;
    field(out, "state folder", &status.state_dir.to_text())?;
    status.warnings.iter().try_for_each(|warning| field(out, "warning", warning))
}

pub(super) fn peers(out: &mut dyn Write, entries: &[PeerEntry]) -> io::Result<()> {
    if entries.is_empty() {
        return writeln!(out, "Nobody is connected.");
    }
    let headings = [
        "ADDRESS",
        "DIR",
        ">DOWN",
        ">UP",
        "FLAGS",
        "SLOT",
        "WHY",
        ">HAS",
        ">GAVE EVER",
        ">GAVE",
        ">GOT",
        "IDENTITY",
        "CLIENT",
        "TORRENT",
    ];
    let mut table = Table::new(&headings);
    for PeerEntry { row, identity } in entries {
        table.row([
            row.addr.to_string(),
            if row.direction == Direction::In { "in" } else { "out" }.to_owned(),
            rate(row.down_bytes_per_s),
            rate(row.up_bytes_per_s),
            flags(row),
            match row.slot {
                Slot::Regular => "regular",
                Slot::Optimistic => "optimistic",
                Slot::None => "-",
            }
            .to_owned(),
            row.why.clone(),
            percent(u64::from(row.pieces_have), u64::from(row.pieces_total)),
            bytes(row.given_ever_bytes),
            bytes(row.received_bytes),
            bytes(row.sent_bytes),
            identity.as_deref().filter(|identity| identity.starts_with(KEY)).map_or("-".to_owned(), short),
            row.client.clone(),
            row.torrent.clone(),
        ]);
    }
    table.write(out)?;
    writeln!(out, "FLAGS: I, C: we are interested, we choke; i, c: the peer is interested, it chokes.")
}

/// What the identity of a proven peer begins with; another's is its address.
const KEY: &str = "key ";
/// Digits of a key that are enough to tell peers apart by eye.
const KEY_DIGITS: usize = 16;

/// An identity for people: of a key, its first digits.
fn short(identity: &str) -> String {
    identity.chars().take(if identity.starts_with(KEY) { KEY.len() + KEY_DIGITS } else { usize::MAX }).collect()
}

fn flags(row: &PeerRow) -> String {
    let flags = [(row.am_interested, 'I'), (row.am_choking, 'C'), (row.peer_interested, 'i'), (row.peer_choking, 'c')];
    flags.into_iter().map(|(set, letter)| if set { letter } else { '-' }).collect()
}

/// `now` in seconds since 1970.
pub(super) fn ledger(out: &mut dyn Write, rows: &[LedgerRow], now: u64) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "No peer has given us anything yet, nor we to any.");
    }
    let ago = |then: u64| format!("{} ago", duration(now.saturating_sub(then)));
    let mut table = Table::new(&[">RECEIVED", ">SENT", "LAST SEEN", "FIRST SEEN", "WHY", "PEER, FILES"]);
    for row in rows {
        match row {
            LedgerRow::Peer(peer) => {
                let who = match peer.addr {
                    Some(addr) if !peer.identity.starts_with(&addr.ip().to_string()) => {
                        format!("{} at {addr}", short(&peer.identity))
                    }
                    _ => short(&peer.identity),
                };
                let (received, sent) = (bytes(peer.received_bytes), bytes(peer.sent_bytes));
                table.row([received, sent, ago(peer.last_seen), ago(peer.first_seen), peer.why.clone(), who]);
            }
            LedgerRow::File(file) => {
                let (received, sent) = (bytes(file.received_bytes), bytes(file.sent_bytes));
                table.row([received, sent, String::new(), String::new(), String::new(), format!("    {}", file.name)]);
            }
        }
    }
    table.write(out)
}

pub(super) fn verified(out: &mut dyn Write, verified: &Verified) -> io::Result<()> {
    let Verified { pieces_have, pieces_total, .. } = verified;
    let text = format!(
        "{}: {pieces_have} of {pieces_total} pieces are right, {} of {}; {}",
        verified.name,
        bytes(verified.have_bytes),
        bytes(verified.size),
        state(verified.state),
    );
    writeln!(out, "{}", escape_for_terminal(&text))
}

pub(super) fn removed(out: &mut dyn Write, removed: &Removed) -> io::Result<()> {
    let Removed { name, .. } = removed;
    let path = removed.path.to_text();
    let text = match (removed.data_deleted, removed.declined) {
        (true, _) => format!("{name}: removed, and its data deleted ({path})"),
        (false, true) => format!("{name}: no longer shared until its content changes; it lies in {path}"),
        (false, false) => format!("{name}: removed; its data stays in {path}"),
    };
    writeln!(out, "{}", escape_for_terminal(&text))
}

pub(super) fn shared(out: &mut dyn Write, shared: &Shared) -> io::Result<()> {
    field(out, "Name", &shared.name)?;
    field(out, "Key", &shared.key.to_hex())?;
    field(out, "size", &format!("{} ({})", shared.size, bytes(shared.size)))?;
    field(out, "n_parts", &shared.n_parts.to_string())?;
    field(out, "private", yes_no(shared.private))?;
    let published = if shared.published { "yes" } else { "not yet: the tracker does not answer, peerd goes on trying" };
    field(out, "published", published)
}

pub(super) fn limits(out: &mut dyn Write, limits: &Limits) -> io::Result<()> {
    let rate = |bytes_per_s| match Rate::from_bytes_per_s(bytes_per_s) {
        rate if rate.is_unlimited() => "no limit".to_owned(),
        rate => format!("{rate} bytes per second"),
    };
    field(out, "up", &rate(limits.up_bytes_per_s))?;
    field(out, "down", &rate(limits.down_bytes_per_s))?;
    if limits.lan_exempt { field(out, "except", "peers of our own subnets") } else { Ok(()) }
}

pub(super) fn left(out: &mut dyn Write, left: &Left) -> io::Result<()> {
    writeln!(out, "peerd has ended; it was in the swarms of {}.", counted(left.torrents.into(), "torrent"))?;
    left.told.iter().try_for_each(|url| field(out, "tracker told", url))?;
    let not_told = |tracker: &crate::wire::control::NotTold| format!("{}: {}", tracker.url, tracker.error);
    left.not_told.iter().try_for_each(|tracker| field(out, "tracker not told", &not_told(tracker)))
}

/// `2.5 s`, then as [`duration`].
pub(super) fn elapsed(elapsed_ms: u64) -> String {
    let elapsed = Duration::from_millis(elapsed_ms);
    if elapsed.as_secs() < 60 { format!("{:.1} s", elapsed.as_secs_f64()) } else { duration(elapsed.as_secs()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::samples;

    fn text(render: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        render(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn list(rows: Vec<TorrentRow>) -> String {
        let mut list = List::new();
        rows.into_iter().for_each(|row| list.add(row));
        text(|out| list.write(out))
    }

    #[test]
    fn sizes_durations_and_percentages() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (1 << 30, "1.0 GiB")];
        for (size, shown) in sizes {
            assert_eq!(bytes(size), shown);
        }
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        for (seconds, shown) in [(59, "59 s"), (185, "3 min 5 s"), (7_800, "2 h 10 min"), (273_600, "3 d 4 h")] {
            assert_eq!(duration(seconds), shown);
        }
        assert_eq!((percent(999_999, 1_000_000), percent(1, 1)), ("99.9 %".into(), "100 %".into()));
        assert_eq!((percent(0, 0), percent(0, u64::MAX)), ("100 %".into(), "0.0 %".into()));
        assert_eq!((elapsed(2_500), elapsed(61_000)), ("2.5 s".into(), "1 min 1 s".into()));
    }

    #[test]
    fn show_begins_with_the_root_keys_in_their_order() {
        let shown = text(|out| show(out, &samples::shown(), &samples::files(), None));
        let key = "01".repeat(20);
        assert!(shown.starts_with(&format!("Name: got5.mp4\nKey: {key}\nsize: 1048577 (1.0 MiB)\nn_parts: 17\n")));
        assert!(shown.contains("have: 100 % (17 of 17 pieces)\n"), "{shown}");
    }

    #[test]
    fn tables_are_aligned() {
        let list = list(samples::torrent_rows());
        let key = "01".repeat(20);
        let dashes = format!("-{}", " ".repeat(39));
        let expected = [
            format!("STATE          DONE     SIZE         DOWN  UP  PEERS  SEEDERS  KEY{}  NAME", " ".repeat(37)),
            format!("downloading  49.9 %  1.0 MiB  256.0 KiB/s   -      3        1  {key}  got5.mp4"),
            format!("hashing      49.9 %  1.0 MiB  256.0 KiB/s   -      3        1  {dashes}  new  (slow disk)"),
        ];
        assert_eq!(list.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn strangers_cannot_write_control_characters_to_the_terminal() {
        let evil = "\u{1b}[2Ja\u{202e}b\r\n\u{9b}c";
        let mut shown = samples::shown();
        let mut row = samples::torrent_rows().remove(0);
        let mut peer = PeerEntry { row: samples::peer_rows().remove(0), identity: None };
        let mut hit = samples::search_hit();
        let mut files = samples::files();
        files.push(files[0].clone());
        for text in [&mut shown.name, &mut row.name, &mut peer.row.client, &mut hit.path, &mut files[0].path] {
            *text = evil.to_owned();
        }
        shown.trackers = vec![vec![evil.to_owned()]];
        let outputs = [
            text(|out| show(out, &shown, &files, Some(&samples::swarm()))),
            list(vec![row]),
            text(|out| peers(out, &[peer])),
            text(|out| search(out, 1, &[hit])),
        ];
        for output in outputs {
            assert!(output.contains("\\u001B[2Ja\\u202Eb"), "{output}");
            assert!(output.lines().all(|line| escape_for_terminal(line) == line), "{output:?}");
        }
    }

    #[test]
    fn every_answer_says_what_it_must() {
        let status = text(|out| status(out, &samples::status()));
        for part in [
            "tracker: http://10.0.0.1:6969: down, connection refused, tried again in 8 s",
            "clock: 1 min 30 s ahead of the tracker's",
            "hashing: 1 file, 500 B",
            "warning: the clock is off",
        ] {
            assert!(status.contains(part), "{part} is missing in\n{status}");
        }
        let ledger = text(|out| ledger(out, &samples::ledger_rows(), 1_700_000_660));
        assert!(ledger.contains("1 min 0 s ago") && ledger.contains("    got5.mp4"), "{ledger}");
        let identity = Some(samples::peer_identities().remove(0).identity);
        let peer = PeerEntry { row: samples::peer_rows().remove(0), identity };
        let peers = text(|out| peers(out, &[peer]));
        assert!(peers.contains("I-i-   optimistic  optimistic"), "{peers}");
        assert!(peers.contains("  key 0f0f0f0f0f0f0f0f  "), "{peers}");
        let left = text(|out| left(out, &samples::left()));
        assert!(left.contains("12 torrents") && left.contains("not told: udp://10.0.0.9:1: no answer"), "{left}");
        let search = text(|out| search(out, 300, &[samples::search_hit()]));
        assert!(search.contains("got5.mp4  (in series)") && search.contains("1 of 300 are shown"), "{search}");
        let numbered = text(|out| numbered_candidates(out, &samples::candidates()));
        assert!(numbered.lines().nth(2).unwrap().trim_start().starts_with("2  1.0 MiB        -"), "{numbered}");
    }
}
