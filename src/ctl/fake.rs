//! A daemon for the tests: it hears one request on each connection and says what it was told to say.

use crate::wire::control::{Answer, Request, RequestDecoder, encode_answer};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;
use tempfile::TempDir;

/// Gives each connection one of these answers. Returns its socket; joined, the requests that it heard.
pub(super) fn serve(answers: Vec<Vec<u8>>) -> (PathBuf, JoinHandle<Vec<Request>>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let _dir = dir;
        answers.iter().map(|answer| serve_one(&listener, answer)).collect()
    });
    (path, thread)
}

fn serve_one(listener: &UnixListener, answer: &[u8]) -> Request {
    let (mut stream, _) = listener.accept().unwrap();
    let mut decoder = RequestDecoder::default();
    let mut buffer = [0; 4096];
    loop {
        if let Some(received) = decoder.next_request().unwrap() {
            stream.write_all(answer).unwrap();
            return received.request.unwrap();
        }
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0);
        decoder.push(&buffer[..n]);
    }
}

/// The frames of one answer.
pub(super) fn frames(answers: &[Answer]) -> Vec<u8> {
    let last = answers.len() - 1;
    answers.iter().enumerate().flat_map(|(i, answer)| encode_answer(1, answer, i == last).unwrap()).collect()
}
