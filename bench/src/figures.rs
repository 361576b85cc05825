//! What the kernel says of a process, and how figures are brought together.

use std::fs;

/// Clock ticks a second in /proc: the same on every Linux.
const TICKS_PER_S: f64 = 100.0;
pub const MIB: f64 = (1 << 20) as f64;

/// User and system seconds of a live process, with those of the children that it has waited for.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |field: &str| field.parse::<f64>().unwrap_or_default();
    // utime, stime, cutime and cstime are fields 14 to 17; the state, field 3, comes first here.
    after_name.split_whitespace().skip(11).take(4).map(ticks).sum::<f64>() / TICKS_PER_S
}

/// What is resident now, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() / 1_024.0
}

/// The middle one; of an even number the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// A Markdown table.
pub struct Table {
    columns: usize,
    text: String,
}

impl Table {
    pub fn new(heads: &[&str]) -> Table {
        let text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        Table { columns: heads.len(), text }
    }

    pub fn row(&mut self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns, "{cells:?}");
        self.text += &format!("| {} |\n", cells.join(" | "));
    }

    pub fn finish(self) -> String {
        self.text
    }
}
