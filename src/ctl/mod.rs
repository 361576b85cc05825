//! `peerctl`: arguments, the control client, rendering. It sees the daemon only through the socket.

mod args;
mod client;
mod commands;
mod error;
#[cfg(test)]
mod fake;
mod json;
mod progress;
mod socket;
mod text;
mod what;

pub use args::Args;
pub use client::{Answers, Daemon};
pub use error::CtlError;
pub use socket::{NoDaemon, connect};

use commands::Session;
use std::io::{self, IsTerminal, Write};

/// Runs one command and says what came of it on standard output and standard error.
///
/// Returns the exit code: 0 done, 1 failed, 2 usage, 3 no daemon, 4 not found, 5 ambiguous. A reader that has closed
/// our output had what it wanted: that is success.
pub fn run(args: Args) -> u8 {
    let mut stdout = io::stdout().lock();
    let json = args.json;
    let result = Session::new(args.socket, json, &mut stdout).run(args.command);
    let result = result.and_then(|()| Ok(stdout.flush()?));
    match result {
        Ok(()) => 0,
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            // What cannot be said to a closed output is lost; the exit code says it still.
            let _ = if json { json::error(&mut stdout, &error) } else { report(&mut stdout, &error) };
            error.exit_code()
        }
    }
}

/// The candidates on standard output, the message on standard error.
fn report(out: &mut dyn Write, error: &CtlError) -> io::Result<()> {
    writeln!(io::stderr(), "peerctl: {}", error.for_terminal())?;
    if !error.candidates().is_empty() {
        text::candidates(out, error.candidates())?;
    }
    out.flush()
}

/// Which of the standard streams are a terminal.
#[derive(Clone, Copy, Debug)]
struct Terminals {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Terminals {
    fn of_this_process() -> Terminals {
        Terminals {
            stdin: io::stdin().is_terminal(),
            stdout: io::stdout().is_terminal(),
            stderr: io::stderr().is_terminal(),
        }
    }
}
