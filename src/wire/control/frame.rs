//! Frames out of a byte stream and into it, without IO: push what came, take what is whole.

use super::{
    Answer, CHUNK, CHUNK_BYTES, ENVELOPE_BYTES, Failure, LAST, MAX_FRAME_BYTES, MAX_TORRENT_BYTES, Request,
    Unsupported, VERSION, What,
};

/// The stream is not ours, or not any more: the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes: at most {MAX_FRAME_BYTES} are taken")]
    TooLong(u32),
    #[error("a frame of {0} bytes: shorter than its envelope")]
    TooShort(u32),
}

/// A value that does not go into a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("an answer of {0} bytes: a frame takes at most {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("a .torrent of {0} bytes: at most {MAX_TORRENT_BYTES} are taken")]
    TorrentTooLong(usize),
    #[error("cannot be encoded: {0}")]
    Postcard(#[from] postcard::Error),
}

/// One frame, its payload not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub version: u16,
    pub request_id: u32,
    /// Without [`LAST`].
    pub kind: u16,
    pub last: bool,
    pub payload: Vec<u8>,
}

/// Cuts a byte stream into frames. It holds at most one frame and what was pushed behind it; an error stays.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Bytes at the buffer's start that are done with.
    read: usize,
    error: Option<FrameError>,
}

impl FrameDecoder {
    /// Bytes as they came. Take the frames they complete before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            // Once for each push, not for each frame: many short frames would else move the rest again and again.
            self.buffer.drain(..std::mem::take(&mut self.read));
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame; `None` until more bytes come.
    ///
    /// # Errors
    /// At the length that no frame of ours has; from then on always.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let Some((length, rest)) = self.buffer.get(self.read..).and_then(<[u8]>::split_first_chunk::<4>) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        if length as usize > MAX_FRAME_BYTES {
            return Err(self.fail(FrameError::TooLong(length)));
        }
        if (length as usize) < ENVELOPE_BYTES {
            return Err(self.fail(FrameError::TooShort(length)));
        }
        let Some([v0, v1, i0, i1, i2, i3, k0, k1, payload @ ..]) = rest.get(..length as usize) else {
            return Ok(None);
        };
        let kind = u16::from_be_bytes([*k0, *k1]);
        let frame = Frame {
            version: u16::from_be_bytes([*v0, *v1]),
            request_id: u32::from_be_bytes([*i0, *i1, *i2, *i3]),
            kind: kind & !LAST,
            last: kind & LAST != 0,
            payload: payload.to_vec(),
        };
        self.read += 4 + length as usize;
        Ok(Some(frame))
    }

    /// Whether a frame has begun and its end has not come.
    pub fn is_mid_frame(&self) -> bool {
        self.read < self.buffer.len()
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.error = Some(error);
        self.buffer = Vec::new();
        self.read = 0;
        error
    }
}

/// Why a request is not carried out; the answer that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Of an unknown kind or version.
    Unsupported(Unsupported),
    /// It cannot be read.
    Malformed(Failure),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        match refusal {
            Refusal::Unsupported(unsupported) => Answer::Unsupported(unsupported),
            Refusal::Malformed(failure) => Answer::Failed(failure),
        }
    }
}

/// A request as it came, for the daemon.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub request_id: u32,
    pub request: Result<Request, Refusal>,
}

/// Puts requests together: chunks of a `.torrent`, then the frame that is marked last.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    frames: FrameDecoder,
    request_id: u32,
    torrent: Vec<u8>,
    refused: Option<Refusal>,
}

impl RequestDecoder {
    /// Bytes as they came. Take the requests they complete before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next whole request; `None` until more bytes come.
    ///
    /// # Errors
    /// When the stream is none of frames; from then on always.
    pub fn next_request(&mut self) -> Result<Option<Received>, FrameError> {
        while let Some(frame) = self.frames.next_frame()? {
            if frame.request_id != self.request_id {
                self.torrent = Vec::new();
                self.refused = None;
                self.request_id = frame.request_id;
            }
            let request = self.take_frame(&frame);
            if frame.last {
                let torrent = std::mem::take(&mut self.torrent);
                let request = match self.refused.take() {
                    Some(refusal) => Err(refusal),
                    None => request.and_then(|request| attach(request, torrent)),
                };
                return Ok(Some(Received { request_id: frame.request_id, request }));
            }
            if let Err(refusal) = request {
                self.refused.get_or_insert(refusal);
            }
        }
        Ok(None)
    }

