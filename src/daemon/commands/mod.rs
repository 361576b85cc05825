//! What `peerctl` asks for, carried out.

mod choose;
mod get;
mod manage;
mod rows;
mod share;

use std::sync::Arc;

use super::control::{Engine, Reply};
use super::core::Core;
use super::torrent::Torrent;
use crate::wire::control::{Answer, Candidate, Failure, Request, What};
use crate::wire::metainfo::Metainfo;
use choose::{Choice, choose};

/// The [`Engine`] behind the control socket.
pub struct Commands {
    core: Arc<Core>,
}

impl Commands {
    pub fn new(core: Arc<Core>) -> Commands {
        Commands { core }
    }
}

impl Engine for Commands {
    async fn handle(&self, request: Request, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        match request {
            Request::Get(get) => self.get(get, false, reply).await,
            Request::GetInOrder(get) => self.get(get, true, reply).await,
            Request::List => self.list(reply).await,
            Request::Search(search) => self.search(search, reply).await,
            Request::Show(what) => self.show(what, reply).await,
            Request::Status => self.status(),
            Request::Peers(what) => self.peers(what, reply).await,
            Request::Ledger => self.ledger(reply).await,
            Request::Pause(what) => self.pause(what).await,
            Request::Resume(what) => self.resume(what).await,
            Request::Verify(what) => self.verify(what, reply).await,
            Request::Remove(remove) => self.remove(remove).await,
            Request::Share(share) => self.share(share, reply).await,
            Request::Limit(set) => Ok(self.limit(&set)),
            Request::Leave => self.leave().await,
        }
    }
}

/// A torrent of ours that a command means, or the answer that there is none, or several.
enum Found {
    One(Arc<Torrent>),
    Answer(Box<Answer>),
}

impl Commands {
    fn find(&self, what: &What) -> Result<Found, Failure> {
        let key = match what {
            What::Torrent(bytes) => {
                Metainfo::parse(bytes).map_err(|error| Failure::failed(error.to_string()))?.info_hash()
            }
            What::InfoHash(key) => *key,
            What::Words(words) => return self.find_by_name(words),
        };
        match self.core.torrent(key) {
            Some(torrent) => Ok(Found::One(torrent)),
            None => Err(Failure::not_found(format!("no torrent {key} here: peerctl list shows what there is"))),
        }
    }

    fn find_by_name(&self, words: &str) -> Result<Found, Failure> {
        let wanted = words.trim().to_lowercase();
        // Whatever is chosen begins so: of ten thousand torrents few are looked at twice.
        let begins =
            |torrent: &Arc<Torrent>| torrent.summary.name.to_string_lossy().to_lowercase().starts_with(&wanted);
        let mut torrents = self.core.torrents_unsorted();
        torrents.retain(|torrent| begins(torrent) && !torrent.with_status(|status| status.withdrawn));
        torrents.sort_by(|a, b| (a.summary.added, &a.summary.name).cmp(&(b.summary.added, &b.summary.name)));
        let names: Vec<_> = torrents.iter().map(|torrent| torrent.summary.name.to_string_lossy()).collect();
        match choose(words, names.iter().map(|name| (name.as_ref(), true))) {
            Choice::One(index) => Ok(Found::One(torrents[index].clone())),
            Choice::Several(indices) => {
                let all = indices.into_iter().map(|index| self.candidate(&torrents[index])).collect();
                Ok(Found::Answer(Box::new(Answer::Ambiguous(all))))
            }
            Choice::None => {
                Err(Failure::not_found(format!("no torrent named {words} here: peerctl list shows what there is")))
            }
        }
    }

    fn candidate(&self, torrent: &Torrent) -> Candidate {
        let summary = &torrent.summary;
        Candidate {
            name: summary.name.to_string_lossy().into_owned(),
            key: summary.key,
            path: self.core.data_path(torrent).parent().map_or_else(String::new, |folder| folder.display().to_string()),
            size: summary.layout.total_bytes(),
            n_parts: summary.layout.piece_count(),
            seeders: None,
            leechers: None,
        }
    }
}
