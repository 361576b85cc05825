//! A long link: a relay that hands on every byte after a delay and no faster than a rate, each way. The kernels that this
//! runs on may have no netem.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::on_host;
use crate::support::net::Host;

/// Read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// A direction of the link.
#[derive(Clone, Copy)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    pub bytes_per_s: f64,
}

impl Link {
    /// What it holds while it is full, and as much again: a router's buffer.
    fn holds_bytes(self) -> usize {
        (2.0 * self.delay.as_secs_f64() * self.bytes_per_s) as usize
    }
}

#[derive(Default)]
struct Line {
    under_way: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    closed: bool,
}

#[derive(Default)]
struct Pipe {
    line: Mutex<Line>,
    changed: Condvar,
}

/// Takes connections on `host` and hands them on to `to`, until the process ends.
pub fn start(host: &Host, port: u16, to: SocketAddr, link: Link) {
    let listen = SocketAddr::new(host.ip, port);
    let listener = on_host(host, move || TcpListener::bind(listen)).join().expect("a thread").expect("listen");
    on_host(host, move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(to) else { continue };
            let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
            for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                let pipe = Arc::new(Pipe::default());
                let taking = pipe.clone();
                thread::spawn(move || take(from, &taking, link));
                thread::spawn(move || give(to, &pipe, link));
            }
        }
    });
}

fn take(mut from: TcpStream, pipe: &Pipe, link: Link) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let got = from.read(&mut chunk).unwrap_or(0);
        chunk.truncate(got);
        let line = pipe.line.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |line: &mut Line| line.bytes > link.holds_bytes();
        let mut line = pipe.changed.wait_while(line, full).unwrap_or_else(PoisonError::into_inner);
        line.bytes += got;
        line.closed = got == 0;
        line.under_way.push_back((Instant::now() + link.delay, chunk));
        pipe.changed.notify_all();
        if got == 0 {
            return;
        }
    }
}

fn give(mut to: TcpStream, pipe: &Pipe, link: Link) {
    // A small packet must not wait for its answer.
    to.set_nodelay(true).expect("a socket");
    let mut free_at = Instant::now();
    loop {
        let line = pipe.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line =
            pipe.changed.wait_while(line, |line| line.under_way.is_empty()).unwrap_or_else(PoisonError::into_inner);
        let Some((due, chunk)) = line.under_way.pop_front() else { return };
        drop(line);
        free_at = free_at.max(due) + Duration::from_secs_f64(chunk.len() as f64 / link.bytes_per_s);
        thread::sleep(free_at.saturating_duration_since(Instant::now()));
        if chunk.is_empty() || to.write_all(&chunk).is_err() {
            // The other side may be gone already.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        let mut line = pipe.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.bytes -= chunk.len();
        pipe.changed.notify_all();
    }
}