    fn take_frame(&mut self, frame: &Frame) -> Result<Option<Request>, Refusal> {
        let unsupported = || Refusal::Unsupported(Unsupported { kind: frame.kind, version: VERSION });
        if frame.version != VERSION {
            return Err(unsupported());
        }
        if frame.kind == CHUNK {
            let bytes = self.torrent.len() + frame.payload.len();
            if bytes > MAX_TORRENT_BYTES {
                self.torrent = Vec::new();
                let message = EncodeError::TorrentTooLong(bytes).to_string();
                return Err(Refusal::Malformed(Failure::usage(message)));
            }
            self.torrent.extend_from_slice(&frame.payload);
            return Ok(None);
        }
        match Request::decode(frame.kind, &frame.payload) {
            Some(Ok(request)) => Ok(Some(request)),
            Some(Err(error)) => Err(malformed(&format!("kind {:#06x}: {error}", frame.kind))),
            None => Err(unsupported()),
        }
    }
}

/// Puts the bytes that came ahead into the request that speaks of them.
fn attach(request: Option<Request>, torrent: Vec<u8>) -> Result<Request, Refusal> {
    let mut request = request.ok_or_else(|| malformed("it ends in a chunk"))?;
    match request.what_mut() {
        Some(What::Torrent(bytes)) => *bytes = torrent,
        _ if torrent.is_empty() => {}
        _ => return Err(malformed("chunks that it does not speak of")),
    }
    Ok(request)
}

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(Failure::usage(format!("a request that cannot be read: {what}")))
}

/// An answer's frame as it came, for `peerctl`.
#[derive(Debug, PartialEq, Eq)]
pub struct ReceivedAnswer {
    pub request_id: u32,
    pub last: bool,
    /// `None` when it is of a kind or version that we do not know.
    pub answer: Option<Answer>,
}

/// Reads answers.
#[derive(Debug, Default)]
pub struct AnswerDecoder {
    frames: FrameDecoder,
}

impl AnswerDecoder {
    /// Bytes as they came. Take the answers they complete before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next frame; `None` until more bytes come.
    ///
    /// # Errors
    /// When the stream is none of frames; from then on always.
    pub fn next_answer(&mut self) -> Result<Option<ReceivedAnswer>, FrameError> {
        Ok(self.frames.next_frame()?.map(|frame| {
            let known = if frame.version == VERSION { Answer::decode(frame.kind, &frame.payload) } else { None };
            ReceivedAnswer { request_id: frame.request_id, last: frame.last, answer: known.and_then(Result::ok) }
        }))
    }
}

/// All frames of a request, the chunks of its `.torrent` first.
///
/// # Errors
/// When the `.torrent` passes [`MAX_TORRENT_BYTES`] or the request does not fit a frame.
pub fn encode_request(request_id: u32, request: &Request) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    if let Some(What::Torrent(bytes)) = request.what() {
        if bytes.len() > MAX_TORRENT_BYTES {
            return Err(EncodeError::TorrentTooLong(bytes.len()));
        }
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let frame = begin_frame(request_id, CHUNK);
            out.extend(end_frame([frame, chunk.to_vec()].concat())?);
        }
    }
    let frame = request.encode_payload(begin_frame(request_id, request.kind() | LAST))?;
    out.extend(end_frame(frame)?);
    Ok(out)
}

/// One frame of an answer.
///
/// # Errors
/// When it does not fit.
pub fn encode_answer(request_id: u32, answer: &Answer, last: bool) -> Result<Vec<u8>, EncodeError> {
    let mark = if last { LAST } else { 0 };
    end_frame(answer.encode_payload(begin_frame(request_id, answer.kind() | mark))?)
}

fn begin_frame(request_id: u32, kind: u16) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&VERSION.to_be_bytes());
    frame.extend_from_slice(&request_id.to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame
}

