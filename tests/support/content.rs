//! Files to share, made from a seed, and comparisons byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

pub const MIB: u64 = 1 << 20;

/// Bytes that look random and are the same for the same seed.
pub struct Noise {
    rng: SmallRng,
    left: u64,
}

impl Noise {
    pub fn new(seed: u64, len: u64) -> Noise {
        Noise { rng: SmallRng::seed_from_u64(seed), left: len }
    }
}

impl Read for Noise {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.rng.fill_bytes(&mut buf[..len]);
        self.left -= len as u64;
        Ok(len)
    }
}

/// Writes `len` bytes made from `seed` to `path`, with the folders above it.
#[track_caller]
pub fn make(path: &Path, seed: u64, len: u64) {
    make_folder(path.parent().expect("a folder"));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).expect("create a file"));
    std::io::copy(&mut BufReader::with_capacity(1 << 20, Noise::new(seed, len)), &mut file).expect("write a file");
    file.flush().expect("write a file");
}

/// The same beside the place and then moved in, so that it appears whole.
#[track_caller]
pub fn drop_in(folder: &Path, name: &str, seed: u64, len: u64) -> PathBuf {
    let beside = folder.parent().expect("a folder").join(format!("beside-{seed}-{len}"));
    make(&beside, seed, len);
    let path = folder.join(name);
    make_folder(path.parent().expect("a folder"));
    fs::rename(beside, &path).expect("move a file in");
    path
}

/// A file that is all holes but for a few bytes of each 512 MiB.
#[track_caller]
pub fn make_sparse(path: &Path, seed: u64, len: u64) {
    let file = File::create(path).expect("create a file");
    file.set_len(len).expect("set a length");
    for offset in (0..len.saturating_sub(4096)).step_by(512 << 20) {
        let mut bytes = [0; 4096];
        Noise::new(seed + offset, 4096).read_exact(&mut bytes).expect("noise");
        file.write_all_at(&bytes, offset).expect("write a file");
    }
}

pub fn make_folder(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Whether two files hold the same bytes. A file that is not there yet is not the same.
pub fn same(a: &Path, b: &Path) -> bool {
    let (Ok(mut a), Ok(mut b)) = (File::open(a), File::open(b)) else { return false };
    let len = |file: &File| file.metadata().expect("a file's length").len();
    if len(&a) != len(&b) {
        return false;
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut x).expect("read a file");
        if n == 0 {
            return true;
        }
        if b.read_exact(&mut y[..n]).is_err() || x[..n] != y[..n] {
            return false;
        }
    }
}

#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    assert!(same(a, b), "{} and {} differ", a.display(), b.display());
}

/// Every file below `root`, with its path from there and its length.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(meta) = path.metadata() {
                files.insert(path.strip_prefix(root).expect("below the root").to_path_buf(), meta.len());
            }
        }
    }
    files
}

/// Whether two folders hold the same files. Files for which `ignored` says so are left out of both.
pub fn same_tree(a: &Path, b: &Path, ignored: impl Fn(&Path, u64) -> bool) -> bool {
    let files = |root: &Path| {
        let mut files = tree(root);
        files.retain(|path, len| !ignored(path, *len));
        files
    };
    let (of_a, of_b) = (files(a), files(b));
    of_a == of_b && !of_a.is_empty() && of_a.keys().all(|path| same(&a.join(path), &b.join(path)))
}
