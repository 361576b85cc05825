//! The control client: blocking, one connection for each request.

use super::error::CtlError;
use super::socket;
use crate::wire::control::{Answer, AnswerDecoder, Request, encode_request};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The daemon says something at least every 10 s while a command waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a busy daemon is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// How long a command waits for a connection to come free; `get` waits for as long as it takes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// The request id: one request for each connection.
const REQUEST_ID: u32 = 1;

/// The way to the daemon. It is looked for at the first request.
#[derive(Debug)]
pub struct Daemon {
    /// As the user named it, then where it was found.
    socket: Option<PathBuf>,
}

impl Daemon {
    /// `socket` as the user named it; the usual places otherwise.
    pub fn new(socket: Option<PathBuf>) -> Daemon {
        Daemon { socket }
    }

    /// Asks, and waits for the first of the answer.
    ///
    /// # Errors
    /// When the daemon cannot be reached, has no place free, or answers with a failure.
    pub fn ask(&mut self, request: &Request) -> Result<Answers, CtlError> {
        let bytes = encode_request(REQUEST_ID, request)?;
        let patient = matches!(request, Request::Get(_) | Request::GetInOrder(_));
        let begin = Instant::now();
        loop {
            let (path, stream) = socket::connect(self.socket.as_deref())?;
            self.socket = Some(path);
            match Answers::begin(stream, &bytes) {
                Err(CtlError::Busy) if patient || begin.elapsed() < BUSY_TIMEOUT => sleep(BUSY_PAUSE),
                answers => return answers,
            }
        }
    }
}

/// An answer as it comes, frame by frame.
#[derive(Debug)]
pub struct Answers {
    stream: UnixStream,
    decoder: AnswerDecoder,
    /// Read, not yet taken.
    first: Option<Answer>,
    finished: bool,
}

impl Answers {
    fn begin(mut stream: UnixStream, request: &[u8]) -> Result<Answers, CtlError> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(CtlError::Socket)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(CtlError::Socket)?;
        // A daemon that refuses us may have closed before it read; what it said is there to be read.
        let written = stream.write_all(request);
        let mut answers = Answers { stream, decoder: AnswerDecoder::default(), first: None, finished: false };
        answers.first = match (answers.read(), written) {
            (Err(CtlError::Lost), Err(error)) => return Err(io_error(error)),
            (first, _) => Some(first?),
        };
        Ok(answers)
    }

    /// The next frame's answer; `None` after the one marked last, and for [`Answer::End`].
    ///
    /// # Errors
    /// When the answer is a failure, or the daemon ends or falls silent before its last frame.
    #[expect(clippy::should_implement_trait, reason = "the result is the other way round")]
    pub fn next(&mut self) -> Result<Option<Answer>, CtlError> {
        let answer = match self.first.take() {
            Some(answer) => answer,
            None if self.finished => return Ok(None),
            None => self.read()?,
        };
        Ok(Some(answer).filter(|answer| *answer != Answer::End))
    }

    /// The answer that comes next, without taking it.
    pub(super) fn peek(&self) -> Option<&Answer> {
        self.first.as_ref()
    }

    fn read(&mut self) -> Result<Answer, CtlError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(received) = self.decoder.next_answer()? {
                self.finished = received.last;
                return match received.answer {
                    Some(Answer::Failed(failure)) => Err(failure.into()),
                    Some(Answer::Unsupported(unsupported)) => Err(CtlError::Unsupported(unsupported)),
                    Some(Answer::Busy) => Err(CtlError::Busy),
                    Some(answer) => Ok(answer),
                    // A newer daemon may say more than we know; only the last word must be known.
                    None if !received.last => continue,
                    None => Err(CtlError::Unexpected),
                };
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(CtlError::Lost),
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(error)),
            }
        }
    }
}

fn io_error(error: io::Error) -> CtlError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => CtlError::Silent,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => CtlError::Lost,
        _ => CtlError::Socket(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fake::{frames, serve};
    use crate::wire::control::{Failure, VERSION, encode_answer, samples};

    #[test]
    fn an_answer_of_several_frames_is_read_to_its_end() {
        let rows = Answer::Torrents(samples::torrent_rows());
        let (socket, thread) = serve(vec![frames(&[rows.clone(), rows.clone(), Answer::End])]);
        let mut answers = Daemon::new(Some(socket)).ask(&Request::List).unwrap();
        assert_eq!(answers.next().unwrap(), Some(rows.clone()));
        assert_eq!(answers.next().unwrap(), Some(rows));
        assert_eq!(answers.next().unwrap(), None);
        assert_eq!(answers.next().unwrap(), None);
        assert_eq!(thread.join().unwrap(), [Request::List]);
    }

    #[test]
    fn failures_carry_their_exit_code_and_a_busy_daemon_is_asked_again() {
        let busy = encode_answer(0, &Answer::Busy, true).unwrap();
        let failed = frames(&[Answer::Failed(Failure::not_found("nobody shares it"))]);
        let (socket, thread) = serve(vec![busy, failed]);
        let error = Daemon::new(Some(socket)).ask(&Request::Status).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (4, "nobody shares it"));
        assert_eq!(thread.join().unwrap().len(), 2);
    }

    #[test]
    fn a_daemon_that_ends_or_speaks_otherwise_is_told_apart() {
        let ask = |answer: Vec<u8>| {
            let (socket, thread) = serve(vec![answer]);
            let mut answers = Daemon::new(Some(socket)).ask(&Request::List)?;
            while answers.next()?.is_some() {}
            thread.join().unwrap();
            Ok::<(), CtlError>(())
        };
        let progress = encode_answer(1, &Answer::Progress(samples::progress()), false).unwrap();
        assert!(matches!(ask(vec![]), Err(CtlError::Lost)));
        assert!(matches!(ask(progress.clone()), Err(CtlError::Lost)));
        assert!(matches!(ask(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), Err(CtlError::NotPeerd(_))));
        let mut unknown = progress;
        unknown[10..12].copy_from_slice(&0x01F0u16.to_be_bytes());
        let end = encode_answer(1, &Answer::End, true).unwrap();
        assert!(ask([unknown.clone(), end.clone()].concat()).is_ok(), "an unknown frame in between is passed over");
        let mut newer = end;
        newer[5] = VERSION as u8 + 1;
        assert!(matches!(ask(newer), Err(CtlError::Unexpected)));
    }
}
