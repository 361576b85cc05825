//! Every decoder that is given a stranger's bytes, under its corpus and under seeded changes of it.
//!
//! The corpus is in `tests/fuzz/corpus/TARGET/`. The number of inputs is fixed, so that a run repeats itself.
//! `PEERD_FUZZ_ROUNDS=100` runs a hundred times as many, each round from another seed; `PEERD_FUZZ_SEED` begins elsewhere.
//! `make fuzz` runs the same targets under a coverage-guided fuzzer.

mod canary;
mod mutate;
mod targets;

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use mutate::Mutator;

/// The longest input that is printed when it fails; a longer one is made again from its seed.
const MAX_PRINTED_BYTES: usize = 2 << 10;

fn corpus_folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fuzz", "corpus"].iter().collect()
}

/// In the order of the files' names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = corpus_folder().join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable file")).collect()
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: no number")))
}

type Panic = Box<dyn Any + Send>;

fn run(target: fn(&[u8]), input: &[u8]) -> Result<(), Panic> {
    catch_unwind(AssertUnwindSafe(|| target(input)))
}

fn show(input: &[u8]) -> String {
    if input.len() <= MAX_PRINTED_BYTES {
        format!("\"{}\"", input.escape_ascii())
    } else {
        format!("{} bytes", input.len())
    }
}

/// The corpus alone: its coverage is what the decoders' tests reach at least.
fn run_corpus(name: &str, target: fn(&[u8])) {
    for (number, input) in corpus(name).iter().enumerate() {
        if let Err(panic) = run(target, input) {
            eprintln!("{name}: fails on file {number} of its corpus: {}", show(input));
            resume_unwind(panic);
        }
    }
}

/// The first input from `seed` that `target` fails on, with its number.
fn first_failure(
    name: &str,
    target: fn(&[u8]),
    words: &[&str],
    seed: u64,
    inputs: u32,
) -> Option<(u32, Vec<u8>, Panic)> {
    let corpus = corpus(name);
    let mut mutator = Mutator::new(seed, &corpus, words);
    (0..inputs).find_map(|number| {
        let input = mutator.input();
        let panic = run(target, &input).err()?;
        Some((number, input, panic))
    })
}

fn run_mutations(name: &str, target: fn(&[u8]), words: &[&str], inputs: u32) {
    let first_seed = setting("PEERD_FUZZ_SEED", 1);
    for seed in first_seed..first_seed + setting("PEERD_FUZZ_ROUNDS", 1) {
        if let Some((number, input, panic)) = first_failure(name, target, words, seed, inputs) {
            eprintln!("{name}: fails on input {number} of PEERD_FUZZ_SEED={seed}: {}", show(&input));
            resume_unwind(panic);
        }
    }
}

fn find_canary(name: &str, canary: fn(&[u8]), words: &[&str], inputs: u32) {
    run_corpus(name, canary);
    let found = first_failure(name, canary, words, 1, inputs);
    let (number, input, _) = found.unwrap_or_else(|| panic!("{inputs} inputs did not find the planted bug"));
    println!("{name}: the planted bug was found by input {number} of {inputs}: {}", show(&input));
}

/// Three tests for each target: its corpus, so many changes of it (one to two seconds), and the planted bug.
macro_rules! targets {
    ($($name:ident: $inputs:literal, $words:expr;)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        $(mod $name {
            const NAME: &str = stringify!($name);
            const INPUTS: u32 = $inputs;
            const WORDS: &[&str] = &$words;

            #[test]
            fn corpus() {
                super::run_corpus(NAME, super::targets::named(NAME).run);
            }

            #[test]
            fn mutations() {
                super::run_mutations(NAME, super::targets::named(NAME).run, WORDS, INPUTS);
            }

            #[test]
            fn planted_bug_is_found() {
                super::find_canary(NAME, super::canary::$name, WORDS, INPUTS);
            }
        })*
    };
}

targets! {
    authorization: 1_500_000, ["Peerd ", ".", "0", "ff"];
    bencode: 1_200_000, ["d", "l", "e", "i", "i-", ":", "0:", "i0e", "le", "de", "1:a"];
    catalogue: 600_000, ["\"total\":", "\"hits\":[", "\"peers\":[", "{", "}", "[", "]", ",", "null", "\\u0000", "1e9", "-1"];
    control_answers: 400_000, ["\u{1}", "\u{0}"];
    control_requests: 800_000, ["\u{1}", "\u{0}"];
    extension_handshake: 1_000_000, ["1:m", "d", "e", "1:p", "4:reqq", "6:yourip", "1:v", "i-1e", "i0e", "11:upload_only"];
    handshake: 1_000_000, ["\u{13}BitTorrent protocol"];
    http_query: 700_000, ["&", "=", "%", "+", "info_hash=", "peer_id=", "port=", "left=-1", "ip=", "event=", "numwant="];
    http_reply: 700_000, ["5:peers", "6:peers6", "8:interval", "12:min interval", "i-1e", "i0e", "le", "de", "d", "l", "e"];
    metainfo: 800_000, ["4:info", "5:files", "6:length", "4:path", "4:name", "6:pieces", "4:attr", "1:l", "1:p", "d", "l", "e"];
    names: 200_000, ["/", "..", ".", "\u{0}", "\u{202E}", "\u{1B}"];
    peer_stream: 600_000, ["\u{0}\u{0}\u{0}\u{1}", "\u{0}\u{0}\u{0}\u{5}\u{4}", "\u{0}\u{0}\u{0}\u{0}"];
    records: 250_000, ["\u{1}", "\u{0}"];
    search_query: 40_000, ["q=", "&", "%", "+", "type=", "limit=", "offset=", "min_size=", "%D0%B0", "%E6%9D%B1", "a+"];
    udp_reply: 500_000, ["\u{0}\u{0}\u{0}\u{1}", "\u{0}\u{0}\u{0}\u{3}"];
    udp_request: 1_200_000, ["\u{0}\u{0}\u{4}\u{17}\u{27}\u{10}\u{19}", "\u{0}\u{0}\u{0}\u{2}"];
}

/// A target that is not tested, a corpus without a target, and a target that `make fuzz` leaves out are mistakes.
#[test]
fn every_target_is_tested_and_has_a_corpus() {
    let targets: BTreeSet<String> = targets::ALL.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(TESTED.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), targets);

    let folders = fs::read_dir(corpus_folder()).expect("tests/fuzz/corpus");
    let folders: BTreeSet<String> =
        folders.map(|folder| folder.expect("an entry").file_name().into_string().expect("a plain name")).collect();
    assert_eq!(folders, targets);

    let manifest = fs::read_to_string([env!("CARGO_MANIFEST_DIR"), "fuzz", "Cargo.toml"].iter().collect::<PathBuf>());
    let manifest: toml::Table = manifest.expect("fuzz/Cargo.toml").parse().expect("TOML");
    let bins = manifest["bin"].as_array().expect("programs").iter();
    assert_eq!(bins.map(|bin| bin["name"].as_str().expect("a name").to_owned()).collect::<BTreeSet<_>>(), targets);
}

#[test]
#[should_panic(expected = "spent on")]
fn steps_that_grow_with_the_square_are_seen() {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| std::hint::black_box(sum + u64::from(*byte)));
    let input = [1; 40_000];
    targets::bounds::bounded(&input, || (0..input.len()).map(|from| sum(&input[from..])).max());
}

#[test]
#[should_panic(expected = "bytes allocated for 4096")]
fn memory_beyond_the_bound_is_seen() {
    targets::bounds::bounded(&[0; 4096], || vec![0u8; 4 * 4096 + targets::bounds::SLACK_BYTES + 1]);
}
