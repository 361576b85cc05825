//! Each rule that ARCHITECTURE.md marks [tidy] is broken here in a small tree, and tidy must see it.

use std::fs;
use std::path::Path;

use super::{Rule, check};

/// A tree with `code` in `file`, and one empty module for every room and helper that `code` may name.
fn rules_broken_by(files: &[(&str, &str)]) -> Vec<Rule> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let write = |file: &str, code: &str| {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create a folder");
        fs::write(path, code).expect("write a file");
    };
    for room in ["ctl", "daemon", "db", "sim", "swarm", "tracker", "wire"] {
        write(&format!("src/{room}/mod.rs"), "pub struct Thing;\n");
    }
    write("src/clock.rs", "pub struct Time;\n");
    write("src/background.rs", "pub fn detach() {}\n");
    write("src/lib.rs", "pub mod clock;\n");
    for (file, code) in files {
        write(file, code);
    }
    let mut rules: Vec<Rule> = check(dir.path()).into_iter().map(|v| v.rule).collect();
    rules.dedup();
    rules
}

#[track_caller]
fn breaks(rule: Rule, file: &str, code: &str) {
    assert_eq!(rules_broken_by(&[(file, code)]), [rule], "{file}: {code}");
}

#[track_caller]
fn holds(file: &str, code: &str) {
    assert_eq!(rules_broken_by(&[(file, code)]), [], "{file}: {code}");
}

#[test]
fn a_small_tree_of_nothing_is_tidy() {
    assert_eq!(rules_broken_by(&[]), []);
}

#[test]
fn pure_rooms_do_no_io() {
    for code in [
        "use tokio::sync::mpsc;",
        "use std::fs;",
        "use std::fs::File as F;",
        "fn f() { std::fs::remove_file(\"x\").ok(); }",
        "use std::net::TcpStream;",
        "use std::{net::{IpAddr, UdpSocket}};",
        "fn f(_: &std::os::unix::net::UnixStream) {}",
        "use std::io; fn f() { io::stdout(); }",
        "fn f() { println!(\"x\"); }",
        "fn f() { let x = vec![std::env::var(\"x\")]; }",
        "use std::thread;",
        "fn f() { std::process::exit(1) }",
        "fn f<T: std::net::ToSocketAddrs>(_: T) {}",
        "extern crate tokio;",
        "mod inner { pub mod deep { pub use std::fs as files; } } fn f() { inner::deep::files::read(\"x\").ok(); }",
    ] {
        breaks(Rule::Pure, "src/wire/a.rs", code);
        breaks(Rule::Pure, "src/swarm/a.rs", code);
    }
    holds("src/daemon/a.rs", "use std::fs; use tokio::net::TcpStream;");
    holds("src/wire/a.rs", "use std::os::unix::ffi::OsStrExt;");
    holds("src/wire/a.rs", "use std::net::{IpAddr, SocketAddr}; use std::io::{Read, Error};");
    holds("src/wire/a.rs", "fn f(fs: u8) -> u8 { let tokio = fs; tokio + fs }");
}

#[test]
fn pure_rooms_read_no_clock() {
    for code in [
        "fn f() { std::time::Instant::now(); }",
        "use std::time::Instant as I; fn f() { I::now(); }",
        "use std::time; fn f() { time::Instant::now(); }",
        "use std::time as t; fn f() { t::Instant::now(); }",
        "use std as s; fn f() { s::time::SystemTime::now(); }",
        "use std::time::*; fn f() { Instant::now(); }",
        "type I = std::time::Instant; fn f() { I::now(); }",
        "fn f() { use std::time::SystemTime; SystemTime::now(); }",
        "fn f() { assert!(std::time::Instant::now() > x); }",
        "fn f() { <std::time::Instant>::now(); }",
        "use core::time::Duration; use std::time::UNIX_EPOCH; use std::time::SystemTime;",
    ] {
        breaks(Rule::Pure, "src/swarm/a.rs", code);
    }
    holds("src/swarm/a.rs", "use std::time::Duration; use crate::clock::Time;");
    let through_a_reexport = [
        ("src/clock.rs", "pub use std::time::Instant as Moment;"),
        ("src/swarm/a.rs", "use crate::clock::Moment; fn f() { Moment::now(); }"),
    ];
    assert_eq!(rules_broken_by(&through_a_reexport), [Rule::Pure]);
    let through_a_glob = [
        ("src/clock.rs", "pub use std::time::*;"),
        ("src/swarm/mod.rs", "use crate::clock::*; mod a;"),
        ("src/swarm/a.rs", "use super::*; fn f() { Instant::now(); }"),
    ];
    assert_eq!(rules_broken_by(&through_a_glob), [Rule::Pure]);
}

