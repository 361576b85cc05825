//! What the kernel asks, put to the tree.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::libc;

use super::rules::Call;
use super::tree::{Ino, Kind, Node, PAGE_BYTES, Refused};
use super::{Power, Shared, State, Verdict};

/// The kernel remembers nothing: whatever is looked at is asked for.
const AT_ONCE_STALE: Duration = Duration::ZERO;

pub(super) struct Front(pub(super) Arc<Shared>);

/// A reply that may also be an error.
trait Answer: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! answers {
    ($($reply:ty),*) => { $(impl Answer for $reply {
        fn refuse(self, errno: Errno) {
            self.error(errno);
        }
    })* };
}
answers!(ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite);

impl Front {
    /// Does `work`, or what the disk is ordered to do in its place. `work` hears whether it is to be swallowed.
    fn handle<R: Answer>(
        &self,
        call: Call,
        at: (Ino, Option<&OsStr>),
        reply: R,
        work: impl FnOnce(&mut State, R, bool) -> Result<(), (R, Refused)> + Send + 'static,
    ) {
        let mut state = self.0.lock();
        let carry_out = move |state: &mut State, reply: R, swallow: bool| {
            if let Err((reply, errno)) = work(state, reply, swallow) {
                reply.refuse(Errno::from_i32(errno));
            }
        };
        match state.judge(call, at, 0) {
            Verdict::Go | Verdict::Part(_) => carry_out(&mut state, reply, false),
            Verdict::Swallow => carry_out(&mut state, reply, true),
            Verdict::Refuse(errno) => reply.refuse(errno),
            Verdict::Hold | Verdict::Torn(_) => state.held.push(Box::new(move |state, refused| match refused {
                Some(errno) => reply.refuse(errno),
                None => carry_out(state, reply, false),
            })),
        }
        self.tell(&state);
    }

    fn tell(&self, state: &State) {
        if state.power != Power::On {
            self.0.stopped.notify_all();
        }
    }
}

/// Splits a result from a reply that is still owed.
fn or<R, T>(reply: R, result: Result<T, Refused>) -> Result<(R, T), (R, Refused)> {
    match result {
        Ok(value) => Ok((reply, value)),
        Err(errno) => Err((reply, errno)),
    }
}

fn attr(ino: Ino, node: &Node) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: node.len(),
        blocks: node.held_bytes() / 512,
        atime: node.modified,
        mtime: node.modified,
        ctime: node.changed,
        crtime: node.changed,
        kind: file_type(node.kind),
        perm: node.mode as u16,
        nlink: node.links,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        rdev: 0,
        blksize: PAGE_BYTES as u32,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Socket => FileType::Socket,
    }
}

fn entry(state: &State, reply: ReplyEntry, found: Result<Ino, Refused>) -> Result<(), (ReplyEntry, Refused)> {
    let found = found.and_then(|ino| Ok(attr(ino, state.tree.node(ino)?)));
    let (reply, attr) = or(reply, found)?;
    reply.entry(&AT_ONCE_STALE, &attr, Generation(0));
    Ok(())
}

