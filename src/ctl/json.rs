//! Answers for programs. docs/json.md describes every field, tests/golden/ holds an example of every document; both are
//! promises: fields are added, never taken away or given another type.

use super::error::CtlError;
use crate::wire::control::{
    Candidate, Done, FileRow, LedgerFile, LedgerPeer, LedgerRow, PeerRow, Progress, SearchHit, Shown, Started, Swarm,
    TorrentRow,
};
use crate::wire::name::escape_for_terminal;
use serde::Serialize;
use std::io::{self, Write};

/// One document on one line. What would harm a terminal can only stand inside strings, where `\uXXXX` is JSON too.
pub(super) fn document(out: &mut dyn Write, document: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", escape_for_terminal(&serde_json::to_string(document)?))?;
    out.flush()
}

/// `list`
#[derive(Serialize)]
pub(super) struct List {
    pub torrents: Vec<TorrentRow>,
}

/// `search`
#[derive(Serialize)]
pub(super) struct Search {
    pub total: u64,
    pub hits: Vec<SearchHit>,
}

/// `show`
#[derive(Serialize)]
pub(super) struct Show {
    #[serde(flatten)]
    pub shown: Shown,
    pub files: Vec<FileRow>,
    pub swarm: Option<Swarm>,
}

/// `peers`
#[derive(Serialize)]
pub(super) struct Peers {
    pub peers: Vec<PeerEntry>,
}

#[derive(Serialize)]
pub(super) struct PeerEntry {
    #[serde(flatten)]
    pub row: PeerRow,
    /// None when the daemon is older than the field.
    pub identity: Option<String>,
}

/// `ledger`
#[derive(Serialize)]
pub(super) struct Ledger {
    pub peers: Vec<LedgerEntry>,
}

#[derive(Serialize)]
pub(super) struct LedgerEntry {
    #[serde(flatten)]
    peer: LedgerPeer,
    files: Vec<LedgerFile>,
}

impl FromIterator<LedgerRow> for Ledger {
    fn from_iter<I: IntoIterator<Item = LedgerRow>>(rows: I) -> Ledger {
        let mut peers: Vec<LedgerEntry> = Vec::new();
        for row in rows {
            match row {
                LedgerRow::Peer(peer) => peers.push(LedgerEntry { peer, files: Vec::new() }),
                // A file ahead of every peer belongs to nobody.
                LedgerRow::File(file) => {
                    if let Some(entry) = peers.last_mut() {
                        entry.files.push(file);
                    }
                }
            }
        }
        Ledger { peers }
    }
}

