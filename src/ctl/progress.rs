//! How `get`, `share` and `verify` say how far they are.

use super::json::{self, GetEvent};
use super::text;
use crate::wire::control::{Done, Progress, Started, State};
use crate::wire::name::escape_for_terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The bar is drawn on a terminal; a file or a pipe gets lines, a program JSON.
pub(super) enum Reporter {
    Quiet,
    Json,
    Lines(Lines),
    Bar(ProgressBar),
}

impl Reporter {
    pub(super) fn bar() -> Reporter {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
        let style = ProgressStyle::with_template("{prefix:78!}\n{bar:12} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Reporter::Bar(bar)
    }

    pub(super) fn started(&mut self, out: &mut dyn Write, started: &Started, detached: bool) -> io::Result<()> {
        let goes_on = if detached { "the daemon goes on" } else { "Ctrl-C leaves it going on in the daemon" };
        let Started { name, n_parts, .. } = started;
        let text = format!("{name}: {} in {n_parts} pieces; {goes_on}", text::bytes(started.size));
        match self {
            Reporter::Quiet => Ok(()),
            Reporter::Json => json::document(out, &GetEvent::Started(started)),
            _ => line(out, &text),
        }
    }

    pub(super) fn progress(&mut self, out: &mut dyn Write, progress: &Progress) -> io::Result<()> {
        match self {
            Reporter::Quiet => Ok(()),
            Reporter::Json => json::document(out, &GetEvent::Progress(progress)),
            Reporter::Lines(lines) => lines.progress(out, progress, Instant::now()),
            Reporter::Bar(bar) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.have_bytes);
                bar.set_prefix(escape_for_terminal(&title(progress)));
                bar.set_message(numbers(progress));
                Ok(())
            }
        }
    }

    pub(super) fn done(&mut self, out: &mut dyn Write, done: &Done) -> io::Result<()> {
        self.clear();
        let Done { name, size, received_bytes, elapsed_ms, path, .. } = done;
        let (size, received) = (text::bytes(*size), text::bytes(*received_bytes));
        let path = path.to_text();
        let text = format!("{name}: done, {size}, {received} received in {}: {path}", text::elapsed(*elapsed_ms));
        match self {
            Reporter::Quiet => Ok(()),
            Reporter::Json => json::document(out, &GetEvent::Done(done)),
            _ => line(out, &text),
        }
    }

    /// Takes the bar away, before anything else is written.
    pub(super) fn clear(&mut self) {
        if let Reporter::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Lines for a log: one when the state changes or another tenth is done, at most one a second, and one in half a minute
/// when nothing changes.
#[derive(Default)]
pub(super) struct Lines {
    /// When the last one was written, and what it said.
    last: Option<(Instant, State, u64)>,
}

impl Lines {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    fn progress(&mut self, out: &mut dyn Write, progress: &Progress, now: Instant) -> io::Result<()> {
        let tenth = (u128::from(progress.have_bytes) * 10 / u128::from(progress.total_bytes.max(1))) as u64;
        let due = match self.last {
            None => true,
            Some((at, state, last_tenth)) => {
                let changed = state != progress.state || last_tenth != tenth;
                now - at >= if changed { Self::SHORTEST } else { Self::LONGEST }
            }
        };
        if !due {
            return Ok(());
        }
        self.last = Some((now, progress.state, tenth));
        line(out, &format!("{}: {}", title(progress), numbers(progress)))
    }
}

fn title(progress: &Progress) -> String {
    format!("{} {}", text::state(progress.state), progress.name)
}

/// Percent, bytes, rate, time to go, pieces, peers: with a short bar before them they fit 80 columns.
fn numbers(progress: &Progress) -> String {
    let Progress { pieces_have, pieces_total, peers, have_bytes, total_bytes, .. } = progress;
    let rate = match progress.rate_bytes_per_s {
        0 => String::new(),
        rate => format!(", {}", text::rate(rate)),
    };
    let eta = progress.eta_s.map_or(String::new(), |seconds| format!(", {} left", text::duration(seconds)));
    format!(
        "{} of {}{rate}{eta}, {pieces_have}/{pieces_total} pieces, {}",
        text::percent(*have_bytes, *total_bytes),
        text::bytes(*total_bytes),
        text::counted(u64::from(*peers), "peer"),
    )
}

/// At once, so that who watches the file sees it.
fn line(out: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(out, "{}", escape_for_terminal(text))?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::samples;

    #[test]
    fn a_line_has_everything() {
        let mut out = Vec::new();
        Lines::default().progress(&mut out, &samples::progress(), Instant::now()).unwrap();
        let line = "downloading got5.mp4: 49.9 % of 1.0 MiB, 256.0 KiB/s, 3 s left, 8/17 pieces, 3 peers\n";
        assert_eq!(String::from_utf8(out).unwrap(), line);
        let stalled = Progress { rate_bytes_per_s: 0, eta_s: None, peers: 1, ..samples::progress() };
        assert_eq!(numbers(&stalled), "49.9 % of 1.0 MiB, 8/17 pieces, 1 peer");
    }

    #[test]
    fn lines_come_by_tenths_at_most_one_a_second() {
        let begin = Instant::now();
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for ms in (0..20_000).step_by(100) {
            let progress = Progress { have_bytes: ms, total_bytes: 20_000, ..samples::progress() };
            lines.progress(&mut out, &progress, begin + Duration::from_millis(ms)).unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&out).lines().count(), 10);
        // Stalled: one each half minute.
        for s in 20..140 {
            let progress = Progress { have_bytes: 19_900, total_bytes: 20_000, ..samples::progress() };
            lines.progress(&mut out, &progress, begin + Duration::from_secs(s)).unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&out).lines().count(), 14);
        assert!(!out.contains(&0x1b), "no terminal sequence goes into a file");
    }

    #[test]
    fn quiet_is_quiet_and_json_is_a_document_a_line() {
        let mut out = Vec::new();
        for mut reporter in [Reporter::Quiet, Reporter::Json] {
            reporter.started(&mut out, &samples::started(), false).unwrap();
            reporter.progress(&mut out, &samples::progress()).unwrap();
            reporter.done(&mut out, &samples::done()).unwrap();
        }
        let text = String::from_utf8(out).unwrap();
        let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 3);
        assert_eq!(events[2]["event"], "done");
        assert_eq!(events[2]["path"], "/d/got5.mp4");
    }
}