/// Writes the length over the four bytes kept for it.
fn end_frame(mut frame: Vec<u8>) -> Result<Vec<u8>, EncodeError> {
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(EncodeError::TooLong(length));
    }
    for (to, from) in frame.iter_mut().zip((length as u32).to_be_bytes()) {
        *to = from;
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::super::{Get, Share};
    use super::*;
    use proptest::prelude::*;

    fn request_of(bytes: &[u8]) -> Result<Option<Received>, FrameError> {
        let mut decoder = RequestDecoder::default();
        decoder.push(bytes);
        decoder.next_request()
    }

    #[test]
    fn a_frame_that_is_taken_moves_nothing() {
        let frame = encode_answer(7, &Answer::End, false).unwrap();
        let mut decoder = FrameDecoder::default();
        decoder.push(&frame.repeat(1_000));
        for taken in 1..=1_000 {
            assert!(decoder.next_frame().unwrap().is_some());
            assert_eq!((decoder.read, decoder.buffer.len()), (taken * frame.len(), 1_000 * frame.len()));
        }
        assert!(!decoder.is_mid_frame());
        decoder.push(&frame[..5]);
        assert_eq!((decoder.read, decoder.buffer.len(), decoder.is_mid_frame()), (0, 5, true));
    }

    #[test]
    fn an_envelope_spelled_out() {
        let bytes = encode_request(7, &Request::List).unwrap();
        assert_eq!(bytes, [0, 0, 0, 8, 0, 1, 0, 0, 0, 7, 0x80, 0x02]);
        let bytes = encode_answer(0x0102_0304, &Answer::SearchTotal(300), false).unwrap();
        assert_eq!(bytes, [0, 0, 0, 10, 0, 1, 1, 2, 3, 4, 0x01, 0x0B, 0xAC, 0x02]);
    }

    #[test]
    fn a_torrent_travels_in_chunks() {
        let torrent: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
        let request = Request::Get(Get { what: What::Torrent(torrent), to: None, detach: true });
        let bytes = encode_request(9, &request).unwrap();
        assert_eq!(bytes[10..12], [0x00, 0xFF], "the first frame is a chunk and not the last");
        let mut decoder = RequestDecoder::default();
        let mut got = None;
        for part in bytes.chunks(1_000) {
            decoder.push(part);
            if let Some(received) = decoder.next_request().unwrap() {
                got = Some(received);
            }
        }
        assert_eq!(got, Some(Received { request_id: 9, request: Ok(request) }));
        assert!(!decoder.frames.is_mid_frame());
    }

    #[test]
    fn a_torrent_over_the_cap_is_refused_on_both_ends() {
        let what = What::Torrent(vec![0; MAX_TORRENT_BYTES + 1]);
        assert_eq!(encode_request(1, &Request::Show(what)), Err(EncodeError::TorrentTooLong(MAX_TORRENT_BYTES + 1)),);
        let mut decoder = RequestDecoder::default();
        for _ in 0..=MAX_TORRENT_BYTES / CHUNK_BYTES {
            let frame = [begin_frame(1, CHUNK), vec![0; CHUNK_BYTES]].concat();
            decoder.push(&end_frame(frame).unwrap());
            assert_eq!(decoder.next_request(), Ok(None));
        }
        decoder.push(&encode_request(1, &Request::Show(What::Torrent(vec![]))).unwrap());
        let received = decoder.next_request().unwrap().unwrap();
        assert!(matches!(received.request, Err(Refusal::Malformed(failure)) if failure.message.contains(".torrent")));
        decoder.push(&encode_request(2, &Request::List).unwrap());
        assert_eq!(decoder.next_request(), Ok(Some(Received { request_id: 2, request: Ok(Request::List) })));
    }

    #[test]
    fn lengths_out_of_bounds_stick() {
        for (bytes, error) in [
            (&[0xFF, 0xFF, 0xFF, 0xFF][..], FrameError::TooLong(u32::MAX)),
            (&[0, 0x10, 0, 1], FrameError::TooLong(MAX_FRAME_BYTES as u32 + 1)),
            (&[0, 0, 0, 7, 0], FrameError::TooShort(7)),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", FrameError::TooLong(0x4745_5420)),
        ] {
            let mut decoder = RequestDecoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.next_request(), Err(error));
            decoder.push(&encode_request(1, &Request::List).unwrap());
            assert_eq!(decoder.next_request(), Err(error), "a later request must not heal the stream");
        }
    }

    #[test]
    fn a_request_cut_anywhere_waits_for_the_rest() {
        let share = Request::Share(Share { path: "/tmp/x".into(), public: true });
        let bytes = encode_request(3, &share).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(request_of(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        assert!(matches!(request_of(&bytes), Ok(Some(Received { request_id: 3, request: Ok(_) }))));
    }

    #[test]
    fn unknown_kinds_and_versions_are_unsupported_and_the_next_request_is_heard() {
        let mut decoder = RequestDecoder::default();
        let unknown = end_frame([begin_frame(5, 0x00AA), vec![1, 2, 3]].concat()).unwrap();
        decoder.push(&unknown);
        assert_eq!(decoder.next_request(), Ok(None), "the answer waits for the frame marked last");
        decoder.push(&end_frame(begin_frame(5, 0x00AB | LAST)).unwrap());
        let unsupported = Refusal::Unsupported(Unsupported { kind: 0x00AA, version: VERSION });
        assert_eq!(decoder.next_request(), Ok(Some(Received { request_id: 5, request: Err(unsupported) })));

        let mut other_version = encode_request(6, &Request::List).unwrap();
        other_version[5] = 2;
        decoder.push(&other_version);
        let unsupported = Refusal::Unsupported(Unsupported { kind: 2, version: VERSION });
        assert_eq!(decoder.next_request(), Ok(Some(Received { request_id: 6, request: Err(unsupported) })));

        decoder.push(&encode_request(7, &Request::List).unwrap());
        assert_eq!(decoder.next_request(), Ok(Some(Received { request_id: 7, request: Ok(Request::List) })));
    }

    #[test]
    fn payloads_that_are_cut_or_too_long_or_lie_are_answered() {
        let get = Request::Get(Get { what: What::Words("got".into()), to: Some("/x".into()), detach: false });
        let payload = get.encode_payload(Vec::new()).unwrap();
        let ask = |payload: &[u8]| {
            let frame = [&begin_frame(1, get.kind() | LAST), payload].concat();
            request_of(&end_frame(frame).unwrap()).unwrap().unwrap().request
        };
        assert_eq!(ask(&payload), Ok(get.clone()));
        for cut in 0..payload.len() {
            assert!(matches!(ask(&payload[..cut]), Err(Refusal::Malformed(_))), "cut at {cut}");
        }
        assert!(matches!(ask(&[&payload[..], &[0]].concat()), Err(Refusal::Malformed(_))));
        // Words said to be 2^32-1 bytes long.
        assert!(matches!(ask(&[2, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, b'x']), Err(Refusal::Malformed(_))));
        assert!(matches!(ask(&[0x7F]), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn chunks_that_no_request_speaks_of_are_refused() {
        let chunk = end_frame([begin_frame(4, CHUNK), b"d".to_vec()].concat()).unwrap();
        let list = encode_request(4, &Request::List).unwrap();
        let refused = request_of(&[&chunk[..], &list].concat()).unwrap().unwrap().request;
        assert!(matches!(refused, Err(Refusal::Malformed(_))));
        let last = end_frame([begin_frame(4, CHUNK | LAST), b"d".to_vec()].concat()).unwrap();
        assert!(matches!(request_of(&last).unwrap().unwrap().request, Err(Refusal::Malformed(_))));
        // Chunks of a request that was given up do not reach the next one.
        let show = encode_request(5, &Request::Show(What::Torrent(b"e".to_vec()))).unwrap();
        let received = request_of(&[&chunk[..], &show].concat()).unwrap().unwrap();
        assert_eq!(received.request, Ok(Request::Show(What::Torrent(b"e".to_vec()))));
    }

    #[test]
    fn an_answer_over_the_cap_is_not_sent() {
        let answer = Answer::Failed(Failure::failed("x".repeat(MAX_FRAME_BYTES)));
        assert!(matches!(encode_answer(1, &answer, true), Err(EncodeError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn words_round_trip(words in ".{0,100}", to: Option<Vec<u8>>, detach: bool, request_id: u32) {
            let to = to.map(super::super::PathBytes);
            let request = Request::Get(Get { what: What::Words(words), to, detach });
            let bytes = encode_request(request_id, &request).unwrap();
            prop_assert_eq!(request_of(&bytes).unwrap(), Some(Received { request_id, request: Ok(request) }));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, kind in 0u16..0x120, payload: Vec<u8>) {
            let _ = request_of(&bytes);
            let frame = end_frame([begin_frame(1, kind | LAST), payload].concat()).unwrap();
            prop_assert!(request_of(&frame).unwrap().is_some());
            let mut answers = AnswerDecoder::default();
            answers.push(&frame);
            prop_assert!(answers.next_answer().unwrap().is_some());
        }
    }
}
