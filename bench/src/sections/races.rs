//! peerd beside the clients that are installed here, and beside no protocol at all.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use crate::content::Content;
use crate::figures::{Table, median};
use crate::race::{Figures, Race, in_turn};
use crate::rivals::Client;

const PIECE_BYTES: u32 = 1 << 20;

fn installed(of: &[Client]) -> Vec<Client> {
    of.iter().copied().filter(|client| client.version().is_some()).collect()
}

/// Each client against itself. Rows are `(label, figures)`.
fn table(rows: &[(&str, Figures)]) -> String {
    let peerd = rows.iter().find(|row| row.0 == Client::Peerd.label()).map(|row| row.1);
    let mut table = Table::new(&[
        "",
        "s from the first MiB",
        "times peerd's",
        "s in all",
        "s until the first 64 KiB",
        "CPU s, both ends",
        "times peerd's",
        "CPU s seeding",
        "RSS leeching, MiB",
        "RSS seeding, MiB",
    ]);
    for (label, run) in rows {
        let times =
            |of: fn(&Figures) -> f64| peerd.map_or(String::new(), |peerd| format!("{:.2}", of(run) / of(&peerd)));
        table.row(&[
            label.to_string(),
            format!("{:.2}", run.transfer_s),
            times(|run| run.transfer_s),
            format!("{:.2}", run.wall_s),
            format!("{:.3}", run.first_s),
            format!("{:.2}", run.cpu_s()),
            times(Figures::cpu_s),
            format!("{:.2}", run.seed_cpu_s),
            format!("{:.0}", run.leech_mib),
            format!("{:.0}", run.seed_mib),
        ]);
    }
    table.finish()
}

fn against_itself(clients: &[Client], content: &Content, folder: &Path, runs: usize) -> Result<Vec<Figures>> {
    let races: Vec<Race> =
        clients.iter().map(|&client| Race { seeds: vec![client], leeches: vec![client], content, folder }).collect();
    in_turn(&races, runs)
}

pub fn one_to_one(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let content = Content::make(folder.path(), 1, 1 << 30, PIECE_BYTES)?;
    let clients = installed(&Client::ALL);
    let figures = against_itself(&clients, &content, folder.path(), bench.runs)?;
    let rows: Vec<(&str, Figures)> = clients.iter().map(|client| client.label()).zip(figures).collect();
    Ok(format!(
        "Each client on a host of its own, data in memory, pieces of 1 MiB, medians of {} runs in turn.\n\n{}",
        bench.runs,
        table(&rows)
    ))
}

pub fn onto_disk(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.disk)?;
    let content = Content::make(folder.path(), 1, 1 << 30, PIECE_BYTES)?;
    let clients = installed(&[Client::Peerd, Client::Libtorrent, Client::LibtorrentTuned]);
    let mut runs = vec![Vec::new(); clients.len()];
    let mut copies = Vec::new();
    for _ in 0..bench.runs {
        for (&client, runs) in clients.iter().zip(&mut runs) {
            // What the one before left in memory must not be written during the next.
            nix_sync()?;
            runs.push(
                Race { seeds: vec![client], leeches: vec![client], content: &content, folder: folder.path() }
                    .run(Duration::ZERO)?,
            );
        }
        nix_sync()?;
        copies.push(copy_s(&content.file, &folder.path().join("copy"))?);
    }
    let rows: Vec<(&str, Figures)> =
        clients.iter().map(|client| client.label()).zip(runs.iter().map(|runs| Figures::medians(runs))).collect();
    Ok(format!(
        "Medians of {} runs in turn. peerd is done when everything is synced; libtorrent when everything is with the \
         kernel. `dd conv=fdatasync` of the same bytes: {:.2} s.\n\n{}",
        bench.runs,
        median(copies),
        table(&rows)
    ))
}

fn nix_sync() -> Result<()> {
    ensure!(Command::new("sync").status()?.success(), "sync failed");
    Ok(())
}

/// Seconds that `dd` takes to copy and to sync.
fn copy_s(from: &Path, to: &Path) -> Result<f64> {
    let started = Instant::now();
    let (mut input, mut output) = (std::ffi::OsString::from("if="), std::ffi::OsString::from("of="));
    input.push(from);
    output.push(to);
    let status = Command::new("dd").arg(input).arg(output).args(["bs=1M", "conv=fdatasync", "status=none"]).status()?;
    ensure!(status.success(), "dd failed");
    let took = started.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    Ok(took)
}

pub fn to_four(bench: &Bench) -> Result<String> {
    of_five(bench, "seeding", |client| (vec![client], vec![Client::Libtorrent; 4]), |run| run.seed_cpu_s)
}

pub fn from_four(bench: &Bench) -> Result<String> {
    of_five(bench, "leeching", |client| (vec![Client::Libtorrent; 4], vec![client]), |run| run.leech_cpu_s)
}

fn of_five(
    bench: &Bench,
    role: &str,
    sides: impl Fn(Client) -> (Vec<Client>, Vec<Client>),
    cpu_s: fn(&Figures) -> f64,
) -> Result<String> {
    if Client::Libtorrent.version().is_none() {
        return Ok("Not measured: libtorrent is not installed.\n".into());
    }
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let content = Content::make(folder.path(), 2, 512 << 20, PIECE_BYTES)?;
    let clients = installed(&[Client::Peerd, Client::Libtorrent]);
    let race = |&client: &Client| {
        let (seeds, leeches) = sides(client);
        Race { seeds, leeches, content: &content, folder: folder.path() }
    };
    let figures = in_turn(&clients.iter().map(race).collect::<Vec<_>>(), bench.runs)?;
    let mut table = Table::new(&[role, "s from the first MiB", "MiB/s in all", "CPU s in that role"]);
    for (client, run) in clients.iter().zip(&figures) {
        let copies = if role == "seeding" { 4.0 } else { 1.0 };
        table.row(&[
            client.label().into(),
            format!("{:.2}", run.transfer_s),
            format!("{:.0}", copies * 512.0 / run.transfer_s),
            format!("{:.2}", cpu_s(run)),
        ]);
    }
    Ok(format!(
        "Medians of {} runs in turn, begun at points spread over a second: so often libtorrent decides how much it has \
         under way.\n\n{}",
        bench.runs,
        table.finish()
    ))
}
