//! Checks the layers of the source: a module uses only modules to its left.
//!
//! `wire, hash_table → skb, stats → fib · neigh · ipsec · capture → trace → tables → netfilter → pipeline →
//! io → worker → histogram → control → load → cli`. Within `control`: `netlink, process → netdev · nftables ·
//! conntrack · xfrm → mirror, firewall → steering → config → api → metrics → daemon, doctor, offline`. The files of `pipeline`
//! also have layers. Modules of one layer do not use each other. Tests inside a module may use anything, and so may `lib.rs` and
//! `main.rs`, which only assemble the program.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use ferroute_tests::lab::repository;

const LAYERS: [&[&str]; 13] = [
    &["wire", "hash_table"],
    &["skb", "stats"],
    &["fib", "neigh", "ipsec", "capture"],
    &["trace"],
    &["tables"],
    &["netfilter"],
    &["pipeline"],
    &["io"],
    &["worker"],
    &["histogram"],
    &["control"],
    &["load"],
    &["cli"],
];

/// The layers of `control`.
const CONTROL_LAYERS: [&[&str]; 8] = [
    &["netlink", "process"],
    &["netdev", "nftables", "conntrack", "xfrm"],
    &["mirror", "firewall"],
    &["steering"],
    &["config"],
    &["api"],
    &["metrics"],
    &["daemon", "doctor", "offline"],
];

/// The layers of the files of `pipeline`; its `mod.rs` uses them all.
const STAGES: [&[&str]; 16] = [
    &["exit", "headers", "mode", "packet_mibs", "ratelimit", "route_ahead", "encap"],
    &["nf_hook", "original", "secpath", "xfrm_ahead", "csum_partial", "dst", "vlan", "ip_input"],
    &["post_routing", "route_hint", "inet_addr", "eth_input", "way"],
    &["hold_queue", "frag_queue", "burst_routes", "ip_options", "flow_cache", "offload"],
    &["ctx"],
    &["nf_ingress", "xfrm"],
    &["ip_rcv_options", "ip6_input", "neigh_hold"],
    &["ip_error", "neigh_output", "offer"],
    &["route", "ip_output"],
    &["route6", "ip_fragment"],
    &["ip_forward", "ip6_forward", "xfrm_input", "xfrm_output"],
    &["local_out", "xfrmi_xmit"],
    &["icmp_send", "icmp6_send", "xfrm_withhold"],
    &["ip6_output", "neigh_poll", "nf_flow_table", "xfrm_policy"],
    &["burst"],
    &["traced", "ip_defrag"],
];

/// Files of the items that `pipeline` re-exports.
const EXPORTED: [(&str, &str); 4] =
    [("Ctx", "ctx"), ("Effects", "ctx"), ("Exit", "exit"), ("IcmpError", "exit")];

fn layer(layers: &[&[&str]], module: &str) -> Option<usize> {
    layers.iter().position(|modules| modules.contains(&module))
}

/// The module that a file in a directory belongs to: the first directory or the file's name.
fn module_of(relative: &Path) -> String {
    let first = relative.iter().next().unwrap_or_default().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Source without comments and without `mod tests { … }`; the contents of strings are kept.
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

/// The text after `crate::`, each path of a list in braces separately: `crate::{fib::Route, wire}`.
///
/// `super` counts as `crate` in a file directly below `src`, and one level deeper in a `mod.rs`;
/// deeper files reach other modules by `super::super::…`, which is resolved by depth.
fn used(code: &str, supers_to_root: usize) -> Vec<&str> {
    let root_by_super = "super::".repeat(supers_to_root);
    let mut roots = vec!["crate::"];
    if supers_to_root > 0 {
        roots.push(&root_by_super);
    }
    let mut found = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            // Part of a longer word, or of a longer chain of supers.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            found.extend(paths(&code[at + root.len()..]));
        }
    }
    found
}

