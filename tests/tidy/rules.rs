//! The rules, one walk over the parsed tree.

use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

use super::tree::{Segments, Source, Tree, is_test, item_attrs, plain, rust_files, segments, use_leaves};
use super::{Rule, Violation};

/// Lines between the braces of a function, ends not counted.
const FUNCTION_LINES: usize = 70;
/// Lines of a file before its `#[cfg(test)] mod`.
const FILE_LINES: usize = 800;

/// Files that may say `unsafe`, each for a reason that stands here.
const UNSAFE_FILES: &[&str] = &[
    // SHA-1's instructions, four messages side by side: 2.4 times what the crate does with one, and no crate does it.
    "src/daemon/disk/lanes.rs",
    // fcntl(F_SETLEASE) alone tells whether somebody still writes a file, and no crate wraps it.
    "src/daemon/watch/lease.rs",
];

const PURE_ROOMS: &[&str] = &["wire", "swarm"];

/// What a pure room may not name: every path that begins with one of these.
const IMPURE: &[&str] = &[
    "tokio",
    "sled",
    "mio",
    "axum",
    "hyper",
    "hyper_util",
    "reqwest",
    "notify",
    "nix",
    "libc",
    "getrandom",
    "tracing",
    "std::env",
    "std::fs",
    "std::io::Stderr",
    "std::io::Stdin",
    "std::io::Stdout",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os::fd",
    "std::os::linux",
    "std::os::unix::fs",
    "std::os::unix::io",
    "std::os::unix::net",
    "std::os::unix::process",
    "std::os::unix::thread",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::hash::RandomState",
    "std::collections::hash_map::RandomState",
    "rand::random",
    "rand::random_bool",
    "rand::random_iter",
    "rand::random_range",
    "rand::random_ratio",
    "rand::rng",
    "rand::thread_rng",
    "rand::rngs::OsRng",
    "rand::rngs::ThreadRng",
    "rand::rngs::ReseedingRng",
    "crate::clock::Clock",
    "crate::clock::SystemClock",
];

/// What the rules of the game may not name besides: their order differs from run to run.
const UNORDERED: &[&str] = &["std::collections::HashMap", "std::collections::HashSet"];

/// Functions that draw from the machine's randomness, whatever type they are called on.
const AMBIENT_SEEDS: &[&str] = &["from_entropy", "from_os_rng", "try_from_os_rng"];

/// Macros that write to the terminal.
const PRINTING: &[&str] = &["print", "println", "eprint", "eprintln"];

const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];

/// The rooms each room may name besides itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("bin", &["ctl", "daemon", "tracker"]),
    ("ctl", &["wire"]),
    ("daemon", &["db", "swarm", "wire"]),
    ("tracker", &["db", "wire"]),
    ("sim", &["swarm", "wire"]),
    ("swarm", &["wire"]),
    ("db", &[]),
    ("wire", &[]),
];

/// Rooms that may use the helper modules which lie directly in `src/`; `clock` is everybody's.
const HELPED: &[&str] = &["bin", "daemon", "tracker"];

pub fn check_sources(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in &tree.sources {
        let mut walk = Walk::new(tree, source, &mut violations);
        walk.visit_file(&source.ast);
        if !source.is_test {
            file_length(source, &mut violations);
        }
        everywhere(&source.path, &source.text, &mut violations);
    }
    violations
}

/// What holds for the integration tests too.
pub fn check_tests(root: &Path) -> Vec<Violation> {
    let mut violations = Vec::new();
    let dir = root.join("tests");
    if dir.is_dir() {
        for path in rust_files(&dir) {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            everywhere(path.strip_prefix(root).expect("below the root"), &text, &mut violations);
        }
    }
    violations
}

