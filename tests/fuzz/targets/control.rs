//! The frames between `peerctl` and `peerd`, both ends.

use peerd::wire::catalogue::Match;
use peerd::wire::control::{
    Answer, AnswerDecoder, ENVELOPE_BYTES, FrameError, Received, ReceivedAnswer, RequestDecoder, encode_answer,
    encode_request,
};

use super::bounds::{SLACK_BYTES, bounded, bounded_by};

/// Length and envelope.
const SHORTEST_FRAME_BYTES: usize = 4 + ENVELOPE_BYTES;
/// What serde reserves for a list at most, believing the count that stands before it.
const RESERVED_BYTES: usize = 1 << 20;
/// An answer's rows in memory for each of their bytes in the frame: a file's row takes 40 for the three that it has at
/// least, in a vector that grows by doubling.
const ROW_BYTES_PER_BYTE: usize = 3 * 40 / 3;

/// Lenient: a number may be written with more bytes than it needs (postcard), and a `.torrent` be cut into chunks of any
/// length.
pub fn requests(input: &[u8]) {
    check_requests(input, RequestDecoder::push);
}

pub fn check_requests(input: &[u8], push: impl Fn(&mut RequestDecoder, &[u8])) {
    let count = bounded(input, || {
        let mut decoder = RequestDecoder::default();
        push(&mut decoder, input);
        std::iter::from_fn(|| decoder.next_request().ok().flatten()).count()
    });
    assert!(count <= input.len() / SHORTEST_FRAME_BYTES);

    let received = read_requests(input, input.len());
    assert_eq!(read_requests(input, 1), received);
    for one in &received.0 {
        let Ok(request) = &one.request else { continue };
        let again = encode_request(one.request_id, request).expect("what was read can be written");
        assert_eq!(read_requests(&again, again.len()).0.as_slice(), std::slice::from_ref(one));
        // As long as the shortest form is the shortest form.
        assert!(again.len() != input.len() || again == input, "{request:?}");
    }
}

fn read_requests(input: &[u8], cut: usize) -> (Vec<Received>, Option<FrameError>) {
    let (mut decoder, mut received) = (RequestDecoder::default(), Vec::new());
    for bytes in input.chunks(cut.max(1)) {
        decoder.push(bytes);
        loop {
            match decoder.next_request() {
                Ok(Some(one)) => received.push(one),
                Ok(None) => break,
                Err(error) => return (received, Some(error)),
            }
        }
    }
    (received, None)
}

/// Lenient as [`requests`]. What of an answer cannot be read, of whatever kind, is passed over: it is a newer daemon's. A
/// hit's match that is not known, longer or shorter, reads as a typo's.
///
/// `peerctl` reads its own user's daemon: its rows take more than four times their bytes, in a frame of at most 1 MiB.
pub fn answers(input: &[u8]) {
    check_answers(input, AnswerDecoder::next_answer);
}

pub fn check_answers(input: &[u8], next: impl Fn(&mut AnswerDecoder) -> Result<Option<ReceivedAnswer>, FrameError>) {
    let slack = SLACK_BYTES + RESERVED_BYTES + ROW_BYTES_PER_BYTE * input.len();
    let count = bounded_by(input, slack, || {
        let mut decoder = AnswerDecoder::default();
        decoder.push(input);
        std::iter::from_fn(|| next(&mut decoder).ok().flatten()).count()
    });
    assert!(count <= input.len() / SHORTEST_FRAME_BYTES);

    let received = read_answers(input, input.len());
    assert_eq!(read_answers(input, 1), received);
    for one in &received.0 {
        let Some(answer) = &one.answer else { continue };
        let again = encode_answer(one.request_id, answer, one.last).expect("what was read can be written");
        assert_eq!(read_answers(&again, again.len()).0.as_slice(), std::slice::from_ref(one));
        let renamed = matches!(answer, Answer::SearchHits(hits) if hits.iter().any(|hit| hit.matched == Match::Typo));
        assert!(again.len() != input.len() || again == input || renamed, "{answer:?}");
    }
}

fn read_answers(input: &[u8], cut: usize) -> (Vec<ReceivedAnswer>, Option<FrameError>) {
    let (mut decoder, mut received) = (AnswerDecoder::default(), Vec::new());
    for bytes in input.chunks(cut.max(1)) {
        decoder.push(bytes);
        loop {
            match decoder.next_answer() {
                Ok(Some(one)) => received.push(one),
                Ok(None) => break,
                Err(error) => return (received, Some(error)),
            }
        }
    }
    (received, None)
}
