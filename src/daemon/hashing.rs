//! Work of the disk path, on threads that may block: whole pieces are hashed a few at a time, and everything is written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::core::Core;
use super::disk::assembly::{CompletePiece, Work, are_right};
use super::disk::gather::{Gather, Next};
use super::disk::lanes::side_by_side;
use super::disk::pool::Leaving;
use super::torrent::{Active, Torrent};

/// Whole pieces of all torrents, on their way to be hashed.
#[derive(Default)]
pub struct Hashing {
    gather: Mutex<Gather<Whole>>,
}

struct Whole {
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    piece: CompletePiece,
    leaving: Leaving,
}

impl Hashing {
    fn lock(&self) -> MutexGuard<'_, Gather<Whole>> {
        self.gather.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Torrent {
    /// Has a piece, or a part of it, hashed and written on a thread that may block.
    pub fn start_disk_work(self: &Arc<Self>, core: &Arc<Core>, active: &Arc<Active>, work: Work) {
        let (torrent, core, active) = (self.clone(), core.clone(), active.clone());
        let leaving = core.pool.leave(work.budget_bytes());
        match work {
            Work::Piece(piece) => add(&core, Whole { torrent, active, piece, leaving }),
            work => {
                tokio::task::spawn_blocking(move || {
                    let _leaving = leaving;
                    let piece = work.piece();
                    let done = work.execute(&active.storage, active.meta.layout(), &active.meta.piece_check(piece));
                    torrent.disk_work_done(&core, &active, piece, done);
                });
            }
        }
    }
}

fn add(core: &Arc<Core>, whole: Whole) {
    if side_by_side() == 1 {
        return start(core, vec![whole]);
    }
    let bytes = whole.piece.bytes();
    let next = core.hashing.lock().push(core.clock.now(), whole, bytes);
    match next {
        Next::Hash(several) => start(core, several),
        Next::Nothing => {}
        Next::WaitUntil(due) => {
            let of = core.clone();
            core.tasks.spawn_to_end("hash", async move {
                let wait = due.since(of.clock.now());
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = of.tasks.stopping() => {}
                }
                let several = of.hashing.lock().take_due(due);
                start(&of, several);
            });
        }
    }
}

fn start(core: &Arc<Core>, several: Vec<Whole>) {
    if several.is_empty() {
        return;
    }
    let core = core.clone();
    tokio::task::spawn_blocking(move || {
        let checks = several.iter().map(|whole| (&whole.piece, whole.active.meta.piece_check(whole.piece.index())));
        let right = are_right(&checks.collect::<Vec<_>>());
        let mut left: Vec<(Whole, bool)> = several.into_iter().zip(right).collect();
        // One torrent's disk may stand still: the others' pieces do not wait for it.
        while let Some((first, _)) = left.first() {
            let active = first.active.clone();
            let (own, others) = left.into_iter().partition(|(whole, _)| Arc::ptr_eq(&whole.active, &active));
            left = others;
            if left.is_empty() {
                write(&core, own);
            } else {
                let core = core.clone();
                tokio::task::spawn_blocking(move || write(&core, own));
            }
        }
    });
}

/// Writes what is right, of one torrent.
fn write(core: &Arc<Core>, pieces: Vec<(Whole, bool)>) {
    for (whole, right) in pieces {
        let Whole { torrent, active, piece, leaving } = whole;
        // Its data may be gone for good by now.
        if active.lock().retired {
            continue;
        }
        let index = piece.index();
        let done = piece.write_if_right(right, &active.storage);
        torrent.disk_work_done(core, &active, index, done);
        drop(leaving);
    }
}
