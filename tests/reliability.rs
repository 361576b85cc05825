//! docs/reliability.md and the tests say the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/reliability.md";
/// The rows of the table of faults.
const ROWS: u32 = 46;
/// The rows of the table of attacks, of which each number begins with an A.
const ATTACKS: u32 = 24;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => rust_files(path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The names of all tests: of those in tests/ with their module before it, of those in src/ alone.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for folder in ["src", "tests"] {
        for path in rust_files(root().join(folder)) {
            let below = path.strip_prefix(root().join(folder)).expect("below").with_extension("");
            let module: Vec<_> = below.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            let text = fs::read_to_string(&path).expect("a source file");
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ") else { continue };
                let name = rest.split('(').next().unwrap_or_default();
                if std::mem::take(&mut is_test) {
                    let full =
                        if folder == "src" { name.to_string() } else { format!("{}::{name}", module.join("::")) };
                    names.insert(full);
                }
            }
        }
    }
    names
}

/// What stands between backticks and looks like the name of a test.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_name = |name: &&str| {
        name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    quoted.filter(is_name).map(str::to_string).collect()
}

/// The lines of a table, by their number, before which stands `letter`.
fn rows(page: &str, letter: &str) -> Vec<(u32, String)> {
    let numbered = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|');
        let number = cells.next()?.trim().strip_prefix(letter)?.parse().ok()?;
        Some((number, cells.nth(1)?.to_string()))
    };
    page.lines().filter_map(numbered).collect()
}

#[test]
fn every_row_has_a_test_that_exists_or_a_reason() {
    let page = fs::read_to_string(root().join(PAGE)).expect(PAGE);
    let tests = tests();
    for (letter, count) in [("", ROWS), ("A", ATTACKS)] {
        let rows = rows(&page, letter);
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>(), "{PAGE}");
        for (number, held_by) in &rows {
            let is_held = !named(held_by).is_empty() || held_by.trim().starts_with("reason: ");
            assert!(is_held, "{PAGE}, row {letter}{number}: {held_by}");
        }
    }
    for name in named(&page) {
        assert!(tests.contains(&name), "{PAGE} names {name}, which is no test");
    }
}

#[test]
fn every_test_of_a_fault_stands_in_the_page() {
    let page = fs::read_to_string(root().join(PAGE)).expect(PAGE);
    let named = named(&page);
    let about_the_disk_itself = |name: &str| name.starts_with("disk::model::") || name.starts_with("disk::child::");
    let of_a_fault = |name: &&String| ["disk::", "faults::", "hostile::"].iter().any(|module| name.starts_with(module));
    for name in tests().iter().filter(of_a_fault).filter(|name| !about_the_disk_itself(name)) {
        assert!(named.contains(name), "{PAGE} does not name {name}");
    }
}
