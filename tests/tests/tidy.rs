//! Style rules that no other tool checks: heads, lengths, blanks, and where `unsafe` is allowed.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use ferroute_tests::lab::repository;
use ferroute_tests::source::{files, rust_files};

/// A file should be readable in one sitting; the aim is about 600 lines.
const LINES_MAX: usize = 700;
/// Where `unsafe` may stand: memory shared with the kernel, and the rings; in the XDP program
/// everything is the kernel's memory. The driver on xsk-rs and the reflector on it drive the rings of a
/// crate all of whose calls are unsafe.
const UNSAFE: [&str; 6] = [
    "forwarder/examples/reflector_xsk.rs",
    "forwarder/src/skb/umem.rs",
    "forwarder/src/skb/frame.rs",
    "forwarder/src/io/af_xdp/",
    "forwarder/src/io/xsk_rs/",
    "xdp-prog/",
];
/// A counting allocator cannot be written without it; tests with that name may.
const UNSAFE_TESTS: &str = "forwarder/tests/allocation";

/// All findings, each with its file.
fn findings(top: &Path, of: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    let mut findings = Vec::new();
    for path in rust_files(top) {
        let relative = path.strip_prefix(top).expect("below the top").to_string_lossy();
        let text = fs::read_to_string(&path).expect("source is readable");
        findings.extend(of(&relative, &text).iter().map(|what| format!("{relative}: {what}")));
    }
    findings
}

fn none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

fn length(_: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LINES_MAX { vec![format!("{lines} lines, at most {LINES_MAX}")] } else { vec![] }
}

fn head(_: &str, text: &str) -> Vec<String> {
    if text.starts_with("//! ") { vec![] } else { vec!["has no module documentation".into()] }
}

fn unsafe_code(relative: &str, text: &str) -> Vec<String> {
    let allowed = UNSAFE.iter().any(|place| relative.starts_with(place))
        || relative.starts_with(UNSAFE_TESTS);
    if allowed {
        return vec![];
    }
    let is_word = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| word == "unsafe") && !line.contains('"')
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_word(line));
    lines.map(|(at, _)| format!("unsafe in line {}", at + 1)).collect()
}

/// Text for users is printed in the one place that removes control characters.
fn prints(relative: &str, text: &str) -> Vec<String> {
    if !relative.starts_with("forwarder/src/") {
        return vec![];
    }
    let is_print = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        ["print!(", "println!("].iter().any(|call| line.contains(call))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_print(line));
    lines.map(|(at, _)| format!("prints directly in line {}", at + 1)).collect()
}

fn blanks(text: &str) -> Vec<String> {
    let wrong = |line: &str| line.contains('\t') || line.ends_with([' ', '\r']);
    let lines = text.lines().enumerate().filter(|(_, line)| wrong(line));
    let mut findings: Vec<String> =
        lines.map(|(at, _)| format!("a tab or a blank at the end of line {}", at + 1)).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push("no newline at the end".into());
    }
    findings
}

#[test]
fn no_file_is_too_long() {
    none(&findings(&repository(), length));
}

#[test]
fn every_file_has_module_documentation() {
    none(&findings(&repository(), head));
}

#[test]
fn unsafe_is_only_used_where_allowed() {
    none(&findings(&repository(), unsafe_code));
}

#[test]
fn nothing_is_printed_without_removing_control_characters() {
    none(&findings(&repository(), prints));
}

#[test]
fn no_tabs_and_no_blanks_at_the_end_of_a_line() {
    let top = repository();
    let mut wrong = Vec::new();
    for path in files(&top) {
        let relative = path.strip_prefix(&top).expect("below the top").display().to_string();
        let name = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let ours = ["rs", "toml", "md", "json", "yml"].contains(&name.as_str())
            || relative.starts_with("scripts/")
            || relative.starts_with(".ci/");
        // Captured packets and the compiled program are not text.
        if let (true, Ok(text)) = (ours, fs::read_to_string(&path)) {
            wrong.extend(blanks(&text).iter().map(|what| format!("{relative}: {what}")));
        }
    }
    none(&wrong);
}

/// Names of files in backquotes that are not there: below the top, or below `forwarder/src/`.
fn missing_files(top: &Path, text: &str) -> Vec<String> {
    // Names in backquotes are every second piece.
    let quoted = text.split('`').skip(1).step_by(2);
    let named = quoted.filter(|name| name.contains('/') && !name.contains([' ', '*', '<', '#']));
    // Others are on the reader's machine, or made by a build.
    let is_ours = |name: &&str| !name.starts_with('/') && !name.starts_with("target/");
    let is_file = |name: &&str| name.ends_with(".rs") || name.ends_with('/');
    let is_there = |name: &str| [top.join(name), top.join("forwarder/src").join(name)];
    named
        .filter(is_ours)
        .filter(is_file)
        .filter(|name| !is_there(name).iter().any(|path| path.exists()))
        .map(|name| format!("`{name}` does not exist"))
        .collect()
}

#[test]
fn files_that_the_documents_name_exist() {
    let top = repository();
    let mut wrong = Vec::new();
    for path in files(&top) {
        let relative = path.strip_prefix(&top).expect("below the top").display().to_string();
        // CHANGELOG.md names files of earlier versions, too.
        if relative.ends_with(".md") && relative != "CHANGELOG.md" {
            let text = fs::read_to_string(&path).expect("a document");
            wrong.extend(
                missing_files(&top, &text).iter().map(|what| format!("{relative}: {what}")),
            );
        }
    }
    none(&wrong);
}

#[test]
fn each_check_finds_violations() {
    assert_eq!(length("", &"x\n".repeat(LINES_MAX + 1)).len(), 1);
    assert_eq!(head("", "use std::fs;\n").len(), 1);
    assert_eq!(unsafe_code("forwarder/src/fib/mod.rs", "    unsafe { x() }\n").len(), 1);
    assert_eq!(
        unsafe_code("forwarder/src/fib/mod.rs", "#![deny(unsafe_code)] // unsafe\n").len(),
        0
    );
    assert_eq!(unsafe_code("forwarder/src/skb/umem.rs", "unsafe { x() }\n").len(), 0);
    assert_eq!(prints("forwarder/src/cli/stat.rs", "    eprintln!(\"{name}\");\n").len(), 1);
    assert_eq!(prints("tests/src/lab.rs", "    eprintln!(\"{name}\");\n").len(), 0);
    let text = "`fib/mod.rs`, `fib/none.rs`, `docs/`, `nowhere/`, `run --driver a/b`, `/run/x/`, `target/x/`";
    let missing = ["`fib/none.rs` does not exist", "`nowhere/` does not exist"];
    assert_eq!(missing_files(&repository(), text), missing);
    assert_eq!(blanks("a\tb\nc \nd").len(), 3);
}