fn empty(reply: ReplyEmpty, done: Result<(), Refused>) -> Result<(), (ReplyEmpty, Refused)> {
    or(reply, done).map(|(reply, ())| reply.ok())
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Look, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            let found = state.tree.find(parent, &name);
            entry(state, reply, found)
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.handle(Call::Look, (ino.0, None), reply, move |state, reply, _| {
            let (reply, attr) = or(reply, state.tree.node(ino.0).map(|node| attr(ino.0, node)))?;
            reply.attr(&AT_ONCE_STALE, &attr);
            Ok(())
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let call = if size.is_some() { Call::Truncate } else { Call::Look };
        self.handle(call, (ino.0, None), reply, move |state, reply, swallow| {
            let mut change = || {
                if let Some(size) = size.filter(|_| !swallow) {
                    state.tree.set_len(ino.0, size)?;
                }
                if let Some(mode) = mode {
                    state.tree.set_mode(ino.0, mode)?;
                }
                match modified {
                    Some(TimeOrNow::SpecificTime(at)) => state.tree.set_modified(ino.0, at)?,
                    Some(TimeOrNow::Now) => state.tree.set_modified(ino.0, SystemTime::now())?,
                    None => {}
                }
                Ok(attr(ino.0, state.tree.node(ino.0)?))
            };
            let (reply, attr) = or(reply, change())?;
            reply.attr(&AT_ONCE_STALE, &attr);
            Ok(())
        });
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: u32, reply: ReplyEntry) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Create, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            let made = match mode & libc::S_IFMT {
                libc::S_IFSOCK => state.tree.make(parent, &name, Kind::Socket, mode & !umask),
                libc::S_IFREG => state.tree.make(parent, &name, Kind::File, mode & !umask),
                _ => Err(libc::EPERM),
            };
            entry(state, reply, made)
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Create, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            let made = state.tree.make(parent, &name, Kind::Folder, mode & !umask);
            entry(state, reply, made)
        });
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Create, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            let made = state.tree.make(parent, &name, Kind::File, mode & !umask);
            let made = made.and_then(|ino| Ok(attr(ino, state.tree.node(ino)?)));
            let (reply, attr) = or(reply, made)?;
            reply.created(&AT_ONCE_STALE, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            Ok(())
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Remove, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            empty(reply, state.tree.remove(parent, &name, false))
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (parent.0, name.to_os_string());
        self.handle(Call::Remove, (parent, Some(&name.clone())), reply, move |state, reply, _| {
            empty(reply, state.tree.remove(parent, &name, true))
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, to_name) = (name.to_os_string(), to_name.to_os_string());
        self.handle(Call::Rename, (parent.0, Some(&name.clone())), reply, move |state, reply, swallow| {
            if swallow {
                return empty(reply, Ok(()));
            }
            let may_replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
            empty(reply, state.tree.rename((parent.0, &name), (to_parent.0, &to_name), may_replace))
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.handle(Call::Look, (ino.0, None), reply, move |_, reply, _| {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            Ok(())
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.handle(Call::Read, (ino.0, None), reply, move |state, reply, _| {
            let (reply, bytes) = or(reply, state.tree.read(ino.0, offset, size as usize))?;
            reply.data(&bytes);
            Ok(())
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let carry_out =
            move |state: &mut State, reply: ReplyWrite, data: &[u8]| match state.tree.write(ino.0, offset, data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(errno) => reply.error(Errno::from_i32(errno)),
            };
        match state.judge(Call::Write, (ino.0, None), data.len()) {
            Verdict::Go => carry_out(&mut state, reply, data),
            Verdict::Part(bytes) => carry_out(&mut state, reply, &data[..bytes]),
            Verdict::Swallow => reply.written(data.len() as u32),
            Verdict::Refuse(errno) => reply.error(errno),
            Verdict::Torn(bytes) => {
                // Nobody will hear of it, so it does not matter whether it worked.
                let _ = state.tree.write(ino.0, offset, &data[..bytes]);
                state.held.push(Box::new(move |_, refused| reply.error(refused.unwrap_or(Errno::EIO))));
            }
            Verdict::Hold => {
                let data = data.to_vec();
                state.held.push(Box::new(move |state, refused| match refused {
                    Some(errno) => reply.error(errno),
                    None => carry_out(state, reply, &data),
                }));
            }
        }
        self.tell(&state);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data_alone: bool, reply: ReplyEmpty) {
        self.handle(Call::Sync, (ino.0, None), reply, move |state, reply, swallow| {
            empty(reply, if swallow { Ok(()) } else { state.tree.sync(ino.0, data_alone) })
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.handle(Call::SyncFolder, (ino.0, None), reply, move |state, reply, swallow| {
            empty(reply, if swallow { Ok(()) } else { state.tree.sync_names(ino.0) })
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.handle(Call::Look, (ino.0, None), reply, move |state, reply, _| {
            let (mut reply, node) = or(reply, state.tree.node(ino.0))?;
            for (place, (name, &child)) in (1..).zip(node.names()).skip(offset as usize) {
                let Ok(node) = state.tree.node(child) else { continue };
                if reply.add(INodeNo(child), place, file_type(node.kind), name) {
                    break;
                }
            }
            reply.ok();
            Ok(())
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.handle(Call::Look, (ino.0, None), reply, move |state, reply, _| {
            let (all, free) = (2 * super::FREE_BYTES / PAGE_BYTES as u64, state.free_bytes / PAGE_BYTES as u64);
            reply.statfs(all, free, free, 1 << 30, 1 << 30, PAGE_BYTES as u32, 255, PAGE_BYTES as u32);
            Ok(())
        });
    }
}
