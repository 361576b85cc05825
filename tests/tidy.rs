//! Holds the tree to ARCHITECTURE.md: what each room may name, how long functions and files may grow, and what no
//! code of ours does. It reads parsed code, so that an alias does not slip through.

mod broken;
mod rules;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Relative to the root of the package.
    pub file: PathBuf,
    pub line: usize,
    pub rule: Rule,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A pure room does IO, or reads the clock or the machine's randomness.
    Pure,
    /// sled outside `src/db`.
    Sled,
    /// An arrow between rooms that design does not draw.
    Arrow,
    /// A function that is too long.
    Function,
    /// A file that is too long.
    File,
    /// A channel without a bound.
    Channel,
    /// `todo!`, `unimplemented!`, `dbg!`.
    Unfinished,
    /// A test that is switched off.
    Ignored,
    /// anyhow outside the binaries.
    Anyhow,
    /// `unsafe` in a file that is not on the list.
    Unsafe,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{:?}] {}", self.file.display(), self.line, self.rule, self.what)
    }
}

/// Everything below `root` that breaks a rule, in the order of the files.
pub fn check(root: &Path) -> Vec<Violation> {
    let tree = tree::Tree::read(root);
    let mut violations = rules::check_sources(&tree);
    violations.extend(rules::check_tests(root));
    violations.sort();
    violations.dedup();
    violations
}

#[test]
fn the_tree_is_tidy() {
    let violations = check(Path::new(env!("CARGO_MANIFEST_DIR")));
    let report: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(violations.is_empty(), "\n{}\n", report.join("\n"));
}