/// One line of `get`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum GetEvent<'a> {
    Started(&'a Started),
    Progress(&'a Progress),
    Done(&'a Done),
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    class: &'static str,
    exit_code: u8,
    message: String,
    candidates: &'a [Candidate],
}

/// Every command that did not succeed.
pub(super) fn error(out: &mut dyn Write, error: &CtlError) -> io::Result<()> {
    let (class, exit_code) = (error.class(), error.exit_code());
    let body = ErrorBody { class, exit_code, message: error.to_string(), candidates: error.candidates() };
    document(out, &ErrorDocument { error: body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::samples;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn peer_entries() -> Vec<PeerEntry> {
        let identities = samples::peer_identities().into_iter().map(|peer| Some(peer.identity));
        samples::peer_rows().into_iter().zip(identities).map(|(row, identity)| PeerEntry { row, identity }).collect()
    }

    /// Every command's document, and what the daemon's fixed answer makes of it.
    fn documents() -> Vec<(&'static str, &'static str, String)> {
        let get = [
            line(&GetEvent::Started(&samples::started())),
            line(&GetEvent::Progress(&samples::progress())),
            line(&GetEvent::Done(&samples::done())),
        ];
        let search = Search { total: 300, hits: vec![samples::search_hit()] };
        let show = Show { shown: samples::shown(), files: samples::files(), swarm: Some(samples::swarm()) };
        let ledger: Ledger = samples::ledger_rows().into_iter().collect();
        let mut failed = Vec::new();
        error(&mut failed, &CtlError::Ambiguous(samples::candidates())).unwrap();
        vec![
            ("get", include_str!("../../tests/golden/get.json"), get.concat()),
            ("list", include_str!("../../tests/golden/list.json"), line(&List { torrents: samples::torrent_rows() })),
            ("search", include_str!("../../tests/golden/search.json"), line(&search)),
            ("show", include_str!("../../tests/golden/show.json"), line(&show)),
            ("status", include_str!("../../tests/golden/status.json"), line(&samples::status())),
            ("peers", include_str!("../../tests/golden/peers.json"), line(&Peers { peers: peer_entries() })),
            ("ledger", include_str!("../../tests/golden/ledger.json"), line(&ledger)),
            ("pause", include_str!("../../tests/golden/pause.json"), line(&samples::changed())),
            ("resume", include_str!("../../tests/golden/resume.json"), line(&samples::changed())),
            ("verify", include_str!("../../tests/golden/verify.json"), line(&samples::verified())),
            ("remove", include_str!("../../tests/golden/remove.json"), line(&samples::removed())),
            ("share", include_str!("../../tests/golden/share.json"), line(&samples::shared())),
            ("limit", include_str!("../../tests/golden/limit.json"), line(&samples::limits())),
            ("leave", include_str!("../../tests/golden/leave.json"), line(&samples::left())),
            ("error", include_str!("../../tests/golden/error.json"), String::from_utf8(failed).unwrap()),
        ]
    }

    fn line(value: &impl Serialize) -> String {
        let mut out = Vec::new();
        document(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// `torrents[].name: string` for every field of a document.
    fn fields(path: &str, value: &Value, into: &mut BTreeSet<String>) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(items) => {
                items.iter().for_each(|item| fields(&format!("{path}[]"), item, into));
                "array"
            }
            Value::Object(entries) => {
                entries.iter().for_each(|(name, value)| fields(&format!("{path}.{name}"), value, into));
                "object"
            }
        };
        into.insert(format!("{path}: {kind}"));
    }

    fn fields_of(documents: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for document in serde_json::Deserializer::from_str(documents).into_iter::<Value>() {
            fields("", &document.unwrap(), &mut all);
        }
        all
    }

    #[test]
    fn no_field_goes_or_changes_its_type() {
        for (command, golden, rendered) in documents() {
            assert_eq!(fields_of(&rendered), fields_of(golden), "{command} --json against tests/golden/{command}.json");
        }
    }

    #[test]
    fn every_field_is_described() {
        let described = include_str!("../../docs/json.md");
        for (command, golden, _) in documents() {
            assert!(described.contains(&format!("## {command}")) || described.contains(&format!(", {command}")));
            for field in fields_of(golden) {
                let path = field.split(':').next().unwrap();
                let name = path.rsplit('.').next().unwrap().trim_end_matches("[]");
                assert!(name.is_empty() || described.contains(&format!("`{name}`")), "{command}: `{name}`");
            }
        }
    }

    #[test]
    fn show_names_the_root_keys_first_and_get_its_event() {
        let (_, _, show) = documents().swap_remove(3);
        assert!(
            show.starts_with(&format!(
                r#"{{"name":"got5.mp4","key":"{}","size":1048577,"n_parts":17,"#,
                "01".repeat(20)
            ))
        );
        let (_, _, get) = documents().swap_remove(0);
        assert!(get.lines().zip(["started", "progress", "done"]).all(|(line, event)| line.contains(event)));
    }

    #[test]
    fn text_that_would_harm_a_terminal_is_escaped_and_reads_back_the_same() {
        let name = "\u{1b}[2J\u{9b}\u{202e}\u{7f}\"\\ж";
        let mut row = samples::torrent_rows().remove(0);
        row.name = name.to_owned();
        let text = line(&List { torrents: vec![row] });
        assert_eq!(escape_for_terminal(text.trim_end()), text.trim_end());
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["torrents"][0]["name"], name);
    }
}
