//! `peerctl share` beside mktorrent, in turn, the file in the page cache.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use crate::figures::{Table, median};
use crate::support::content::make;
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::secs;

pub fn measure(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let peer = Peer::start(&net.hosts[1], folder.path(), "peer", &tracker);
    let file = folder.path().join("shared.bin");
    make(&file, 5, 2 << 30);
    let shared = file.to_str().expect("a path of ours");
    let torrent = folder.path().join("shared.torrent");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..=bench.runs {
        let started = Instant::now();
        run(&mut peer.ctl_command(&["share", shared]), secs(60)).expect_success();
        let took = started.elapsed().as_secs_f64();
        peer.ctl(&["remove", "shared.bin"]).expect_success();
        let mut mktorrent = Command::new("mktorrent");
        mktorrent.args(["-t", "2", "-l", "20", "-a", "http://198.18.0.2:6969/announce", "-o"]).arg(&torrent).arg(&file);
        let started = Instant::now();
        run(&mut mktorrent, secs(60)).expect_success();
        let made = started.elapsed().as_secs_f64();
        std::fs::remove_file(&torrent)?;
        if turn > 0 {
            ours.push(took);
            theirs.push(made);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let mut table = Table::new(&["", "s", "times mktorrent's"]);
    table.row(&["`peerctl share` until it returns".into(), format!("{ours:.2}"), format!("{:.2}", ours / theirs)]);
    table.row(&["`mktorrent -t 2 -l 20`".into(), format!("{theirs:.2}"), String::new()]);
    Ok(format!("Medians of {} runs in turn.\n\n{}", bench.runs, table.finish()))
}
