//! How many descriptors peers and their files may take, so that the store, the control socket and the trackers always find
//! one.

use nix::sys::resource::{Resource, getrlimit};

/// design.md section 6: sessions over all torrents. (libtorrent's default too.)
const MAX_SESSIONS: usize = 200;
/// Connections that have not shown a handshake yet. Each is a stranger's for 10 s at most.
const MAX_GREETINGS: usize = 128;
/// Pipes of two descriptors each, between the page cache and a socket: two for each of so many fast links that others gain
/// little by one; those copy.
const MAX_PIPES: usize = 32;
/// Open files that hold data.
const MAX_FILES: usize = 512;
/// For the store, the log, the control socket, the watcher, trackers, and whatever is open for a moment.
const RESERVED: usize = 40;
/// What a process has that may not say.
const USUAL_LIMIT: usize = 1_024;

/// What may be open at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares {
    pub sessions: usize,
    pub greetings: usize,
    pub pipes: usize,
    pub files: usize,
}

impl Shares {
    /// By this process's limit.
    pub fn of_this_process() -> Shares {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(soft, _)| usize::try_from(soft).ok());
        Shares::of(limit.unwrap_or(USUAL_LIMIT))
    }

    fn of(limit: usize) -> Shares {
        let left = limit.saturating_sub(RESERVED);
        let sessions = (left / 2).clamp(2, MAX_SESSIONS);
        let greetings = (left / 4).clamp(2, MAX_GREETINGS);
        let pipes = (left / 16).min(MAX_PIPES);
        let files = left.saturating_sub(sessions + greetings + 2 * pipes).clamp(2, MAX_FILES);
        Shares { sessions, greetings, pipes, files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_leaves_the_reserve_and_nobody_goes_empty() {
        for limit in [64, 128, 256, 1_024, 1 << 20] {
            let Shares { sessions, greetings, pipes, files } = Shares::of(limit);
            assert!(sessions + greetings + 2 * pipes + files + RESERVED <= limit, "{limit}");
            assert!(sessions >= 2 && greetings >= 2 && files >= 2, "{limit}");
        }
        let most = Shares { sessions: MAX_SESSIONS, greetings: MAX_GREETINGS, pipes: MAX_PIPES, files: MAX_FILES };
        assert_eq!(Shares::of(1 << 20), most);
        assert_eq!(Shares::of(0), Shares { sessions: 2, greetings: 2, pipes: 0, files: 2 });
    }
}