#[test]
fn pure_rooms_draw_no_ambient_randomness() {
    for code in [
        "fn f() -> u8 { rand::random() }",
        "use rand::rng; fn f() { rng(); }",
        "use rand as dice; fn f() { dice::rng(); }",
        "use rand::rngs::{OsRng, SmallRng};",
        "use rand::rngs::SmallRng; fn f() { SmallRng::from_os_rng(); }",
        "fn f(b: &mut [u8]) { getrandom::fill(b).ok(); }",
        "use std::hash::RandomState;",
    ] {
        breaks(Rule::Pure, "src/swarm/a.rs", code);
    }
    breaks(Rule::Pure, "src/swarm/a.rs", "use std::collections::HashMap as Map;");
    breaks(Rule::Pure, "src/swarm/a.rs", "use std::collections; fn f(_: collections::HashSet<u8>) {}");
    holds("src/swarm/a.rs", "use std::collections::{BTreeMap, VecDeque};");
    holds("src/swarm/a.rs", "use rand::{Rng, SeedableRng, rngs::SmallRng}; fn f(r: &mut SmallRng) {}");
}

#[test]
fn tests_of_a_pure_room_may_do_what_it_may_not() {
    holds("src/wire/a.rs", "#[cfg(test)] mod tests { use std::fs; fn f() { std::time::Instant::now(); } }");
    holds("src/wire/a.rs", "#[cfg(all(test, unix))] fn f() { std::process::exit(1) }");
    breaks(Rule::Pure, "src/wire/a.rs", "#[cfg(not(test))] mod real { use std::fs; }");
    let out_of_line = [("src/wire/a.rs", "#[cfg(test)] mod tests;"), ("src/wire/a/tests.rs", "use std::fs;")];
    assert_eq!(rules_broken_by(&out_of_line), []);
}

#[test]
fn sled_is_named_in_db_alone() {
    breaks(Rule::Sled, "src/daemon/a.rs", "use sled::Db;");
    breaks(Rule::Sled, "src/tracker/a.rs", "fn f(_: &sled::Tree) {}");
    breaks(Rule::Sled, "src/bin/peerd.rs", "use sled as store; fn main() { store::open(\"x\"); }");
    holds("src/db/a.rs", "use sled::Db;");
}

#[test]
fn rooms_follow_the_arrows() {
    let allowed = [
        ("bin", "ctl daemon tracker background clock"),
        ("ctl", "wire clock"),
        ("daemon", "db swarm wire background clock"),
        ("tracker", "db wire background clock"),
        ("sim", "swarm wire clock"),
        ("swarm", "wire clock"),
        ("db", "clock"),
        ("wire", "clock"),
    ];
    let targets = ["ctl", "daemon", "db", "sim", "swarm", "tracker", "wire", "background", "clock"];
    for (from, to) in allowed {
        for target in targets.into_iter().filter(|target| *target != from) {
            let (file, krate) = match from {
                "bin" => ("src/bin/peerd.rs".to_string(), "peerd"),
                room => (format!("src/{room}/a.rs"), "crate"),
            };
            let code = format!("fn f() {{ {krate}::{target}::thing(); }}");
            if to.split(' ').any(|allowed| allowed == target) {
                holds(&file, &code);
            } else {
                breaks(Rule::Arrow, &file, &code);
            }
        }
    }
}

#[test]
fn arrows_hold_through_super_and_aliases() {
    breaks(Rule::Arrow, "src/wire/mod.rs", "use super::swarm::Thing;");
    breaks(Rule::Arrow, "src/wire/a.rs", "use super::super::db;");
    breaks(Rule::Arrow, "src/wire/a.rs", "use crate as ours; fn f(_: ours::daemon::Thing) {}");
    breaks(Rule::Arrow, "src/swarm/a.rs", "use crate::{clock::Time, tracker::Thing};");
    breaks(Rule::Arrow, "src/background.rs", "use crate::daemon::Thing;");
    holds("src/wire/a.rs", "use super::Thing; use self::x::Y; mod x {}");
    holds("src/lib.rs", "pub mod wire; pub use crate::wire::Thing;");
}

