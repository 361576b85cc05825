//! Who may command the daemon: its own user, root, and members of the configured group (SO_PEERCRED, unix(7)).

use crate::wire::control::Failure;
use nix::unistd::{Gid, Uid, User, getgrouplist};
use std::ffi::CString;
use tokio::net::UnixStream;

/// The rule, made once at start.
#[derive(Clone, Debug)]
pub(super) struct Access {
    own: Uid,
    group: Option<Gid>,
}

impl Access {
    pub(super) fn new(own: Uid, group: Option<Gid>) -> Access {
        Access { own, group }
    }

    /// # Errors
    /// With what to tell the client.
    pub(super) async fn check(&self, stream: &UnixStream) -> Result<(), Failure> {
        let refused = || Failure::failed("this peerd belongs to another user, and you are not in its control group");
        let peer = stream.peer_cred().map_err(|_| refused())?;
        let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        if self.admits(uid, gid) {
            return Ok(());
        }
        let Some(group) = self.group else {
            return Err(refused());
        };
        // The user database may lie on the network: it is asked off the runtime.
        let member = tokio::task::spawn_blocking(move || groups_of(uid, gid).contains(&group)).await;
        if member.unwrap_or(false) { Ok(()) } else { Err(refused()) }
    }

    /// By what the kernel says of the peer alone.
    fn admits(&self, uid: Uid, gid: Gid) -> bool {
        uid == self.own || uid.is_root() || self.group == Some(gid)
    }
}

fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(uid).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_root_and_the_group_are_admitted_and_nobody_else() {
        let (own, group, other) = (Uid::from_raw(1_000), Gid::from_raw(50), Gid::from_raw(51));
        let access = Access::new(own, Some(group));
        assert!(access.admits(own, other));
        assert!(access.admits(Uid::from_raw(0), other));
        assert!(access.admits(Uid::from_raw(1_001), group));
        assert!(!access.admits(Uid::from_raw(1_001), other));
        assert!(!Access::new(own, None).admits(Uid::from_raw(1_001), group));
    }
}
