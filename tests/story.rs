//! The story of the README, in its order, as people type it: five peers, a tracker, somebody with Transmission, and
//! one person alone. It prints every command and its answer.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::clients::Kind;
use crate::support::content::{MIB, assert_same, drop_in, make, make_folder, make_sparse, same, tree};
use crate::support::net::{Host, Net};
use crate::support::peer::{at_home, rows};
use crate::support::process::{Output, is_alive, run, signal};
use crate::support::{PEERD, full_size, gate, secs, wait_for, wait_until};

/// A person at a terminal on a host, in a folder with a space in its name.
struct Person {
    name: &'static str,
    host: Host,
    home: PathBuf,
}

impl Person {
    fn new(name: &'static str, host: &Host, parent: &Path) -> Person {
        let home = parent.join(format!("home of {name}"));
        make_folder(&home);
        Person { name, host: host.clone(), home }
    }

    /// Types `line`, prints it with its answer, and hands the answer back.
    #[track_caller]
    fn types(&self, line: &str, limit: Duration) -> Output {
        println!("{}$ {line}", self.name);
        let output = self.quietly(line, limit);
        print!("{}{}", output.text(), output.errors());
        output
    }

    /// The same without printing, for what only the test wants to know.
    #[track_caller]
    fn quietly(&self, line: &str, limit: Duration) -> Output {
        let binaries = Path::new(PEERD).parent().expect("a folder").display().to_string();
        let path = format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default());
        let mut shell = self.host.command("sh");
        at_home(&mut shell, &self.home);
        run(shell.env("PATH", path).args(["-c", line]), limit)
    }

    fn ip(&self) -> IpAddr {
        self.host.ip
    }

    fn upload(&self) -> PathBuf {
        self.home.join("upload")
    }

    /// The process id of the daemon called `program`.
    #[track_caller]
    fn daemon(&self, program: &str) -> u32 {
        wait_for(secs(10), &format!("{program} at {}", self.name), || self.host.processes(program).first().copied())
    }

    /// The share of `name` that is verified here.
    #[track_caller]
    fn share_of(&self, name: &str) -> f64 {
        let list = rows(self.quietly("peerctl --json list", secs(20)).expect_success().json());
        let Some(row) = list.iter().find(|row| row["name"] == name) else { return 0.0 };
        row["have_bytes"].as_f64().expect("have_bytes") / row["size"].as_f64().expect("size")
    }

    /// The hits for `words`.
    #[track_caller]
    fn hits(&self, words: &str) -> Vec<serde_json::Value> {
        let answer = self.quietly(&format!("peerctl --json search {words}"), secs(20));
        if answer.code == Some(4) { Vec::new() } else { rows(answer.expect_success().json()) }
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["state/peerd.log", "tracker/trackerd.log"] {
                if let Ok(text) = fs::read_to_string(self.home.join(log)) {
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
                    eprintln!("---- {log} of {}, its end\n{tail}", self.name);
                }
            }
        }
    }
}

/// The size of the story's large files.
fn large() -> u64 {
    if full_size() { 1024 * MIB } else { 64 * MIB }
}

/// Files of many kinds, with the names that people give them.
fn make_tree(root: &Path) {
    let files: &[(&str, u64)] = &[
        ("notes.txt", 12_345),
        ("empty.dat", 0),
        ("one.byte", 1),
        ("paper (final) [v2].pdf", 3 * MIB + 17),
        ("it's \"quoted\".txt", 70_000),
        ("archive.tar.gz", 5 * MIB),
        ("films/holiday in the hills.mkv", 9 * MIB + 1),
        ("films/2026/summer/déjà vu — 日本語.mp4", 4 * MIB),
        ("films/2026/summer/readme.txt", 1_000),
        ("music/Ночь.flac", 2 * MIB + 5),
        ("music/readme.txt", 2_000),
        ("no_extension", 65_536),
    ];
    for (seed, (name, len)) in files.iter().enumerate() {
        make(&root.join(name), seed as u64, *len);
    }
    if full_size() {
        make_sparse(&root.join("disk image.img"), 99, 4100 * MIB);
    }
}

