//! What a failing disk is ordered to do, and what has been asked of it.

use std::path::Path;

use nix::libc;

use super::tree::Refused;

/// What is asked of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Read,
    Write,
    /// Also of a length.
    Truncate,
    /// `fsync` and `fdatasync` of a file.
    Sync,
    SyncFolder,
    Create,
    Rename,
    Remove,
    /// Looking, opening, listing.
    Look,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Refuse(Refused),
    /// Half of a write is written, and said so.
    Short,
    /// Nothing comes back until the disk is healed.
    Stall,
    /// Nothing is done, and success is said.
    Swallow,
}

pub const EIO: Fault = Fault::Refuse(libc::EIO);
pub const EROFS: Fault = Fault::Refuse(libc::EROFS);
pub const ENOSPC: Fault = Fault::Refuse(libc::ENOSPC);

/// Which calls are to fail, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    pub call: Call,
    /// A part of the path below the disk's root; after a `=` the whole of it, of which the root's is empty.
    pub path: &'static str,
    /// So many pass first.
    pub after: u64,
    /// So many fail then.
    pub times: u64,
    pub fault: Fault,
}

impl Rule {
    /// Every such call.
    pub fn all(call: Call, path: &'static str, fault: Fault) -> Rule {
        Rule { call, path, after: 0, times: u64::MAX, fault }
    }

    /// The `nth` such call, from 0, alone.
    pub fn nth(call: Call, path: &'static str, nth: u64, fault: Fault) -> Rule {
        Rule { call, path, after: nth, times: 1, fault }
    }
}

#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    /// How often a rule has struck.
    pub(super) struck: u64,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn judge(&mut self, call: Call, path: &Path) -> Option<Fault> {
        let path = path.to_string_lossy();
        let concerns = |rule: &Rule| match rule.path.strip_prefix('=') {
            Some(whole) => path == whole,
            None => path.contains(rule.path),
        };
        let rule = self.rules.iter_mut().find(|rule| rule.call == call && concerns(rule))?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        if rule.times == 0 {
            return None;
        }
        rule.times -= 1;
        self.struck += 1;
        Some(rule.fault)
    }
}

/// What has been asked of the disk so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct Traffic {
    pub written_bytes: u64,
    /// Writes, syncs of files and of folders.
    pub calls: u64,
    pub file_syncs: u64,
    pub folder_syncs: u64,
}

/// When the power is to go.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// In the middle of the write that has this byte of all that are written from now on.
    Byte(u64),
    /// At this write or sync from now on, counted from 0; it is not carried out.
    Call(u64),
    /// At this sync of a file or folder from now on, counted from 0; it is not carried out.
    Sync(u64),
}
