//! One torrent, some seeders, some leechers, each on a host of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::content::Content;
use crate::figures::{MIB, median};
use crate::rivals::{self, Client, Running, Seat, complete_peers, listens_on};
use crate::support::content::same;
use crate::support::net::Net;
use crate::support::peer::Tracker;
use crate::support::{secs, wait_until};

/// Longer than any client that works takes.
const PATIENCE: Duration = Duration::from_secs(240);
/// How often the leechers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub struct Race<'a> {
    pub seeds: Vec<Client>,
    pub leeches: Vec<Client>,
    pub content: &'a Content,
    /// Where the peers keep their data.
    pub folder: &'a Path,
}

/// What was measured; of several runs the medians.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// From the leechers' start to the last complete copy.
    pub wall_s: f64,
    /// The longest of a leecher from its first received MiB to its completion.
    pub transfer_s: f64,
    /// From a leecher's start to its first 64 KiB, the slowest one's.
    pub first_s: f64,
    /// CPU seconds of all seeders.
    pub seed_cpu_s: f64,
    /// Of all leechers, their start included.
    pub leech_cpu_s: f64,
    pub seed_mib: f64,
    pub leech_mib: f64,
}

impl Figures {
    pub fn cpu_s(&self) -> f64 {
        self.seed_cpu_s + self.leech_cpu_s
    }

    pub fn medians(runs: &[Figures]) -> Figures {
        let of = |field: fn(&Figures) -> f64| median(runs.iter().map(field));
        Figures {
            wall_s: of(|run| run.wall_s),
            transfer_s: of(|run| run.transfer_s),
            first_s: of(|run| run.first_s),
            seed_cpu_s: of(|run| run.seed_cpu_s),
            leech_cpu_s: of(|run| run.leech_cpu_s),
            seed_mib: of(|run| run.seed_mib),
            leech_mib: of(|run| run.leech_mib),
        }
    }
}

struct Leecher {
    seat: Seat,
    running: Running,
    started: Instant,
    received_before: u64,
    first: Option<Instant>,
    begun: Option<Instant>,
    finished: Option<Instant>,
}

impl Leecher {
    /// True once it is complete.
    fn watch(&mut self) -> bool {
        if self.begun.is_none() {
            let received = self.seat.host.carried().received - self.received_before;
            if received > 64 << 10 {
                self.first.get_or_insert_with(Instant::now);
            }
            if received > 1 << 20 {
                self.begun = Some(Instant::now());
            }
        }
        if self.finished.is_none() && self.seat.done.exists() {
            self.finished = Some(Instant::now());
        }
        self.running.assert_lives();
        self.finished.is_some()
    }
}

/// Seconds from one moment to the other, if both have been.
fn between(from: Option<Instant>, to: Option<Instant>) -> f64 {
    from.zip(to).map_or(f64::NAN, |(from, to)| to.duration_since(from).as_secs_f64())
}

/// libtorrent decides once a second how much it has under way to a peer, by the rate of the seconds before: 10 KiB at
/// first. Where in its second a short race begins makes a third of its time, so that the runs are spread over it.
const PERIOD: Duration = Duration::from_secs(1);

/// Each race once to warm the machine, then `runs` times in turn, so that a drifting machine hits all alike.
pub fn in_turn(races: &[Race], runs: usize) -> Result<Vec<Figures>> {
    let mut figures = vec![Vec::new(); races.len()];
    for turn in 0..=runs {
        for (race, figures) in races.iter().zip(&mut figures) {
            let run = race.run(PERIOD.mul_f64(turn as f64 / runs as f64))?;
            eprintln!("{} -> {}: {run:.3?}", race.seeds[0].label(), race.leeches[0].label());
            if turn > 0 {
                figures.push(run);
            }
        }
    }
    Ok(figures.iter().map(|runs| Figures::medians(runs)).collect())
}

impl Race<'_> {
    /// The leechers are started so long after the seeders are ready.
    pub fn run(&self, later: Duration) -> Result<Figures> {
        let folder = tempfile::Builder::new().prefix("race").tempdir_in(self.folder)?;
        let net = Net::new(1 + self.seeds.len() + self.leeches.len());
        let _tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
        let hosts = &net.hosts[1..];
        let seats: Vec<Seat> =
            hosts.iter().zip(0..).map(|(host, n)| Seat::new(host, &folder.path().join(format!("{n}")))).collect();
        let (seed_seats, leech_seats) = seats.split_at(self.seeds.len());
        let first_seeder = listens_on(&hosts[0]);
        let mut seeders = Vec::new();
        for (&client, seat) in self.seeds.iter().zip(seed_seats) {
            std::fs::hard_link(&self.content.file, seat.data.join(self.content.name()))?;
            seeders.push(rivals::start(client, seat, self.content, true, first_seeder)?);
        }
        self.await_seeders(&net, seed_seats, &mut seeders);
        std::thread::sleep(later);
        let cpu_before: f64 = seeders.iter().map(Running::cpu_s).sum();

        let began = Instant::now();
        let mut leechers = Vec::new();
        for (&client, seat) in self.leeches.iter().zip(leech_seats) {
            let (started, received_before) = (Instant::now(), seat.host.carried().received);
            let running = rivals::start(client, seat, self.content, false, first_seeder)?;
            leechers.push(Leecher {
                seat: seat.clone(),
                running,
                started,
                received_before,
                first: None,
                begun: None,
                finished: None,
            });
        }
        // All of them are looked at each time.
        while leechers.iter_mut().map(Leecher::watch).filter(|complete| !complete).count() > 0 {
            ensure!(began.elapsed() < PATIENCE, "{} is not complete after {PATIENCE:?}", self.leeches[0].label());
            std::thread::sleep(LOOK_EVERY);
        }
        let worst = |of: &dyn Fn(&Leecher) -> f64| leechers.iter().map(of).fold(0.0, f64::max);
        let peak_mib = |running: &Running| running.client.peak_resident_bytes() as f64 / MIB;
        let figures = Figures {
            wall_s: worst(&|leecher| between(Some(began), leecher.finished)),
            transfer_s: worst(&|leecher| between(leecher.begun, leecher.finished)),
            first_s: worst(&|leecher| between(Some(leecher.started), leecher.first)),
            seed_cpu_s: seeders.iter().map(Running::cpu_s).sum::<f64>() - cpu_before,
            leech_cpu_s: leechers.iter().map(|leecher| leecher.running.cpu_s()).sum(),
            seed_mib: seeders.iter().map(peak_mib).fold(0.0, f64::max),
            leech_mib: leechers.iter().map(|leecher| peak_mib(&leecher.running)).fold(0.0, f64::max),
        };
        for leecher in &leechers {
            let copy = leecher.seat.data.join(self.content.name());
            ensure!(same(&self.content.file, &copy), "{}: the copy differs", self.leeches[0].label());
        }
        Ok(figures)
    }

    fn await_seeders(&self, net: &Net, seats: &[Seat], seeders: &mut [Running]) {
        wait_until(PATIENCE, "the seeders have checked their data", || {
            seeders.iter_mut().for_each(Running::assert_lives);
            if self.seeds[0] == Client::Floor {
                return seats[0].done.exists();
            }
            std::thread::sleep(secs(1) / 5);
            complete_peers(&net.hosts[0], self.content) >= self.seeds.len() as u64
        });
        std::thread::sleep(secs(1) / 2);
    }
}
