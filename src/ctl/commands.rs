//! One function for each command: ask, then render.

use super::Terminals;
use super::args::Command;
use super::client::{Answers, Daemon};
use super::error::CtlError;
use super::json;
use super::progress::{Lines, Reporter};
use super::text;
use super::what::{Scope, classify};
use crate::wire::control::{
    Answer, Candidate, Changed, Failure, Get, PeerRow, Remove, Request, Search, SetLimits, Share, What,
};
use crate::wire::rate::Rate;
use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Hits that `search` asks for: what one screen or script can use.
const SEARCH_HITS: u32 = 100;
/// Times that an unusable choice is asked for again.
const CHOICES: usize = 3;

/// One run of peerctl.
pub(super) struct Session<'a> {
    daemon: Daemon,
    json: bool,
    terminals: Terminals,
    out: &'a mut dyn Write,
}

impl<'a> Session<'a> {
    pub(super) fn new(socket: Option<PathBuf>, json: bool, out: &'a mut dyn Write) -> Session<'a> {
        Session { daemon: Daemon::new(socket), json, terminals: Terminals::of_this_process(), out }
    }

    pub(super) fn run(&mut self, command: Command) -> Result<(), CtlError> {
        match command {
            Command::Get { what, to, quiet, detach, sequential } => {
                let kind = if sequential { Request::GetInOrder } else { Request::Get };
                self.get(kind, &what, to, quiet, detach)
            }
            Command::List => self.list(),
            Command::Search { words } => self.search(words.join(" ")),
            Command::Show { what } => self.show(&what),
            Command::Status => self.status(),
            Command::Peers { what } => self.peers(what.as_deref()),
            Command::Ledger => self.ledger(),
            Command::Pause { what } => self.change(&what, Request::Pause),
            Command::Resume { what } => self.change(&what, Request::Resume),
            Command::Verify { what } => self.verify(&what),
            Command::Remove { data, yes, what } => self.remove(&what, data, yes),
            Command::Share { public, path } => self.share(&path, public),
            Command::Limit { up, down } => self.limit(up, down),
            Command::Leave => self.leave(),
        }
    }

    fn get(
        &mut self,
        kind: impl Fn(Get) -> Request,
        what: &str,
        to: Option<PathBuf>,
        quiet: bool,
        detach: bool,
    ) -> Result<(), CtlError> {
        let what = classify(what, Scope::Network)?;
        let to = to.as_deref().map(absolute).transpose()?;
        let get = |what| kind(Get { what, to: to.clone().map(Into::into), detach });
        let mut answers = self.ask_about(what, get)?;
        let mut reporter = if quiet { Reporter::Quiet } else { self.reporter() };
        let mut finished = false;
        let result = loop {
            match answers.next() {
                Ok(Some(Answer::Started(started))) => {
                    finished = detach;
                    reporter.started(self.out, &started, detach)?;
                }
                Ok(Some(Answer::Progress(progress))) => reporter.progress(self.out, &progress)?,
                Ok(Some(Answer::Done(done))) => {
                    finished = true;
                    reporter.done(self.out, &done)?;
                }
                Ok(Some(_)) => break Err(CtlError::Unexpected),
                Ok(None) if finished => break Ok(()),
                Ok(None) => break Err(CtlError::Unexpected),
                Err(error) => break Err(error),
            }
        };
        reporter.clear();
        result
    }

    fn list(&mut self) -> Result<(), CtlError> {
        let (mut torrents, mut list) = (Vec::new(), text::List::new());
        let mut answers = self.daemon.ask(&Request::List)?;
        while let Some(answer) = answers.next()? {
            let Answer::Torrents(rows) = answer else { return Err(CtlError::Unexpected) };
            if self.json {
                torrents.extend(rows);
            } else {
                rows.into_iter().for_each(|row| list.add(row));
            }
        }
        if self.json {
            return Ok(json::document(self.out, &json::List { torrents })?);
        }
        Ok(list.write(self.out)?)
    }

    fn search(&mut self, words: String) -> Result<(), CtlError> {
        let mut answers = self.daemon.ask(&Request::Search(Search { words, limit: SEARCH_HITS, offset: 0 }))?;
        let (mut total, mut hits) = (0, Vec::new());
        while let Some(answer) = answers.next()? {
            match answer {
                Answer::SearchTotal(count) => total = count,
                Answer::SearchHits(rows) => hits.extend(rows),
                _ => return Err(CtlError::Unexpected),
            }
        }
        if self.json {
            return Ok(json::document(self.out, &json::Search { total, hits })?);
        }
        Ok(text::search(self.out, total, &hits)?)
    }

    fn show(&mut self, what: &str) -> Result<(), CtlError> {
        let mut answers = self.ask_about(classify(what, Scope::Own)?, Request::Show)?;
        let (mut torrent, mut files, mut swarm) = (None, Vec::new(), None);
        while let Some(answer) = answers.next()? {
            match answer {
                Answer::Shown(shown) => torrent = Some(shown),
                Answer::Files(rows) => files.extend(rows),
                Answer::Swarm(peers) => swarm = Some(peers),
                _ => return Err(CtlError::Unexpected),
            }
        }
        let shown = torrent.ok_or(CtlError::Unexpected)?;
        if self.json {
            return Ok(json::document(self.out, &json::Show { shown, files, swarm })?);
        }
        Ok(text::show(self.out, &shown, &files, swarm.as_ref())?)
    }

    fn status(&mut self) -> Result<(), CtlError> {
        let answers = self.daemon.ask(&Request::Status)?;
        let Answer::Status(status) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &status)?);
        }
        Ok(text::status(self.out, &status)?)
    }

    fn peers(&mut self, what: Option<&str>) -> Result<(), CtlError> {
        let mut answers = match what {
            Some(what) => self.ask_about(classify(what, Scope::Own)?, |what| Request::Peers(Some(what)))?,
            None => self.daemon.ask(&Request::Peers(None))?,
        };
        let (mut rows, mut identities) = (Vec::new(), HashMap::new());
        while let Some(answer) = answers.next()? {
            match answer {
                Answer::PeerIdentities(more) => {
                    identities.extend(more.into_iter().map(|p| ((p.key, p.addr), p.identity)))
                }
                Answer::Peers(more) => rows.extend(more),
                _ => return Err(CtlError::Unexpected),
            }
        }
        let entry = |row: PeerRow| json::PeerEntry { identity: identities.remove(&(row.key, row.addr)), row };
        let peers: Vec<json::PeerEntry> = rows.into_iter().map(entry).collect();
        if self.json {
            return Ok(json::document(self.out, &json::Peers { peers })?);
        }
        Ok(text::peers(self.out, &peers)?)
    }

    fn ledger(&mut self) -> Result<(), CtlError> {
        let mut ledger = Vec::new();
        let mut answers = self.daemon.ask(&Request::Ledger)?;
        while let Some(answer) = answers.next()? {
            let Answer::Ledger(rows) = answer else { return Err(CtlError::Unexpected) };
            ledger.extend(rows);
        }
        if self.json {
            return Ok(json::document(self.out, &ledger.into_iter().collect::<json::Ledger>())?);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(text::ledger(self.out, &ledger, now)?)
    }

    fn change(&mut self, what: &str, request: fn(What) -> Request) -> Result<(), CtlError> {
        let answers = self.ask_about(classify(what, Scope::Own)?, request)?;
        let Answer::Changed(changed) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &changed)?);
        }
        let Changed { name, state, .. } = changed;
        let text = format!("{name}: {}", text::state(state));
        Ok(writeln!(self.out, "{}", crate::wire::name::escape_for_terminal(&text))?)
    }

    fn verify(&mut self, what: &str) -> Result<(), CtlError> {
        let answers = self.ask_about(classify(what, Scope::Own)?, Request::Verify)?;
        let Answer::Verified(verified) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &verified)?);
        }
        Ok(text::verified(self.out, &verified)?)
    }

    fn remove(&mut self, what: &str, data: bool, yes: bool) -> Result<(), CtlError> {
        let what = classify(what, Scope::Own)?;
        let answers = self.ask_about(what, |what| Request::Remove(Remove { what, data, yes }))?;
        let Answer::Removed(removed) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &removed)?);
        }
        Ok(text::removed(self.out, &removed)?)
    }

    fn share(&mut self, path: &Path, public: bool) -> Result<(), CtlError> {
        if !path.exists() {
            let message = format!("{}: there is no such file or folder", path.display());
            return Err(Failure::not_found(message).into());
        }
        let path = absolute(path)?;
        let answers = self.daemon.ask(&Request::Share(Share { path: path.into(), public }))?;
        let Answer::Shared(shared) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &shared)?);
        }
        Ok(text::shared(self.out, &shared)?)
    }

    fn limit(&mut self, up: Option<Rate>, down: Option<Rate>) -> Result<(), CtlError> {
        let set =
            SetLimits { up_bytes_per_s: up.map(Rate::bytes_per_s), down_bytes_per_s: down.map(Rate::bytes_per_s) };
        let answers = self.daemon.ask(&Request::Limit(set))?;
        let Answer::Limits(limits) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &limits)?);
        }
        Ok(text::limits(self.out, &limits)?)
    }

    fn leave(&mut self) -> Result<(), CtlError> {
        let answers = self.daemon.ask(&Request::Leave)?;
        let Answer::Left(left) = self.last(answers)? else { return Err(CtlError::Unexpected) };
        if self.json {
            return Ok(json::document(self.out, &left)?);
        }
        Ok(text::left(self.out, &left)?)
    }

    /// The one answer of a command, with progress shown on the way; `--json` has one document only.
    fn last(&mut self, mut answers: Answers) -> Result<Answer, CtlError> {
        let mut reporter = if self.json { Reporter::Quiet } else { self.reporter() };
        let result = loop {
            match answers.next() {
                Ok(Some(Answer::Progress(progress))) => reporter.progress(self.out, &progress)?,
                Ok(Some(answer)) => break Ok(answer),
                Ok(None) => break Err(CtlError::Unexpected),
                Err(error) => break Err(error),
            }
        };
        reporter.clear();
        result
    }

    fn reporter(&self) -> Reporter {
        match self.terminals {
            _ if self.json => Reporter::Json,
            Terminals { stdout: true, stderr: true, .. } => Reporter::bar(),
            _ => Reporter::Lines(Lines::default()),
        }
    }

    /// Asks; when several torrents match and somebody sits at a terminal, asks them which, and then for that one.
    fn ask_about(&mut self, what: What, request: impl Fn(What) -> Request) -> Result<Answers, CtlError> {
        let mut answers = self.daemon.ask(&request(what))?;
        let candidates = match answers.peek() {
            Some(Answer::Ambiguous(_)) => answers.next()?,
            Some(Answer::DidYouMean(candidates)) => return Err(CtlError::DidYouMean(candidates.clone())),
            _ => return Ok(answers),
        };
        let Some(Answer::Ambiguous(candidates)) = candidates else { return Err(CtlError::Unexpected) };
        let Terminals { stdin, stderr, .. } = self.terminals;
        if self.json || !stdin || !stderr {
            return Err(CtlError::Ambiguous(candidates));
        }
        match choose(&candidates, &mut io::stdin().lock(), &mut io::stderr())? {
            Some(chosen) => self.daemon.ask(&request(What::InfoHash(chosen.key))),
            None => Err(CtlError::Ambiguous(candidates)),
        }
    }
}

