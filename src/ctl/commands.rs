//! One function for each command: ask, then render.

use super::Terminals;
use super::args::Command;
use super::client::{Answers, Daemon};
use super::error::CtlError;
use super::json;
use super::progress::{Lines, Reporter};
use super::text;
use super::what::{Scope, classify};
use crate::wire::control::{Answer, Candidate, Changed, Failure, Get, Remove, Request, Search, Share, What};
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
            Command::Get { what, to, quiet, detach } => self.get(&what, to, quiet, detach),
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
            Command::Leave => self.leave(),
        }
    }

    fn get(&mut self, what: &str, to: Option<PathBuf>, quiet: bool, detach: bool) -> Result<(), CtlError> {
        let what = classify(what, Scope::Network)?;
        let to = to.as_deref().map(absolute).transpose()?;
        let get = |what| Request::Get(Get { what, to: to.clone().map(Into::into), detach });
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
        let mut torrents = Vec::new();
        let mut answers = self.daemon.ask(&Request::List)?;
        while let Some(answer) = answers.next()? {
            let Answer::Torrents(rows) = answer else { return Err(CtlError::Unexpected) };
            torrents.extend(rows);
        }
        if self.json {
            return Ok(json::document(self.out, &json::List { torrents })?);
        }
        Ok(text::list(self.out, &torrents)?)
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
        let mut peers = Vec::new();
        while let Some(answer) = answers.next()? {
            let Answer::Peers(rows) = answer else { return Err(CtlError::Unexpected) };
            peers.extend(rows);
        }
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
    use crate::wire::control::samples;

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
