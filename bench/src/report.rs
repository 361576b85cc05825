//! RESULTS.md: the machine, the versions, the medians.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::figures::Table;
use crate::plot::{Curve, svg};
use crate::rivals::Client;
use crate::sections::Section;
use crate::support::here;

/// What was measured lies here until it is measured again.
fn kept() -> PathBuf {
    here().join("../target/measured")
}

pub fn keep(section: Section, body: &str) -> Result<()> {
    fs::create_dir_all(kept())?;
    Ok(fs::write(kept().join(format!("{}.md", section.name())), body)?)
}

/// A curve for the plot: a parameter and what it costs.
pub fn keep_curve(name: &str, points: &[(f64, f64)]) -> Result<()> {
    fs::create_dir_all(kept())?;
    Ok(fs::write(kept().join(format!("{name}.curve")), serde_json::to_string(points)?)?)
}

/// Writes RESULTS.md and costs.svg.
pub fn write() -> Result<()> {
    let mut text = String::from(
        "# What it costs\n\nWritten by `make bench`; compare within a table, not with other machines.\n\n",
    );
    text += &machine()?;
    for section in Section::ALL {
        if let Ok(body) = fs::read_to_string(kept().join(format!("{}.md", section.name()))) {
            write!(text, "\n## {}\n\n{body}", section.title())?;
        }
    }
    let curves = curves()?;
    if !curves.is_empty() {
        let picture = svg(&curves, "times the first parameter", "times the first cost");
        fs::write(here().join("costs.svg"), picture)?;
        text += "\n## How cost grows\n\n![each cost against its parameter, both relative to the first](costs.svg)\n\n\
                 Dashed is what would be linear.\n";
    }
    text += &micro()?;
    for (file, title) in [("tracker.txt", "The tracker"), ("swarmsim.txt", "The rules, in the simulator")] {
        if let Ok(said) = fs::read_to_string(kept().join(file)) {
            write!(text, "\n## {title}\n\n```text\n{}\n```\n", said.trim_end())?;
        }
    }
    Ok(fs::write(here().join("RESULTS.md"), text)?)
}

fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, value: String| table.row(&[name.into(), value]);
    row(
        "processor",
        format!("{}, {} cores", model.trim_start_matches([' ', '\t', ':']), std::thread::available_parallelism()?),
    );
    row("memory", format!("{} GiB", kib.unwrap_or_default() >> 20));
    row("kernel", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into());
    row("date", say("date", &["+%Y-%m-%d"])?);
    row("compiler", say("rustc", &["--version"])?);
    for client in Client::ALL {
        if let Some(version) = client.version().filter(|version| !version.is_empty()) {
            row(client.label(), version);
        }
    }
    Ok(table.finish())
}

/// What a command prints, without the line's end.
fn say(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn files_of(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == ending)).collect();
    files.sort();
    files
}

fn curves() -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for file in files_of(&kept(), "curve") {
        let points: Vec<(f64, f64)> = serde_json::from_slice(&fs::read(&file)?)?;
        let Some(&(x, y)) = points.first() else { continue };
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        curves.push(Curve { name, points: points.iter().map(|point| (point.0 / x, point.1 / y)).collect() });
    }
    Ok(curves)
}

/// What criterion measured last, and openssl beside it.
fn micro() -> Result<String> {
    let mut table = Table::new(&["", "median", "per second"]);
    let mut rows = 0;
    let folder = here().join("../target/criterion");
    let mut open = vec![folder];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.ends_with("new") {
                found.push(path);
            } else if path.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    for folder in found {
        let read = |name: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(folder.join(name))?)?) };
        let (estimates, benchmark) = (read("estimates.json")?, read("benchmark.json")?);
        let median_ns = estimates["median"]["point_estimate"].as_f64().context("criterion's median")?;
        let throughput = &benchmark["throughput"];
        let (each_ns, per_second) = match (throughput["Bytes"].as_f64(), throughput["Elements"].as_f64()) {
            (Some(bytes), _) => (median_ns, format!("{:.0} MB", bytes / median_ns * 1e3)),
            (_, Some(elements)) => (median_ns / elements, format!("{:.0}", elements / median_ns * 1e9)),
            _ => (median_ns, format!("{:.0}", 1e9 / median_ns)),
        };
        let name = format!(
            "{}: {}",
            benchmark["group_id"].as_str().unwrap_or_default(),
            benchmark["function_id"].as_str().unwrap_or_default()
        );
        table.row(&[name, time(each_ns), per_second]);
        rows += 1;
    }
    if rows == 0 {
        return Ok(String::new());
    }
    for bytes in ["16384", "1048576"] {
        if let Ok(said) = say("openssl", &["speed", "-elapsed", "-seconds", "2", "-bytes", bytes, "-evp", "sha1"])
            && let Some(kilobytes) = said
                .lines()
                .last()
                .and_then(|line| line.split_whitespace().last()?.strip_suffix('k')?.parse::<f64>().ok())
        {
            let name = format!("hashing: openssl's SHA-1 of {} KiB", bytes.parse::<u32>()? >> 10);
            table.row(&[name, String::new(), format!("{:.0} MB", kilobytes / 1e3)]);
        }
    }
    Ok(format!("\n## Single steps\n\nOn one core, medians.\n\n{}", table.finish()))
}

fn time(ns: f64) -> String {
    match ns {
        0.0..1e3 => format!("{ns:.1} ns"),
        1e3..1e6 => format!("{:.2} µs", ns / 1e3),
        1e6..1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}