#[test]
fn the_story() {
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let net = Net::new(9);
    let person = |name, index: usize| Person::new(name, &net.hosts[index], folder.path());
    let (a, b, c, d) = (person("A", 0), person("B", 1), person("C", 2), person("D", 3));
    let (e, f) = (person("E", 4), person("F", 5));

    // Machine A: the tracker. Machine B shares, while it runs, whatever is dropped into upload/.
    a.types("trackerd", secs(10)).expect_success();
    let tracker = a.ip();
    let join = format!("peerd {tracker} 6969");
    b.types(&join, secs(10)).expect_success();
    drop_in(&b.upload(), "got5.mp4", 5, large());
    drop_in(&b.upload(), "big.iso", 6, large());
    let source = folder.path().join("things of B");
    make_tree(&source);
    b.types(&format!("cp -r '{}'/* upload/", source.display()), secs(60)).expect_success();
    let shared = tree(&b.upload());

    // Machine C searches and fetches, and seeds it too.
    c.types(&join, secs(10)).expect_success();
    let limit = secs(if full_size() { 300 } else { 60 });
    wait_until(limit, "everything is on the tracker", || catalogue(&a, tracker).lines().count() == shared.len());
    c.types("peerctl search got", secs(10)).expect_success();
    let said = c.types("peerctl get got5", limit).expect_success();
    let bar = said.text() + &said.errors();
    assert!(!bar.contains(['\r', '\x1b']), "a progress bar that is no terminal's is plain lines: {bar:?}");
    let shown = c.types("peerctl show got5.mp4", secs(10)).expect_success().text();
    let first: Vec<&str> = shown.lines().take(4).filter_map(|line| line.split(&[' ', ':'][..]).next()).collect();
    assert_eq!(first, ["Name", "Key", "size", "n_parts"]);
    let key = c.hits("got5")[0]["key"].as_str().expect("a key").to_string();
    let line = format!("Name : got5 type: mp4 tor : {key}.torrent");
    assert!(catalogue(&a, tracker).lines().any(|known| known == line), "search_content.txt lacks {line:?}");
    assert_same(&b.upload().join("got5.mp4"), &c.home.join("downloads/got5.mp4"));

    two_sources(&b, &c, &d, &join, limit);
    for other in [&e, &f] {
        other.types(&join, secs(10)).expect_success();
        other.types("peerctl get got5.mp4", limit).expect_success();
        assert_same(&b.upload().join("got5.mp4"), &other.home.join("downloads/got5.mp4"));
    }
    killed_and_resumed(&b, &c, limit);
    everything_else(&b, &e, &shared, limit);
    leaves(&a, &b, &c, &f);

    // Somebody with Transmission.
    let t = person("T", 6);
    let line = format!("curl -sS -o got5.torrent http://{tracker}:6969/torrents/{key}.torrent");
    t.types(&line, secs(20)).expect_success();
    let mut client =
        Kind::Transmission.start(&t.host, &t.home.join("work"), &t.home.join("got5.torrent"), &t.home.join("data"));
    client.wait(limit + secs(60), "Transmission has got5.mp4", || {
        same(&b.upload().join("got5.mp4"), &t.home.join("data/got5.mp4"))
    });

    alone(&person("G", 7), &person("H", 8));
}

/// search_content.txt of the tracker.
fn catalogue(a: &Person, tracker: IpAddr) -> String {
    let text = a.host.get(&format!("http://{tracker}:6969/search_content.txt")).unwrap_or_default();
    String::from_utf8(text).expect("search_content.txt is UTF-8")
}

/// D gets from B and C at once what both have.
fn two_sources(b: &Person, c: &Person, d: &Person, join: &str, limit: Duration) {
    d.types(join, secs(10)).expect_success();
    b.host.shape(Some(100), None);
    c.host.shape(Some(100), None);
    let before = (b.host.carried().sent, c.host.carried().sent);
    d.types("peerctl get got5", limit).expect_success();
    let sent = (b.host.carried().sent - before.0, c.host.carried().sent - before.1);
    b.host.shape(None, None);
    c.host.shape(None, None);
    assert_same(&b.upload().join("got5.mp4"), &d.home.join("downloads/got5.mp4"));
    let least = large() / 8;
    assert!(sent.0 > least && sent.1 > least, "B sent {} bytes and C {}", sent.0, sent.1);
}

