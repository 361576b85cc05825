//! The source tree as parsed code: every module with its names, and what a path written in it means.
//!
//! Names are resolved far enough that a rename, a re-export, a type alias, a glob or a `use` of the parent module does
//! not hide what is named. Where several meanings are possible all of them are returned: a rule about what may not be
//! named is better off with one too many than with one too few.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// A path as segments, beginning with `crate`, `bin/<name>` or the name of another crate.
pub type Segments = Vec<String>;

/// One source file.
pub struct Source {
    /// Relative to the root of the package.
    pub path: PathBuf,
    pub text: String,
    pub ast: syn::File,
    pub module: Segments,
    /// A file of an out-of-line `#[cfg(test)] mod x;`.
    pub is_test: bool,
}

/// All of `src/`, with the names of every module.
pub struct Tree {
    pub sources: Vec<Source>,
    modules: BTreeSet<Segments>,
    names: BTreeMap<Segments, Vec<Name>>,
}

struct Name {
    /// `None` is a glob.
    name: Option<String>,
    target: Segments,
}

impl Tree {
    /// Parses every `.rs` file below `root/src`. Panics on a file that does not parse: it would not compile either.
    pub fn read(root: &Path) -> Tree {
        let mut paths = rust_files(&root.join("src"));
        paths.sort();
        let mut tree = Tree { sources: Vec::new(), modules: BTreeSet::new(), names: BTreeMap::new() };
        for path in paths {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let ast = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let path = path.strip_prefix(root).expect("below the root").to_path_buf();
            let module = module_of(&path);
            tree.sources.push(Source { path, text, ast, module, is_test: false });
        }
        let mut test_modules = BTreeSet::new();
        for source in &tree.sources {
            let mut collect = Collect {
                modules: &mut tree.modules,
                names: &mut tree.names,
                test_modules: &mut test_modules,
                scope: source.module.clone(),
            };
            collect.modules.insert(source.module.clone());
            collect.visit_file(&source.ast);
        }
        for source in &mut tree.sources {
            source.is_test = test_modules.iter().any(|test| source.module.starts_with(test));
        }
        tree
    }

    /// Everything that `path`, written in the module `scope`, may name.
    pub fn meanings(&self, scope: &[String], path: &[String]) -> BTreeSet<Segments> {
        let mut search = Search { tree: self, seen: BTreeSet::new(), open: Vec::new(), found: BTreeSet::new() };
        search.open.push((scope.to_vec(), path.to_vec(), None));
        while let Some(step) = search.open.pop() {
            if !step.1.is_empty() && step.1.len() <= LONGEST_PATH && search.seen.insert(step.clone()) {
                search.step(step);
            }
        }
        search.found
    }
}

/// Ends the expansion of a name that is bound to a path which begins with the name itself.
const LONGEST_PATH: usize = 32;

/// A module, a path as seen from there, and the module whose globs led to it (they are not asked twice in a row).
type Step = (Segments, Segments, Option<Segments>);

struct Search<'a> {
    tree: &'a Tree,
    seen: BTreeSet<Step>,
    open: Vec<Step>,
    found: BTreeSet<Segments>,
}

impl Search<'_> {
    fn step(&mut self, (scope, path, via): Step) {
        match path[0].as_str() {
            "crate" => self.follow([&scope[..1], &path[1..]].concat(), via),
            "peerd" if scope[0].starts_with("bin/") => {
                self.follow([&["crate".to_string()], &path[1..]].concat(), via);
            }
            "self" => self.open.push((scope, path[1..].to_vec(), via)),
            "super" => {
                let parent = scope[..scope.len().saturating_sub(1).max(1)].to_vec();
                // `super` alone names the parent itself.
                self.found.insert([&parent, &path[1..]].concat());
                self.open.push((parent, path[1..].to_vec(), None));
            }
            // Since edition 2018 a crate, a name of this module, or both.
            _ => {
                self.follow([&scope[..], &path[..]].concat(), via);
                self.found.insert(outside(path));
            }
        }
    }

    /// An absolute path of ours: itself, and what its first name that is not a module stands for.
    fn follow(&mut self, path: Segments, via: Option<Segments>) {
        let depth = (1..=path.len()).rev().find(|&n| self.tree.modules.contains(&path[..n])).unwrap_or(1);
        let (module, rest) = path.split_at(depth);
        if let Some((first, after)) = rest.split_first() {
            for name in self.tree.names.get(module).map_or(&[][..], Vec::as_slice) {
                match &name.name {
                    Some(known) if known == first => {
                        self.open.push((module.to_vec(), [&name.target, after].concat(), None));
                    }
                    None if via.as_deref() != Some(module) => {
                        self.open.push((module.to_vec(), [&name.target, rest].concat(), Some(module.to_vec())));
                    }
                    _ => {}
                }
            }
        }
        self.found.insert(path);
    }
}

/// `core` and `alloc` are the same things as `std`.
fn outside(mut path: Segments) -> Segments {
    if matches!(path[0].as_str(), "core" | "alloc") {
        path[0] = "std".to_string();
    }
    path
}

