//! Links: what a connection holds unsent, how an uplink is shared, what a downlink lets through.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Time;

/// A full Ethernet frame carries this much of a TCP stream (timestamps on) ...
const PACKET_PAYLOAD_BYTES: u64 = 1_448;
/// ... and weighs so much more.
const PACKET_HEADER_BYTES: u64 = 66;
/// What a flow sends before the next one's turn: the few packets that Linux lets each socket have in the queue of a
/// slow link (TCP small queues with segments sized to a millisecond of the flow's rate: two of two packets).
pub(super) const QUANTUM_BYTES: u32 = 4 * PACKET_PAYLOAD_BYTES as u32;
/// What may wait in front of a downlink before its senders hear of it: as deep as access routers' queues are.
const DOWNLINK_QUEUE: Duration = Duration::from_millis(50);

/// The payload rate of a link: what is left of it for TCP's stream in full frames.
pub fn payload_bytes_per_s(bits_per_s: u64) -> f64 {
    let frame = PACKET_PAYLOAD_BYTES + PACKET_HEADER_BYTES;
    bits_per_s as f64 / 8.0 * PACKET_PAYLOAD_BYTES as f64 / frame as f64
}

/// Time on a link for so much of a TCP stream with its headers: in proportion, and never less than one header.
fn time_on_link(stream_bytes: u64, bits_per_s: u64) -> Duration {
    let headers = (stream_bytes * PACKET_HEADER_BYTES / PACKET_PAYLOAD_BYTES).max(PACKET_HEADER_BYTES);
    Duration::from_nanos((stream_bytes + headers) * 8_000_000_000 / bits_per_s)
}

/// A run of a stream: bytes that say something, then payload, of which only the length is known.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    pub payload_bytes: u32,
    pub spoiled: bool,
}

impl Chunk {
    pub fn stream_bytes(&self) -> u64 {
        self.bytes.len() as u64 + u64::from(self.payload_bytes)
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    bytes: u32,
    payload_bytes: u32,
    spoiled: bool,
}

/// What one end of a connection has handed over and the link has not taken.
#[derive(Debug, Default)]
pub(super) struct Socket {
    bytes: Vec<u8>,
    taken: usize,
    segments: VecDeque<Segment>,
    unsent: u32,
}

impl Socket {
    pub fn unsent_bytes(&self) -> u32 {
        self.unsent
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.unsent += bytes.len() as u32;
        match self.segments.back_mut() {
            Some(last) if last.payload_bytes == 0 => last.bytes += bytes.len() as u32,
            _ => self.segments.push_back(Segment { bytes: bytes.len() as u32, payload_bytes: 0, spoiled: false }),
        }
    }

    pub fn push_block(&mut self, header: &[u8], payload_bytes: u32, spoiled: bool) {
        self.push(header);
        self.unsent += payload_bytes;
        if let Some(last) = self.segments.back_mut() {
            (last.payload_bytes, last.spoiled) = (payload_bytes, spoiled);
        }
    }

    /// The next run of at most [`QUANTUM_BYTES`], written over `bytes`.
    pub fn take(&mut self, mut bytes: Vec<u8>) -> Chunk {
        bytes.clear();
        let Some(front) = self.segments.front_mut() else { return Chunk { bytes, ..Chunk::default() } };
        let said = front.bytes.min(QUANTUM_BYTES);
        bytes.extend_from_slice(&self.bytes[self.taken..self.taken + said as usize]);
        self.taken += said as usize;
        front.bytes -= said;
        let payload_bytes = if front.bytes == 0 { front.payload_bytes.min(QUANTUM_BYTES - said) } else { 0 };
        front.payload_bytes -= payload_bytes;
        let spoiled = front.spoiled;
        if front.bytes + front.payload_bytes == 0 {
            self.segments.pop_front();
        }
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
        self.unsent -= said + payload_bytes;
        Chunk { bytes, payload_bytes, spoiled }
    }
}

/// An uplink serves its connections in turn.
#[derive(Debug)]
pub(super) struct Uplink {
    bits_per_s: u64,
    /// Connections with something to send, by session.
    pub turns: VecDeque<u32>,
    /// When the next turn begins, if somebody waits for it.
    pub free_at: Time,
}

impl Uplink {
    pub fn new(bits_per_s: u64) -> Uplink {
        Uplink { bits_per_s, turns: VecDeque::new(), free_at: Time::ZERO }
    }

