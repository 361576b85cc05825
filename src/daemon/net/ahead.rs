//! Room for the blocks that most likely follow the one that is being filled: what a read brings beyond that goes into
//! their buffers at once, header by header, and not through a copy. A guess that was wrong costs the copy.

use std::io::IoSliceMut;

use crate::daemon::disk::pool::Buffer;
use crate::wire::layout::BLOCK_BYTES;
use crate::wire::message::PIECE_HEADER_BYTES;

/// So much is read ahead, in whole blocks, at least one.
const AHEAD_BYTES: usize = 128 * 1024;
/// However short they are: each has a buffer of the smallest size.
const MOST_BLOCKS: usize = AHEAD_BYTES / BLOCK_BYTES as usize;

/// A block's header and its payload, as they come behind one another.
struct Guess {
    header: [u8; PIECE_HEADER_BYTES],
    payload: Buffer,
}

/// What came where a block was guessed.
pub struct Guessed {
    header: [u8; PIECE_HEADER_BYTES],
    header_bytes: usize,
    /// And how many bytes of it came.
    pub payload: Option<(Buffer, usize)>,
}

impl Guessed {
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_bytes]
    }
}

#[derive(Default)]
pub struct Ahead {
    /// The last comes first.
    guesses: Vec<Guess>,
}

impl Ahead {
    /// Makes room for blocks of this length, as long as `grant` gives memory for them.
    pub fn make_room(&mut self, block_bytes: usize, mut grant: impl FnMut() -> Option<Buffer>) {
        self.guesses.retain(|guess| guess.payload.len() == block_bytes);
        let blocks = (AHEAD_BYTES / block_bytes.max(1)).clamp(1, MOST_BLOCKS);
        while self.guesses.len() < blocks {
            let Some(payload) = grant() else { break };
            self.guesses.push(Guess { header: [0; PIECE_HEADER_BYTES], payload });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.guesses.is_empty()
    }

    /// In the order in which they are to be read into.
    pub fn slices(&mut self) -> impl Iterator<Item = IoSliceMut<'_>> {
        self.guesses
            .iter_mut()
            .rev()
            .flat_map(|Guess { header, payload }| [IoSliceMut::new(header), IoSliceMut::new(payload)])
    }

    /// Takes out the next of those that so many bytes came into; `bytes` counts down.
    pub fn take(&mut self, bytes: &mut usize) -> Option<Guessed> {
        if *bytes == 0 {
            return None;
        }
        let Guess { header, payload } = self.guesses.pop()?;
        let header_bytes = header.len().min(*bytes);
        let payload_bytes = payload.len().min(*bytes - header_bytes);
        *bytes -= header_bytes + payload_bytes;
        let payload = (payload_bytes > 0).then_some((payload, payload_bytes));
        Some(Guessed { header, header_bytes, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::disk::pool::BufferPool;
    use crate::wire::layout::MAX_BLOCK_BYTES;

    #[test]
    fn there_is_room_for_a_few_small_blocks_or_one_large_one_and_no_more_than_is_granted() {
        let pool = BufferPool::new(64 << 20);
        let mut ahead = Ahead::default();
        for (block_bytes, blocks) in [(BLOCK_BYTES, 8), (MAX_BLOCK_BYTES, 1), (10_000, 8), (1, 8), (70_000, 1)] {
            ahead.make_room(block_bytes as usize, || pool.try_take(block_bytes as usize));
            assert_eq!(ahead.guesses.len(), blocks, "{block_bytes}");
            assert!(ahead.guesses.iter().all(|guess| guess.payload.len() == block_bytes as usize));
        }
        let mut two = [pool.try_take(9), pool.try_take(9)].into_iter();
        ahead.make_room(9, || two.next().flatten());
        assert_eq!(ahead.guesses.len(), 2);
    }

    #[test]
    fn what_came_is_taken_out_in_order_and_the_rest_stays_room() {
        let pool = BufferPool::new(1 << 20);
        let mut ahead = Ahead::default();
        let mut lens = 0;
        ahead.make_room(16_384, || {
            lens += 1;
            pool.try_take(16_384)
        });
        let stream: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
        let mut left = &stream[..];
        for mut slice in ahead.slices() {
            let len = slice.len().min(left.len());
            slice[..len].copy_from_slice(&left[..len]);
            left = &left[len..];
        }
        let mut bytes = stream.len();
        let mut got = Vec::new();
        while let Some(guessed) = ahead.take(&mut bytes) {
            got.extend_from_slice(guessed.header());
            if let Some((payload, came)) = guessed.payload {
                got.extend_from_slice(&payload[..came]);
            }
        }
        assert!(got == stream && bytes == 0);
        assert_eq!((ahead.guesses.len(), lens), (5, 8), "of eight three were needed");

        let (mut bytes, header_only) = (5, Ahead::take);
        let guessed = header_only(&mut ahead, &mut bytes).unwrap();
        assert_eq!((guessed.header().len(), guessed.payload.is_some()), (5, false));
    }
}
