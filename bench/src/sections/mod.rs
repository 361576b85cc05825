//! What is measured, each in a file of its own.

mod costs;
mod delay;
mod limits;
mod many;
mod races;
mod share;
mod small;
mod start;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

/// How it is measured.
pub struct Bench {
    pub runs: usize,
    pub memory: PathBuf,
    pub disk: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    Race,
    Disk,
    ToFour,
    FromFour,
    Start,
    Delay,
    Limits,
    Share,
    Small,
    Many,
    Pieces,
    Sessions,
}

impl Section {
    pub const ALL: [Section; 12] = [
        Section::Race,
        Section::Disk,
        Section::ToFour,
        Section::FromFour,
        Section::Start,
        Section::Delay,
        Section::Limits,
        Section::Share,
        Section::Small,
        Section::Many,
        Section::Pieces,
        Section::Sessions,
    ];

    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    pub fn title(self) -> &'static str {
        match self {
            Section::Race => "One to one, 1 GiB",
            Section::Disk => "The same onto a disk",
            Section::ToFour => "One seeder, four leechers of libtorrent, 512 MiB",
            Section::FromFour => "Four seeders of libtorrent, one leecher, 512 MiB",
            Section::Start => "From `peerctl get` to the first payload",
            Section::Delay => "A link of 1 Gbit/s and 40 ms",
            Section::Limits => "Limited rates, on the receiving link",
            Section::Share => "`peerctl share` of 2 GiB",
            Section::Small => "20,000 small files",
            Section::Many => "Up to 10,000 torrents",
            Section::Pieces => "Cost by piece length",
            Section::Sessions => "Cost by sessions",
        }
    }

    /// Measures and returns a Markdown text.
    pub fn measure(self, bench: &Bench) -> Result<String> {
        eprintln!("== {}", self.title());
        match self {
            Section::Race => races::one_to_one(bench),
            Section::Disk => races::onto_disk(bench),
            Section::ToFour => races::to_four(bench),
            Section::FromFour => races::from_four(bench),
            Section::Start => start::measure(bench),
            Section::Delay => delay::measure(bench),
            Section::Limits => limits::measure(bench),
            Section::Share => share::measure(bench),
            Section::Small => small::measure(bench),
            Section::Many => many::measure(bench),
            Section::Pieces => costs::pieces(bench),
            Section::Sessions => costs::sessions(bench),
        }
    }
}