fn file_length(source: &Source, violations: &mut Vec<Violation>) {
    let tests = source.ast.items.iter().find_map(|item| match item {
        syn::Item::Mod(module) if is_test(&module.attrs) => Some(item.span().start().line - 1),
        _ => None,
    });
    let lines = tests.unwrap_or_else(|| source.text.lines().count());
    if lines > FILE_LINES {
        let what = format!("{lines} lines before its tests; at most {FILE_LINES}");
        violations.push(Violation { file: source.path.clone(), line: lines, rule: Rule::File, what });
    }
}

/// Rules that need no names: tokens alone, tests included.
fn everywhere(path: &Path, text: &str, violations: &mut Vec<Violation>) {
    let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut add = |line, rule, what: String| violations.push(Violation { file: path.to_path_buf(), line, rule, what });
    scan(tokens, &mut |before, ident, after| {
        let line = ident.span().start().line;
        let name = plain(ident);
        let is_macro = is_punct(after, '!');
        if name == "unsafe" && !UNSAFE_FILES.iter().any(|file| path == Path::new(file)) {
            add(line, Rule::Unsafe, "unsafe in a file that is not on the list in tests/tidy/rules.rs".to_string());
        }
        if is_macro && UNFINISHED.contains(&name.as_str()) {
            add(line, Rule::Unfinished, format!("{name}!"));
        }
        // The attribute `ignore`, with a reason or without, and the same inside `cfg_attr`.
        let in_attribute = before.is_none() || is_punct(before, ',');
        if name == "ignore" && in_attribute && (after.is_none() || is_punct(after, '=') || is_punct(after, ',')) {
            add(line, Rule::Ignored, "a test that is switched off".to_string());
        }
    });
}

/// Calls `f` with every identifier and its neighbours in the same group.
fn scan<F>(tokens: TokenStream, f: &mut F)
where
    F: FnMut(Option<&TokenTree>, &proc_macro2::Ident, Option<&TokenTree>),
{
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (i, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) => f(i.checked_sub(1).map(|i| &tokens[i]), ident, tokens.get(i + 1)),
            TokenTree::Group(group) => scan(group.stream(), f),
            _ => {}
        }
    }
}

fn is_punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == c)
}

/// Paths written inside a macro call, which syn leaves as tokens.
fn paths_in(tokens: TokenStream) -> Vec<(Segments, usize)> {
    let mut paths: Vec<(Segments, usize)> = Vec::new();
    let mut colons = 0;
    let mut joined = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                match paths.last_mut() {
                    Some((path, _)) if joined && colons == 2 => path.push(plain(&ident)),
                    _ => paths.push((vec![plain(&ident)], line)),
                }
                (colons, joined) = (0, true);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                let inner = paths_in(group.stream());
                paths.extend(inner);
                (colons, joined) = (0, false);
            }
            _ => (colons, joined) = (0, false),
        }
    }
    paths
}