    /// The connection has something to send: it waits for its turn behind the others.
    pub fn enter(&mut self, now: Time, session: u32) {
        self.turns.push_back(session);
        self.free_at = self.free_at.max(now);
    }

    /// Puts so much of a stream on the link; returns when its last bit has left.
    pub fn send(&mut self, now: Time, stream_bytes: u64) -> Time {
        self.free_at = now + time_on_link(stream_bytes, self.bits_per_s);
        self.free_at
    }
}

/// A downlink passes what arrives at its own rate; what comes faster waits before it.
#[derive(Debug)]
pub(super) struct Downlink {
    bits_per_s: u64,
    free_at: Time,
}

impl Downlink {
    pub fn new(bits_per_s: u64) -> Downlink {
        Downlink { bits_per_s, free_at: Time::ZERO }
    }

    /// The last bit of so much of a stream has arrived before the link; returns when it is through. A link that was
    /// idle while it came in has passed it meanwhile.
    pub fn pass(&mut self, now: Time, stream_bytes: u64) -> Time {
        let takes = time_on_link(stream_bytes, self.bits_per_s);
        let began = Time::from_nanos(now.as_nanos().saturating_sub(takes.as_nanos() as u64));
        self.free_at = self.free_at.max(began) + takes;
        self.free_at.max(now)
    }

    /// How long a sender with this much delay should pause, if at all, for the queue to be nearly empty when it is
    /// heard again. It stands for what losses and TCP's windows do: the sum of the flows comes down to the link's rate.
    pub fn pause(&self, now: Time, delay: Duration) -> Option<Duration> {
        let queue = self.free_at.since(now);
        (queue > DOWNLINK_QUEUE).then(|| queue.saturating_sub(delay * 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_stream_is_charged_its_headers_and_a_lone_message_one() {
        assert_eq!(time_on_link(1_448_000, 8_000_000), Duration::from_micros(1_514_000));
        assert_eq!(time_on_link(9, 8_000_000), Duration::from_micros(75));
        assert!((payload_bytes_per_s(8_000_000) - 956_406.9).abs() < 0.1);
    }

    #[test]
    fn a_socket_gives_in_order_what_it_was_given() {
        let mut socket = Socket::default();
        socket.push(&[1, 2]);
        socket.push_block(&[3], 10_000, true);
        socket.push(&[4]);
        socket.push(&[5]);
        assert_eq!(socket.unsent_bytes(), 10_005);
        let first = socket.take(vec![9]);
        assert_eq!((first.bytes, first.payload_bytes, first.spoiled), (vec![1, 2, 3], QUANTUM_BYTES - 3, true));
        let second = socket.take(Vec::new());
        assert_eq!((second.bytes, second.payload_bytes), (vec![], 10_003 - QUANTUM_BYTES));
        let third = socket.take(Vec::new());
        assert_eq!((third.bytes, third.payload_bytes, third.spoiled), (vec![4, 5], 0, false));
        assert_eq!((socket.unsent_bytes(), socket.bytes.len()), (0, 0));
    }

    #[test]
    fn an_idle_downlink_passes_at_once_and_a_busy_one_at_its_rate() {
        let mut link = Downlink::new(8_000_000);
        let ms = |ms: u64| Time::from_nanos(ms * 1_000_000);
        assert_eq!(link.pass(ms(100), 1_448), ms(100));
        // Two arrive at one moment: the second waits for the first.
        assert_eq!(link.pass(ms(200), 1_448), ms(200));
        assert_eq!(link.pass(ms(200), 1_448), ms(200) + Duration::from_micros(1_514));
        assert_eq!(link.pause(ms(200), Duration::from_millis(10)), None);
        link.pass(ms(200), 100 * 1_448);
        assert!(link.pause(ms(200), Duration::from_millis(10)).is_some_and(|pause| pause > Duration::from_millis(100)));
    }
}