/// `None` when the user gives none of the numbers.
fn choose<'c>(
    candidates: &'c [Candidate],
    input: &mut dyn BufRead,
    out: &mut dyn Write,
) -> io::Result<Option<&'c Candidate>> {
    text::numbered_candidates(out, candidates)?;
    for _ in 0..CHOICES {
        write!(out, "Which one (1-{}, Enter for none)? ", candidates.len())?;
        out.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(None);
        }
        let number = line.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        if let Some(candidate) = number.and_then(|index| candidates.get(index)) {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// The daemon runs in another folder.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::args::Args;
    use crate::ctl::fake::{frames, serve};
    use crate::wire::control::samples;
    use clap::{CommandFactory, Parser};

    /// What a command line does with these answers: its result, its output, the requests that the daemon heard.
    fn run(command_line: &[&str], answers: &[Answer]) -> (Result<(), CtlError>, String, Vec<Request>) {
        let (socket, thread) = serve(vec![frames(answers)]);
        let args = Args::try_parse_from([&["peerctl"], command_line].concat()).unwrap();
        let mut out = Vec::new();
        let mut session = Session::new(Some(socket), args.json, &mut out);
        session.terminals = Terminals { stdin: false, stdout: false, stderr: false };
        let result = session.run(args.command);
        (result, String::from_utf8(out).unwrap(), thread.join().unwrap())
    }

    #[test]
    fn the_command_line_is_as_designed() {
        Args::command().debug_assert();
        for wrong in [&["watch"][..], &["get"], &["get", "a", "b"], &["remove", "--yes", "x"], &["pause"]] {
            assert!(Args::try_parse_from([&["peerctl"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn get_asks_for_an_absolute_folder_and_tells_how_it_goes() {
        let answers =
            [Answer::Started(samples::started()), Answer::Progress(samples::progress()), Answer::Done(samples::done())];
        let (result, out, heard) = run(&["get", "got 5", "--to", "sub dir"], &answers);
        result.unwrap();
        assert_eq!(out.lines().count(), 3);
        assert!(out.ends_with("received in 2.5 s: /d/got5.mp4\n"), "{out}");
        let to = std::env::current_dir().unwrap().join("sub dir");
        let what = What::Words("got 5".into());
        assert_eq!(heard, [Request::Get(Get { what, to: Some(to.into()), detach: false })]);

        assert_eq!(run(&["get", "x", "--quiet"], &answers).1, "");
        let (_, _, heard) = run(&["get", "x", "--sequential"], &answers);
        let what = What::Words("x".into());
        assert_eq!(heard, [Request::GetInOrder(Get { what, to: None, detach: false })]);
        let (result, out, _) = run(&["get", "x", "--detach", "--json"], &answers[..1]);
        assert!(result.is_ok() && out.contains(r#""event":"started""#), "{out}");
        let (result, _, _) = run(&["get", "x"], &answers[..1]);
        assert!(matches!(result, Err(CtlError::Unexpected)), "an answer without its end is no success");
    }

    #[test]
    fn without_a_terminal_candidates_end_the_command() {
        for (answer, code) in [
            (Answer::Ambiguous(samples::candidates()), 5),
            (Answer::DidYouMean(samples::candidates()), 4),
            (Answer::Failed(Failure::not_found("nobody shares it")), 4),
        ] {
            for command in ["get", "show", "pause", "resume", "verify", "remove", "peers"] {
                let (result, out, _) = run(&[command, "got"], std::slice::from_ref(&answer));
                assert_eq!((result.unwrap_err().exit_code(), out.as_str()), (code, ""), "{command}");
            }
        }
    }

    #[test]
    fn each_command_asks_for_itself_and_renders_its_answer() {
        let words = || What::Words("x".into());
        let cases = [
            (&["list"][..], Answer::Torrents(samples::torrent_rows()), Request::List),
            (&["show", "x"], Answer::Shown(samples::shown()), Request::Show(words())),
            (&["status"], Answer::Status(samples::status()), Request::Status),
            (&["peers"], Answer::Peers(samples::peer_rows()), Request::Peers(None)),
            (&["ledger"], Answer::Ledger(samples::ledger_rows()), Request::Ledger),
            (&["pause", "x"], Answer::Changed(samples::changed()), Request::Pause(words())),
            (&["resume", "x"], Answer::Changed(samples::changed()), Request::Resume(words())),
            (&["verify", "x"], Answer::Verified(samples::verified()), Request::Verify(words())),
            (
                &["remove", "--data", "x"],
                Answer::Removed(samples::removed()),
                Request::Remove(Remove { what: words(), data: true, yes: false }),
            ),
            (
                &["share", "--public", "/"],
                Answer::Shared(samples::shared()),
                Request::Share(Share { path: "/".into(), public: true }),
            ),
            (
                &["limit", "--up", "2M"],
                Answer::Limits(samples::limits()),
                Request::Limit(SetLimits { up_bytes_per_s: Some(2 << 20), down_bytes_per_s: None }),
            ),
            (&["leave"], Answer::Left(samples::left()), Request::Leave),
        ];
        for (command, answer, request) in cases {
            let (result, text, heard) = run(command, std::slice::from_ref(&answer));
            result.unwrap();
            assert!(!text.is_empty());
            assert_eq!(heard, [request]);
            let (result, json, _) = run(&[&["--json"], command].concat(), &[answer]);
            result.unwrap();
            assert_eq!(json.lines().count(), 1);
            assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap().is_object(), "{command:?}");
            let (result, _, _) = run(command, &[Answer::SearchTotal(1)]);
            assert!(matches!(result, Err(CtlError::Unexpected)), "{command:?} takes another command's answer");
        }
    }

    #[test]
    fn a_choice_is_a_number_of_the_list() {
        let candidates = samples::candidates();
        let answer = |typed: &str| {
            let mut out = Vec::new();
            let chosen = choose(&candidates, &mut typed.as_bytes(), &mut out).unwrap();
            assert!(String::from_utf8(out).unwrap().contains(&candidates[1].key.to_hex()));
            chosen.map(|candidate| candidate.key)
        };
        assert_eq!(answer("2\n"), Some(candidates[1].key));
        assert_eq!(answer("0\nx\n 1 \n"), Some(candidates[0].key));
        assert_eq!(answer("3\n-1\n99999999999999999999\n1\n"), None);
        assert_eq!(answer("\n"), None);
        assert_eq!(answer(""), None);
    }
}