/// The walk over one file's own code, tests left out.
struct Walk<'a> {
    tree: &'a Tree,
    source: &'a Source,
    room: &'a str,
    scope: Segments,
    violations: &'a mut Vec<Violation>,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a Tree, source: &'a Source, violations: &'a mut Vec<Violation>) -> Walk<'a> {
        let room = match &source.module[..] {
            [root, ..] if root.starts_with("bin/") => "bin",
            [_, room, ..] => room,
            _ => "",
        };
        Walk { tree, source, room, scope: source.module.clone(), violations }
    }

    fn add(&mut self, line: usize, rule: Rule, what: String) {
        self.violations.push(Violation { file: self.source.path.clone(), line, rule, what });
    }

    fn path(&mut self, path: &[String], line: usize) {
        for meaning in self.tree.meanings(&self.scope, path) {
            // One segment outside a `use` is a variable or a name of this file's own, never a crate.
            if meaning.len() > 1 {
                self.named(&meaning, line);
            }
        }
        if PURE_ROOMS.contains(&self.room) && path.last().is_some_and(|last| AMBIENT_SEEDS.contains(&last.as_str())) {
            self.add(line, Rule::Pure, format!("draws a seed from the machine: {}", path.join("::")));
        }
    }

    /// A path of which it is known what it names.
    fn named(&mut self, path: &[String], line: usize) {
        let text = path.join("::");
        let begins =
            |prefix: &str| text.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        if PURE_ROOMS.contains(&self.room) && IMPURE.iter().any(|prefix| begins(prefix)) {
            self.add(line, Rule::Pure, format!("a pure room names {text}"));
        }
        if self.room == "swarm" && UNORDERED.iter().any(|prefix| begins(prefix)) {
            self.add(line, Rule::Pure, format!("{text} is walked in an order that differs from run to run"));
        }
        if begins("sled") && self.room != "db" {
            self.add(line, Rule::Sled, format!("{text} outside src/db"));
        }
        if begins("anyhow") && self.room != "bin" {
            self.add(line, Rule::Anyhow, format!("{text} outside src/bin"));
        }
        let unbounded = path.iter().any(|s| s == "unbounded_channel") || begins("std::sync::mpsc::channel");
        if unbounded {
            self.add(line, Rule::Channel, format!("{text} has no bound"));
        }
        if let [root, to, ..] = path
            && root == "crate"
        {
            self.arrow(to, line);
        }
    }

    fn arrow(&mut self, to: &str, line: usize) {
        let is_room = ARROWS.iter().any(|(room, _)| *room == to);
        let is_module =
            self.tree.sources.iter().any(|s| matches!(&s.module[..], [r, m, ..] if r == "crate" && m == to));
        if to == self.room || to == "clock" || !is_module || self.source.module.len() < 2 && self.room != "bin" {
            return;
        }
        let allowed = match ARROWS.iter().find(|(room, _)| *room == self.room) {
            Some((room, _)) if !is_room => HELPED.contains(room),
            Some((_, targets)) => targets.contains(&to),
            // A helper module: it may lean on other helpers, not on rooms.
            None => !is_room,
        };
        if !allowed {
            let from = if self.room.is_empty() { "the root" } else { self.room };
            self.add(line, Rule::Arrow, format!("{from} may not use {to}"));
        }
    }

    fn function(&mut self, name: &syn::Ident, block: &syn::Block) {
        let (start, end) = (block.brace_token.span.open().start().line, block.brace_token.span.close().end().line);
        let lines = (end - start).saturating_sub(1);
        if lines > FUNCTION_LINES {
            self.add(start, Rule::Function, format!("{name} has {lines} lines; at most {FUNCTION_LINES}"));
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        if !self.source.is_test {
            syn::visit::visit_file(self, file);
        }
    }

    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(item_attrs(item)) {
            return;
        }
        match item {
            syn::Item::Mod(module) => {
                self.scope.push(plain(&module.ident));
                syn::visit::visit_item_mod(self, module);
                self.scope.pop();
            }
            _ => syn::visit::visit_item(self, item),
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let line = item.span().start().line;
        for (path, _) in use_leaves(&item.tree) {
            self.path(&path, line);
            self.named(&path[..1], line);
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.named(&[plain(&item.ident)], item.span().start().line);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(&segments(path), path.span().start().line);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let line = call.path.span().start().line;
        let name = call.path.segments.last().map(|s| plain(&s.ident)).unwrap_or_default();
        if PURE_ROOMS.contains(&self.room) && PRINTING.contains(&name.as_str()) {
            self.add(line, Rule::Pure, format!("a pure room writes to the terminal: {name}!"));
        }
        for (path, line) in paths_in(call.tokens.clone()) {
            self.path(&path, line);
        }
        syn::visit::visit_macro(self, call);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attrs: &[syn::Attribute] = match item {
            syn::ImplItem::Fn(i) => &i.attrs,
            syn::ImplItem::Const(i) => &i.attrs,
            syn::ImplItem::Type(i) => &i.attrs,
            _ => &[],
        };
        if !is_test(attrs) {
            syn::visit::visit_impl_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig.ident, block);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}