#[test]
fn functions_are_short() {
    let function = |lines: usize| format!("struct S;\nimpl S {{\nfn f() {{\n{}}}\n}}\n", "g();\n".repeat(lines));
    holds("src/daemon/a.rs", &function(70));
    breaks(Rule::Function, "src/daemon/a.rs", &function(71));
    breaks(Rule::Function, "src/daemon/a.rs", &format!("fn f() {{\n{}}}\n", "g();\n".repeat(71)));
    breaks(Rule::Function, "src/daemon/a.rs", &format!("trait T {{ fn f() {{\n{}}} }}\n", "g();\n".repeat(71)));
    holds("src/daemon/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(71)));
}

#[test]
fn files_are_short() {
    let file = |lines: usize| format!("{}#[cfg(test)]\nmod tests {{}}\n", "const _: u8 = 0;\n".repeat(lines));
    holds("src/daemon/a.rs", &file(800));
    breaks(Rule::File, "src/daemon/a.rs", &file(801));
    breaks(Rule::File, "src/daemon/a.rs", &"const _: u8 = 0;\n".repeat(801));
}

#[test]
fn channels_are_bounded() {
    breaks(Rule::Channel, "src/daemon/a.rs", "use tokio::sync::mpsc; fn f() { mpsc::unbounded_channel::<u8>(); }");
    breaks(Rule::Channel, "src/daemon/a.rs", "use std::sync::mpsc as c; fn f() { let (a, b) = c::channel(); }");
    holds("src/daemon/a.rs", "fn f() { std::sync::mpsc::sync_channel::<u8>(1); tokio::sync::mpsc::channel::<u8>(1); }");
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    breaks(Rule::Unfinished, "src/daemon/a.rs", concat!("fn f() { to", "do!() }"));
    breaks(Rule::Unfinished, "src/daemon/a.rs", concat!("fn f() { std::unimple", "mented!(\"later\") }"));
    breaks(Rule::Unfinished, "tests/a.rs", "fn f() { dbg!(1); }");
    breaks(Rule::Ignored, "src/daemon/a.rs", concat!("#[cfg(test)] mod tests { #[test] #[", "ignore] fn f() {} }"));
    breaks(Rule::Ignored, "tests/a.rs", concat!("#[test] #[", "ignore = \"slow\"] fn f() {}"));
    breaks(Rule::Ignored, "tests/a.rs", "#[test] #[cfg_attr(unix, ignore)] fn f() {}");
}

#[test]
fn anyhow_stays_in_the_binaries() {
    breaks(Rule::Anyhow, "src/daemon/a.rs", "fn f() -> anyhow::Result<()> { Ok(()) }");
    holds("src/bin/peerd.rs", "fn main() -> anyhow::Result<()> { Ok(()) }");
}

#[test]
fn unsafe_needs_a_place_on_the_list() {
    breaks(Rule::Unsafe, "src/daemon/a.rs", "fn f() { unsafe { g() } }");
    breaks(Rule::Unsafe, "tests/a.rs", "unsafe fn f() {}");
}

/// The real tree with one line added, so that the rules are seen to reach it and not only the small trees above.
#[test]
fn a_line_added_to_the_real_tree_is_seen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    for path in super::tree::rust_files(&root.join("src")) {
        let copy = dir.path().join(path.strip_prefix(root).expect("below the root"));
        fs::create_dir_all(copy.parent().expect("a folder")).expect("create a folder");
        fs::copy(path, copy).expect("copy a file");
    }
    let before = check(dir.path()).len();
    let victim = dir.path().join("src/wire/layout.rs");
    let code = fs::read_to_string(&victim).expect("read a file");
    fs::write(&victim, format!("{code}\nuse std::time as t;\nfn now() {{ t::Instant::now(); }}\n")).expect("write");
    assert_eq!(check(dir.path()).len(), before + 1);
}