/// The first module of a path.
fn first(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The text from the start of a path, or from the start of each path of a list in braces.
fn paths(rest: &str) -> Vec<&str> {
    let Some(list) = rest.strip_prefix('{') else { return vec![rest] };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                paths.push(list[start..at].trim_start());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths.push(list[start..at].trim_start());
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// The crate's modules that are used.
fn modules_used(code: &str, depth: usize) -> Vec<String> {
    used(code, depth).into_iter().map(first).collect()
}

/// The modules of `control` that a file in it uses; `depth`: number of `super::` to the crate's root.
fn control_modules_used(code: &str, depth: usize) -> Vec<String> {
    let by_name = used(code, depth).into_iter().filter_map(|path| path.strip_prefix("control::"));
    let by_super = used(code, depth - 1).into_iter();
    // `super` names no module that is reached by `crate::`.
    let by_super = by_super.filter(|path| layer(&LAYERS, &first(path)).is_none());
    by_name.flat_map(paths).chain(by_super).map(first).collect()
}

/// The files of `pipeline` that a file in it uses; `depth`: number of `super::` to the crate's root.
fn stages_used(code: &str, depth: usize) -> Vec<String> {
    let of_item = |item: String| {
        let exported = EXPORTED.iter().find(|(name, _)| *name == item);
        exported.map_or(item, |(_, file)| (*file).to_owned())
    };
    used(code, depth - 1).into_iter().map(first).map(of_item).collect()
}

/// Number of `super::` from a file's module to the crate's root.
fn depth(relative: &Path) -> usize {
    let parts = relative.iter().count();
    if relative.ends_with("mod.rs") { parts - 1 } else { parts }
}

/// All violations in the files under `src`.
fn violations(src: &Path) -> Vec<String> {
    let mut wrong = violations_among(src, &LAYERS, 0, modules_used);
    wrong.extend(violations_among(&src.join("control"), &CONTROL_LAYERS, 1, control_modules_used));
    wrong.extend(violations_among(&src.join("pipeline"), &STAGES, 1, stages_used));
    wrong
}

/// Violations among the modules of one directory, which is `below` levels below `src`.
fn violations_among(
    directory: &Path,
    layers: &[&[&str]],
    below: usize,
    used: impl Fn(&str, usize) -> Vec<String>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in ferroute_tests::source::rust_files(directory) {
        let relative = path.strip_prefix(directory).expect("files of a directory are below it");
        let module = module_of(relative);
        // A test-only file belongs to `#[cfg(test)] mod tests;`, as do the files of a test directory.
        if relative.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let Some(own) = layer(layers, &module) else {
            if !["lib", "main", "mod"].contains(&module.as_str()) {
                wrong.push(format!("{}: `{module}` is in no layer", relative.display()));
            }
            continue;
        };
        let text = fs::read_to_string(&path).expect("source is readable");
        for used in used(&code(&text), depth(relative) + below) {
            let allowed = used == module || layer(layers, &used).is_none_or(|other| other < own);
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
fn modules_use_only_modules_to_their_left() {
    let src = repository().join("forwarder/src");
    let files = ferroute_tests::source::rust_files(&src);
    assert!(files.len() > 10, "the source was not found: {}", src.display());
    let wrong = violations(&src);
    assert!(wrong.is_empty(), "layers are violated:\n{}", wrong.join("\n"));
}

#[test]
fn a_violation_is_found() {
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
    write("control/mod.rs", "pub mod netdev;\n");
    write("control/netdev/nic.rs", "use crate::control::{netlink::Socket, mirror::state::X};\n");
    write("control/netlink/mod.rs", "use crate::{wire, control::process::Log};\n");
    write("control/firewall/mod.rs", "use super::config::{A, B};\nuse super::netlink;\n");
    write("control/api/page.rs", "fn f() -> super::super::daemon::Daemon {}\nuse super::show;\n");
    write("control/attic/mod.rs", "");
    write("pipeline/ctx.rs", "use super::route::Dst;\nuse super::headers::Iphdr;\n");
    write("pipeline/exit.rs", "use super::{Ctx, ratelimit};\n");
    assert_eq!(
        violations(dir.path()),
        [
            "fib/lpm/node.rs: `fib` uses `control`",
            "neigh/mod.rs: `neigh` uses `fib`",
            "other/mod.rs: `other` is in no layer",
            "skb/mod.rs: `skb` uses `cli`",
            "wire/mod.rs: `wire` uses `skb`",
            "api/page.rs: `api` uses `daemon`",
            "attic/mod.rs: `attic` is in no layer",
            "firewall/mod.rs: `firewall` uses `config`",
            "netdev/nic.rs: `netdev` uses `mirror`",
            "netlink/mod.rs: `netlink` uses `process`",
            "ctx.rs: `ctx` uses `route`",
            "exit.rs: `exit` uses `ctx`",
            "exit.rs: `exit` uses `ratelimit`",
        ]
    );
}
