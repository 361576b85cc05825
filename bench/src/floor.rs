//! What any client must do at the least: one TCP stream, sendfile at one end; at the other receive into a buffer of a
//! piece's length, SHA-1 it on a second thread, write it. No protocol at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::sendfile::sendfile;
use sha1::{Digest, Sha1};

/// Buffers in use at a time.
const BUFFERS: usize = 4;

/// Sends the file to whoever connects, for ever.
pub fn seed(listen: SocketAddr, file: &Path, done: &Path) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    File::create(done)?;
    loop {
        let (mut peer, _) = listener.accept()?;
        let file = File::open(file)?;
        let len = file.metadata()?.len();
        peer.write_all(&len.to_be_bytes())?;
        let mut at = 0;
        while (at as u64) < len {
            let left = usize::try_from(len - at as u64)?;
            sendfile(&peer, &file, Some(&mut at), left)?;
        }
    }
}

/// Takes it into `file`, and stays until it is killed.
pub fn leech(from: SocketAddr, file: &Path, piece_bytes: usize, done: &Path) -> Result<()> {
    let mut peer = TcpStream::connect(from)?;
    let mut len = [0; 8];
    peer.read_exact(&mut len)?;
    let mut left = usize::try_from(u64::from_be_bytes(len))?;
    let file = File::create(file)?;
    file.set_len(left as u64)?;
    let (to_writer, filled) = sync_channel::<(Vec<u8>, u64)>(BUFFERS);
    let (to_reader, free) = sync_channel::<Vec<u8>>(BUFFERS);
    (0..BUFFERS).try_for_each(|_| to_reader.send(vec![0; piece_bytes]))?;
    let writer = thread::spawn(move || -> io::Result<()> {
        for (buffer, at) in filled {
            std::hint::black_box(Sha1::digest(&buffer));
            file.write_all_at(&buffer, at)?;
            // Nobody takes it any more once all has come.
            let _ = to_reader.send(buffer);
        }
        Ok(())
    });
    let mut at = 0;
    while left > 0 {
        let mut buffer = free.recv()?;
        buffer.resize(piece_bytes.min(left), 0);
        peer.read_exact(&mut buffer)?;
        left -= buffer.len();
        let next = at + buffer.len() as u64;
        to_writer.send((buffer, at)).context("the writer has ended")?;
        at = next;
    }
    drop(to_writer);
    writer.join().expect("the writer panicked")?;
    File::create(done)?;
    thread::sleep(std::time::Duration::from_secs(3_600));
    Ok(())
}
