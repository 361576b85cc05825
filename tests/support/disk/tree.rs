//! What a disk holds, twice: as programs see it, and as a power cut would leave it.
//!
//! A file's bytes and length are kept from its sync on, a name from the sync of its folder on, a time of change from a
//! sync that is not of the data alone. A cut leaves what is kept, or, of what is not, a part: any pages of a file, the
//! first so many changes of names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;
use rand::Rng;
use rand::rngs::SmallRng;

pub type Ino = u64;
/// What a real disk writes whole or not at all.
pub const PAGE_BYTES: usize = 4096;
pub const ROOT: Ino = 1;

type Page = Arc<[u8; PAGE_BYTES]>;
/// An errno.
pub type Refused = i32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Folder,
    Socket,
}

#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let n = (PAGE_BYTES - within).min((end - at) as usize);
            if let Some(page) = self.pages.get(&page) {
                bytes[(at - offset) as usize..][..n].copy_from_slice(&page[within..within + n]);
            }
            at += n as u64;
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8], dirty: &mut BTreeSet<u64>) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - within));
            let page = self.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[within..within + now.len()].copy_from_slice(now);
            dirty.insert(number);
            (at, rest) = (at + now.len() as u64, later);
        }
        self.len = self.len.max(at);
    }

    fn set_len(&mut self, len: u64) {
        let whole = len.div_ceil(PAGE_BYTES as u64);
        self.pages.split_off(&whole);
        let within = (len % PAGE_BYTES as u64) as usize;
        if within > 0
            && let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES as u64))
        {
            Arc::make_mut(page)[within..].fill(0);
        }
        self.len = len;
    }
}

pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub links: u32,
    pub modified: SystemTime,
    pub changed: SystemTime,
    parent: Ino,
    name: OsString,
    seen: Content,
    kept: Content,
    /// Pages written since the last sync.
    dirty: BTreeSet<u64>,
    /// The length has been set since the last sync.
    resized: bool,
    kept_modified: SystemTime,
    names: BTreeMap<OsString, Ino>,
    kept_names: BTreeMap<OsString, Ino>,
}

impl Node {
    fn new(kind: Kind, mode: u32, parent: Ino, name: &OsStr) -> Node {
        let now = SystemTime::now();
        Node {
            kind,
            mode,
            links: 0,
            modified: now,
            changed: now,
            parent,
            name: name.to_os_string(),
            seen: Content::default(),
            kept: Content::default(),
            dirty: BTreeSet::new(),
            resized: false,
            kept_modified: now,
            names: BTreeMap::new(),
            kept_names: BTreeMap::new(),
        }
    }

    pub fn len(&self) -> u64 {
        self.seen.len
    }

    pub fn held_bytes(&self) -> u64 {
        self.seen.pages.len() as u64 * PAGE_BYTES as u64
    }

    pub fn names(&self) -> &BTreeMap<OsString, Ino> {
        &self.names
    }
}

/// One change of names: all of it is kept or none.
type Change = Vec<(Ino, OsString, Option<Ino>)>;

pub struct Tree {
    nodes: BTreeMap<Ino, Node>,
    next: Ino,
    /// Changes of names that no folder's sync has kept, oldest first.
    pending: Vec<Change>,
}

impl Tree {
    pub fn new() -> Tree {
        let mut root = Node::new(Kind::Folder, 0o755, ROOT, OsStr::new(""));
        root.links = 2;
        Tree { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, pending: Vec::new() }
    }

    pub fn node(&self, ino: Ino) -> Result<&Node, Refused> {
        self.nodes.get(&ino).ok_or(libc::ENOENT)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Refused> {
        self.nodes.get_mut(&ino).ok_or(libc::ENOENT)
    }

    pub fn find(&self, parent: Ino, name: &OsStr) -> Result<Ino, Refused> {
        self.node(parent)?.names.get(name).copied().ok_or(libc::ENOENT)
    }

    /// The node at a path below the root.
    pub fn at(&self, path: &Path) -> Result<Ino, Refused> {
        path.iter().try_fold(ROOT, |ino, name| self.find(ino, name))
    }

    /// Where a node lies, or lay last.
    pub fn path(&self, ino: Ino) -> PathBuf {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT
            && let Some(node) = self.nodes.get(&at)
        {
            names.push(node.name.as_os_str());
            at = node.parent;
        }
        names.into_iter().rev().collect()
    }

    pub fn make(&mut self, parent: Ino, name: &OsStr, kind: Kind, mode: u32) -> Result<Ino, Refused> {
        if self.find(parent, name).is_ok() {
            return Err(libc::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        let mut node = Node::new(kind, mode & 0o7777, parent, name);
        node.links = if kind == Kind::Folder { 2 } else { 1 };
        self.nodes.insert(ino, node);
        self.change(vec![(parent, name.to_os_string(), Some(ino))])?;
        Ok(ino)
    }

    pub fn remove(&mut self, parent: Ino, name: &OsStr, folder: bool) -> Result<(), Refused> {
        let ino = self.find(parent, name)?;
        let node = self.node_mut(ino)?;
        match (node.kind == Kind::Folder, folder) {
            (true, false) => return Err(libc::EISDIR),
            (false, true) => return Err(libc::ENOTDIR),
            _ if !node.names.is_empty() => return Err(libc::ENOTEMPTY),
            _ => node.links = 0,
        }
        self.change(vec![(parent, name.to_os_string(), None)])
    }

    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), may_replace: bool) -> Result<(), Refused> {
        let ino = self.find(from.0, from.1)?;
        match self.find(to.0, to.1) {
            Ok(_) if !may_replace => return Err(libc::EEXIST),
            Ok(old) if old == ino => return Ok(()),
            Ok(old) if !self.node(old)?.names.is_empty() => return Err(libc::ENOTEMPTY),
            Ok(old) => self.node_mut(old)?.links = 0,
            Err(_) => {}
        }
        let node = self.node_mut(ino)?;
        (node.parent, node.name) = (to.0, to.1.to_os_string());
        node.changed = SystemTime::now();
        self.change(vec![(from.0, from.1.to_os_string(), None), (to.0, to.1.to_os_string(), Some(ino))])
    }

    fn change(&mut self, change: Change) -> Result<(), Refused> {
        for (folder, name, ino) in &change {
            let folder = self.node_mut(*folder)?;
            match ino {
                Some(ino) => drop(folder.names.insert(name.clone(), *ino)),
                None => drop(folder.names.remove(name)),
            }
            folder.modified = SystemTime::now();
        }
        self.pending.push(change);
        Ok(())
    }

    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>, Refused> {
        Ok(self.node(ino)?.seen.read(offset, len))
    }

    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        let node = self.node_mut(ino)?;
        node.seen.write(offset, bytes, &mut node.dirty);
        node.modified = SystemTime::now();
        node.changed = node.modified;
        Ok(())
    }

