//! docs/SETTINGS.md classifies every setting of the running kernel.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use ferroute_tests::lab::repository;

/// What may be said of a setting.
const CLASSES: [&str; 4] = ["followed", "kernel", "host", "differs"];

/// The settings that the page names for a family, with what it says of them.
fn named(page: &str, family: &str) -> Vec<(String, String)> {
    let begin = format!("| setting in `net.{family}` |");
    let table = page.lines().skip_while(|line| !line.starts_with(&begin)).skip(2);
    let mut named = Vec::new();
    for row in table.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, settings, class, ..] = cells[..] else { panic!("{row}") };
        for setting in settings.split(", ") {
            let setting = setting.strip_prefix('`').and_then(|it| it.strip_suffix('`'));
            let setting = setting.unwrap_or_else(|| panic!("not in backticks: {row}"));
            named.push((setting.to_owned(), class.to_owned()));
        }
    }
    assert!(named.len() > 20, "no table of {family}");
    named
}

/// All settings below a directory, with dots for slashes and `IF` for an interface.
fn settings(dir: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("settings are readable") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let is_dir = entry.file_type().expect("a type").is_dir();
        let is_of_interfaces = matches!(prefix, "conf." | "neigh.");
        match (is_dir, is_of_interfaces) {
            // That of new interfaces has all of others, and more.
            (true, true) if name == "default" => {
                settings(&entry.path(), &format!("{prefix}IF."), found);
            }
            (true, true) => {}
            (true, false) => settings(&entry.path(), &format!("{prefix}{name}."), found),
            (false, _) => found.push(format!("{prefix}{name}")),
        }
    }
}

/// Whether a name matches a pattern, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => {
            let Some(left) = name.strip_prefix(start) else { return false };
            (0..=left.len()).any(|at| left.is_char_boundary(at) && matches(rest, &left[at..]))
        }
    }
}

#[test]
fn every_setting_of_this_kernel_is_classified() {
    let page = fs::read_to_string(repository().join("docs/SETTINGS.md")).expect("the page");
    let mut findings = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let named = named(&page, family);
        for (setting, class) in &named {
            if !CLASSES.contains(&class.as_str()) {
                findings.push(format!("net.{family}.{setting}: {class:?} is no class"));
            }
        }
        let mut found = Vec::new();
        settings(&Path::new("/proc/sys/net").join(family), "", &mut found);
        assert!(found.len() > 100, "{family}: {}", found.len());
        for setting in found {
            let of_default = setting.replace("neigh.IF.gc_", "neigh.default.gc_");
            let is_named =
                |pattern: &str| matches(pattern, &setting) || matches(pattern, &of_default);
            if !named.iter().any(|(pattern, _)| is_named(pattern)) {
                findings.push(format!("net.{family}.{setting} is not classified"));
            }
        }
    }
    assert!(findings.is_empty(), "docs/SETTINGS.md:\n{}", findings.join("\n"));
}

#[test]
fn patterns_match_whole_names() {
    assert!(matches("tcp_*", "tcp_mem") && matches("conf.IF.*dad*", "conf.IF.accept_dad"));
    assert!(!matches("tcp_*", "udp_mem") && !matches("tcp_mem", "tcp_mem2"));
    assert!(matches("neigh.IF.retrans_time*", "neigh.IF.retrans_time"));
}