/// C is killed at 40 % and goes on from the pieces it had.
fn killed_and_resumed(b: &Person, c: &Person, limit: Duration) {
    // 40 % takes about 9 s: longer than the 5 s after which what is verified must be on record.
    c.host.shape(None, Some(if full_size() { 384 } else { 24 }));
    c.types("peerctl get --detach big.iso", secs(20)).expect_success();
    wait_until(limit, "40 % at C", || c.share_of("big.iso") >= 0.4);
    let pid = c.daemon("peerd");
    println!("C$ kill -9 {pid}");
    signal(pid, "KILL");
    wait_until(secs(10), "the end of C's peerd", || !is_alive(pid));
    c.types("peerd", secs(10)).expect_success();
    let kept = c.share_of("big.iso");
    assert!(kept > 0.0, "nothing was kept");
    c.types("peerctl list", secs(10)).expect_success();
    c.types("peerctl get big.iso", limit + secs(60)).expect_success();
    c.host.shape(None, None);
    assert_same(&b.upload().join("big.iso"), &c.home.join("downloads/big.iso"));
}

/// E fetches every other file that B shares, by its key, each into a folder of its own.
fn everything_else(b: &Person, e: &Person, shared: &BTreeMap<PathBuf, u64>, limit: Duration) {
    println!("E$ # every other file, by its key");
    for (path, size) in shared {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if ["got5.mp4", "big.iso"].contains(&name.as_str()) {
            continue;
        }
        let words = format!("'{}'", name.replace('\'', r"'\''"));
        let parent = path.parent().expect("a parent").to_string_lossy().into_owned();
        let hit = e.hits(&words).into_iter().find(|hit| {
            let at = hit["path"].as_str().unwrap_or_default().trim_matches('/').to_string();
            hit["size"] == *size && (at == parent || at == path.to_string_lossy())
        });
        let hit = hit.unwrap_or_else(|| panic!("no hit for {}", path.display()));
        let key = hit["key"].as_str().expect("a key");
        e.quietly(&format!("peerctl get --quiet --to 'copies/{key}' {key}"), limit).expect_success();
        assert_same(&b.upload().join(path), &e.home.join("copies").join(key).join(&name));
    }
    assert_eq!(e.quietly("peerctl get readme.txt", secs(20)).code, Some(5), "two files are called readme.txt");
}

/// B leaves: the tracker no longer lists it, and what others hold is still found.
fn leaves(a: &Person, b: &Person, c: &Person, f: &Person) {
    let key = c.hits("got5")[0]["key"].as_str().expect("a key").to_string();
    let peers_url = format!("http://{}:6969/torrents/{key}/peers", a.ip());
    let listed = || String::from_utf8(a.host.get(&peers_url).expect("a list of peers")).expect("UTF-8");
    let b_ip = format!("\"{}\"", b.ip());
    assert!(listed().contains(&b_ip), "{}", listed());
    let pid = b.daemon("peerd");
    b.types("peerctl leave", secs(15)).expect_success();
    wait_until(secs(10), "the end of B's peerd", || !is_alive(pid));
    assert!(!listed().contains(&b_ip), "{}", listed());
    f.types("peerctl search got", secs(10)).expect_success();
    // Its own socket: else peerctl would find another peerd that this user may run on the machine.
    assert_eq!(b.types("peerctl --socket state/peerd.sock list", secs(10)).code, Some(3));
}

/// One person types `peerd` and nothing else; another joins with what it said.
fn alone(g: &Person, h: &Person) {
    let said = g.types("peerd", secs(10)).expect_success();
    let (ip, text) = (g.ip().to_string(), said.text() + &said.errors());
    assert!(text.contains(&format!("peerd {ip}")), "it does not say what others must type:\n{text}");
    drop_in(&g.upload(), "from G.bin", 70, 3 * MIB);
    h.types(&format!("peerd {ip} 6969"), secs(10)).expect_success();
    drop_in(&h.upload(), "from H.bin", 71, 3 * MIB);
    wait_until(secs(20), "both are found", || !h.hits("'from G'").is_empty() && !g.hits("'from H'").is_empty());
    h.types("peerctl get 'from G.bin'", secs(30)).expect_success();
    g.types("peerctl get 'from H.bin'", secs(30)).expect_success();
    assert_same(&g.upload().join("from G.bin"), &h.home.join("downloads/from G.bin"));
    assert_same(&h.upload().join("from H.bin"), &g.home.join("downloads/from H.bin"));
}