    pub fn set_len(&mut self, ino: Ino, len: u64) -> Result<(), Refused> {
        let node = self.node_mut(ino)?;
        node.seen.set_len(len);
        node.resized = true;
        node.modified = SystemTime::now();
        node.changed = node.modified;
        Ok(())
    }

    pub fn set_mode(&mut self, ino: Ino, mode: u32) -> Result<(), Refused> {
        self.node_mut(ino)?.mode = mode & 0o7777;
        Ok(())
    }

    pub fn set_modified(&mut self, ino: Ino, at: SystemTime) -> Result<(), Refused> {
        let node = self.node_mut(ino)?;
        node.modified = at;
        node.changed = SystemTime::now();
        Ok(())
    }

    /// `fsync`, or `fdatasync` for the data alone.
    pub fn sync(&mut self, ino: Ino, data_alone: bool) -> Result<(), Refused> {
        let node = self.node_mut(ino)?;
        if std::mem::take(&mut node.resized) {
            node.kept = node.seen.clone();
        }
        for number in std::mem::take(&mut node.dirty) {
            if let Some(page) = node.seen.pages.get(&number) {
                node.kept.pages.insert(number, page.clone());
            }
        }
        if !data_alone || node.kept.len != node.seen.len {
            node.kept_modified = node.modified;
        }
        node.kept.len = node.seen.len;
        Ok(())
    }

    /// A sync that failed: what it could not write is forgotten, as Linux does.
    pub fn forget_unsynced(&mut self, ino: Ino) {
        let Ok(node) = self.node_mut(ino) else { return };
        for number in std::mem::take(&mut node.dirty) {
            match node.kept.pages.get(&number) {
                Some(page) => node.seen.pages.insert(number, page.clone()),
                None => node.seen.pages.remove(&number),
            };
        }
    }

    /// `fsync` of a folder: its names are kept.
    pub fn sync_names(&mut self, ino: Ino) -> Result<(), Refused> {
        let node = self.node_mut(ino)?;
        node.kept_names = node.names.clone();
        for change in &mut self.pending {
            change.retain(|(folder, ..)| *folder != ino);
        }
        self.pending.retain(|change| !change.is_empty());
        Ok(())
    }

    /// Loses what is not kept; with a generator, only a part of it.
    pub fn lose(&mut self, mut part: Option<&mut SmallRng>) {
        let survivors = part.as_mut().map_or(0, |rng| rng.random_range(0..=self.pending.len()));
        for (folder, name, ino) in self.pending.drain(..).take(survivors).flatten().collect::<Vec<_>>() {
            let Some(folder) = self.nodes.get_mut(&folder) else { continue };
            match ino {
                Some(ino) => drop(folder.kept_names.insert(name, ino)),
                None => drop(folder.kept_names.remove(&name)),
            }
        }
        for node in self.nodes.values_mut() {
            if let Some(rng) = &mut part
                && rng.random()
            {
                node.kept.len = node.seen.len;
                for number in &node.dirty {
                    if let Some(page) = node.seen.pages.get(number).filter(|_| rng.random()) {
                        node.kept.pages.insert(*number, page.clone());
                    }
                }
                let len = node.kept.len;
                node.kept.set_len(len);
            }
            node.dirty.clear();
            node.resized = false;
            node.seen = node.kept.clone();
            node.modified = node.kept_modified;
            node.names = node.kept_names.clone();
        }
        self.forget_unreachable();
    }

    /// Nodes that no name leads to; nothing may be open.
    pub fn forget_unreachable(&mut self) {
        let (mut reached, mut open) = (BTreeSet::from([ROOT]), vec![ROOT]);
        let mut places = Vec::new();
        while let Some(folder) = open.pop() {
            let Some(node) = self.nodes.get(&folder) else { continue };
            for (name, &ino) in &node.names {
                places.push((ino, folder, name.clone()));
                if reached.insert(ino) {
                    open.push(ino);
                }
            }
            open.extend(node.kept_names.values().filter(|ino| reached.insert(**ino)));
        }
        let pending = self.pending.iter().flatten().filter_map(|(.., ino)| *ino);
        reached.extend(pending);
        self.nodes.retain(|ino, _| reached.contains(ino));
        for (ino, folder, name) in places {
            if let Some(node) = self.nodes.get_mut(&ino) {
                (node.parent, node.name) = (folder, name);
                node.links = node.links.max(1);
            }
        }
    }
}