/// Every `.rs` file below `dir`.
pub fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn module_of(path: &Path) -> Segments {
    let mut segments: Segments =
        path.with_extension("").iter().skip(1).map(|s| s.to_string_lossy().into_owned()).collect();
    if segments.first().is_some_and(|s| s == "bin") {
        let mut module = vec![format!("bin/{}", segments[1])];
        module.extend(segments.drain(2..).filter(|s| s != "main"));
        return module;
    }
    if segments.last().is_some_and(|s| s == "mod" || s == "lib") {
        segments.pop();
    }
    segments.insert(0, "crate".to_string());
    segments
}

/// `#[cfg(test)]`, also inside `all` and `any`, but not inside `not`; and `#[test]`.
pub fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => names_test(list.tokens.clone()),
        meta => meta.path().is_ident("test"),
    })
}

fn names_test(tokens: proc_macro2::TokenStream) -> bool {
    let mut negated = false;
    for token in tokens {
        match token {
            proc_macro2::TokenTree::Ident(ident) if ident == "test" => return true,
            proc_macro2::TokenTree::Ident(ident) => negated = ident == "not",
            proc_macro2::TokenTree::Group(group) if !negated && names_test(group.stream()) => return true,
            _ => {}
        }
    }
    false
}

pub fn item_attrs(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item::*;
    match item {
        Const(i) => &i.attrs,
        Enum(i) => &i.attrs,
        ExternCrate(i) => &i.attrs,
        Fn(i) => &i.attrs,
        ForeignMod(i) => &i.attrs,
        Impl(i) => &i.attrs,
        Macro(i) => &i.attrs,
        Mod(i) => &i.attrs,
        Static(i) => &i.attrs,
        Struct(i) => &i.attrs,
        Trait(i) => &i.attrs,
        TraitAlias(i) => &i.attrs,
        Type(i) => &i.attrs,
        Union(i) => &i.attrs,
        Use(i) => &i.attrs,
        _ => &[],
    }
}

/// The leaves of a `use`: each path, with the name it gets (`None` for a glob).
pub fn use_leaves(tree: &syn::UseTree) -> Vec<(Segments, Option<String>)> {
    fn walk(tree: &syn::UseTree, prefix: &[String], leaves: &mut Vec<(Segments, Option<String>)>) {
        let with = |ident: &syn::Ident| [prefix, &[plain(ident)]].concat();
        let leaf = |ident: &syn::Ident| if ident == "self" { prefix.to_vec() } else { with(ident) };
        match tree {
            syn::UseTree::Path(path) => walk(&path.tree, &with(&path.ident), leaves),
            syn::UseTree::Name(name) => {
                let path = leaf(&name.ident);
                let last = path.last().cloned();
                leaves.push((path, last));
            }
            syn::UseTree::Rename(rename) => leaves.push((leaf(&rename.ident), Some(plain(&rename.rename)))),
            syn::UseTree::Glob(_) => leaves.push((prefix.to_vec(), None)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, prefix, leaves)),
        }
    }
    let mut leaves = Vec::new();
    walk(tree, &[], &mut leaves);
    leaves
}

/// An identifier without `r#`.
pub fn plain(ident: &impl ToString) -> String {
    ident.to_string().trim_start_matches("r#").to_string()
}

pub fn segments(path: &syn::Path) -> Segments {
    path.segments.iter().map(|s| plain(&s.ident)).collect()
}

/// Collects modules and the names they bind. A `use` inside a function counts for its whole module.
struct Collect<'a> {
    modules: &'a mut BTreeSet<Segments>,
    names: &'a mut BTreeMap<Segments, Vec<Name>>,
    test_modules: &'a mut BTreeSet<Segments>,
    scope: Segments,
}

impl Collect<'_> {
    fn add(&mut self, name: Option<String>, target: Segments) {
        self.names.entry(self.scope.clone()).or_default().push(Name { name, target });
    }
}

impl<'ast> Visit<'ast> for Collect<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(module) => {
                let mut scope = self.scope.clone();
                scope.push(plain(&module.ident));
                if is_test(&module.attrs) {
                    self.test_modules.insert(scope);
                    return;
                }
                self.modules.insert(scope.clone());
                let outer = std::mem::replace(&mut self.scope, scope);
                syn::visit::visit_item_mod(self, module);
                self.scope = outer;
            }
            _ if is_test(item_attrs(item)) => {}
            syn::Item::Use(item) => {
                for (path, name) in use_leaves(&item.tree) {
                    self.add(name, path);
                }
            }
            syn::Item::ExternCrate(item) => {
                let name = item.rename.as_ref().map_or_else(|| plain(&item.ident), |(_, name)| plain(name));
                self.add(Some(name), vec![plain(&item.ident)]);
            }
            syn::Item::Type(item) => {
                if let syn::Type::Path(path) = &*item.ty {
                    self.add(Some(plain(&item.ident)), segments(&path.path));
                }
            }
            _ => syn::visit::visit_item(self, item),
        }
    }
}
