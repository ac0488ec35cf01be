//! The layers point one way: a module uses only what stands left of it.
//!
//! `wire → skb, stats → fib · neigh · netfilter · ipsec · capture → tables → pipeline → io → worker →
//! hdr → control → load → cli`. Modules of one layer do not use each other. Tests inside a module
//! may use anything, and so may `lib.rs` and `main.rs`, which only put the program together.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use ferroute_tests::lab::repository;

const LAYERS: [&[&str]; 11] = [
    &["wire"],
    &["skb", "stats"],
    &["fib", "neigh", "netfilter", "ipsec", "capture"],
    &["tables"],
    &["pipeline"],
    &["io"],
    &["worker"],
    &["hdr"],
    &["control"],
    &["load"],
    &["cli"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The module of `forwarder/src` that a file belongs to: the first directory or the file's name.
fn module_of(relative: &Path) -> String {
    let first = relative.iter().next().unwrap_or_default().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Source without comments, strings' contents left as they are, and without `mod tests { … }`.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut test_depth: Option<i32> = None;
    let mut after_cfg_test = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        let braces = line.matches('{').count() as i32 - line.matches('}').count() as i32;
        if let Some(depth) = &mut test_depth {
            *depth += braces;
            if *depth <= 0 {
                test_depth = None;
            }
            continue;
        }
        if after_cfg_test && line.trim_start().starts_with("mod ") && line.contains('{') {
            test_depth = Some(braces);
            continue;
        }
        if !line.trim().is_empty() {
            after_cfg_test = line.trim_start().starts_with("#[cfg(test)]");
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// Top-level modules named after `crate::`, also inside braces: `crate::{fib::Route, wire}`.
///
/// `super` counts as `crate` in a file directly below `src`, and one level deeper in a `mod.rs`;
/// deeper files reach other modules by `super::super::…`, which is resolved by depth.
fn used(code: &str, supers_to_root: usize) -> Vec<String> {
    let root_by_super = "super::".repeat(supers_to_root);
    let mut roots = vec!["crate::"];
    if supers_to_root > 0 {
        roots.push(&root_by_super);
    }
    let mut modules = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            // Part of a longer word, or of a longer chain of supers.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            modules.extend(names(&code[at + root.len()..]));
        }
    }
    modules
}

/// The first name of a path, or those of a list in braces.
fn names(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(list) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(word(&list[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(word(&list[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// How many `super::` lead from a file's module to the crate's root.
fn depth(relative: &Path) -> usize {
    let parts = relative.iter().count();
    if relative.ends_with("mod.rs") { parts - 1 } else { parts }
}

/// Every wrong use in the files under `src`.
fn violations(src: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in ferroute_tests::source::rust_files(src) {
        let relative = path.strip_prefix(src).expect("files of src are below it");
        let module = module_of(relative);
        let Some(own) = layer(&module) else {
            if module != "lib" && module != "main" {
                wrong.push(format!("{}: `{module}` is in no layer", relative.display()));
            }
            continue;
        };
        // A file that is all tests stands below `#[cfg(test)] mod tests;`.
        if relative.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("source is readable");
        for used in used(&code(&text), depth(relative)) {
            let allowed = used == module || layer(&used).is_none_or(|other| other < own);
            if !allowed {
                wrong.push(format!("{}: `{module}` uses `{used}`", relative.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

#[test]
fn modules_use_only_what_stands_left_of_them() {
    let src = repository().join("forwarder/src");
    let files = ferroute_tests::source::rust_files(&src);
    assert!(files.len() > 10, "the source is not where it was: {}", src.display());
    let wrong = violations(&src);
    assert!(wrong.is_empty(), "layers are crossed:\n{}", wrong.join("\n"));
}

#[test]
fn a_crossing_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |file: &str, text: &str| {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().expect("below src")).expect("a directory");
        fs::write(path, text).expect("a file");
    };
    write("wire/mod.rs", "use crate::skb::SkBuff;\n");
    write("skb/mod.rs", "// use crate::pipeline::Road;\nuse crate::{wire::{Ipv4, Ipv6}, cli};\n");
    write("fib/lpm/node.rs", "use super::super::super::control::Api;\nuse super::neigh;\n");
    write("tables/mod.rs", "use crate::fib;\n#[cfg(test)]\nmod tests {\n use crate::cli::X;\n}\n");
    write("neigh/mod.rs", "fn f() -> crate::fib::Prefix {}\n");
    write("other/mod.rs", "");
    assert_eq!(
        violations(dir.path()),
        [
            "fib/lpm/node.rs: `fib` uses `control`",
            "neigh/mod.rs: `neigh` uses `fib`",
            "other/mod.rs: `other` is in no layer",
            "skb/mod.rs: `skb` uses `cli`",
            "wire/mod.rs: `wire` uses `skb`",
        ]
    );
}
