//! The documents: each link between them, and from them to files, leads somewhere, and the book has every page. What mdBook
//! makes of them is checked by `scripts/book`. The configurations of routing daemons are those of the lab, which runs with
//! them.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use ferroute_tests::lab::repository;

/// The table of contents of the book.
const CONTENTS: &str = "docs/SUMMARY.md";

/// The documents at the top and in `docs/`, by their paths from the top.
fn documents(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut documents = BTreeMap::new();
    for directory in [top.to_owned(), top.join("docs")] {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).expect("a document");
                documents.insert(path.strip_prefix(top).expect("below the top").to_owned(), text);
            }
        }
    }
    documents
}

/// The lines outside of blocks of code.
fn prose(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let outside = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    };
    text.lines().filter(outside).collect()
}

/// Targets of links and images.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text).join("\n");
    let mut found = Vec::new();
    for paragraph in prose.split("\n\n") {
        // Code in backquotes is every second piece.
        let text: String = paragraph.split('`').step_by(2).collect();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        found.extend(targets.map(|target| target.trim().to_owned()));
    }
    found
}

/// The anchor that GitHub and mdBook make of a heading.
fn anchor(heading: &str) -> String {
    // The text of links without their targets.
    let text: String = heading
        .split("](")
        .enumerate()
        .map(|(at, piece)| match at {
            0 => piece,
            _ => piece.split_once(')').map_or(piece, |(_, rest)| rest),
        })
        .collect();
    let kept = text.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

/// All anchors of a document; equal headings are numbered.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for line in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let anchor = anchor(heading);
        let before = times.entry(anchor.clone()).or_default();
        anchors.insert(if *before == 0 { anchor } else { format!("{anchor}-{before}") });
        *before += 1;
    }
    anchors
}

/// A path without `..`: where a link leads.
fn resolved(document: &Path, target: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in document.parent().unwrap_or(Path::new("")).join(target).components() {
        match part {
            Component::ParentDir if path.pop() => {}
            part => path.push(part),
        }
    }
    path
}

/// The links of all documents that lead nowhere.
fn broken(top: &Path, documents: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut broken = Vec::new();
    for (document, text) in documents {
        for link in links(text) {
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            if target.contains("://") {
                continue;
            }
            let path = match target {
                "" => document.clone(),
                target => resolved(document, target),
            };
            let is_there = top.join(&path).exists();
            let has_anchor = anchor.is_empty()
                || documents.get(&path).is_none_or(|text| anchors(text).contains(anchor));
            if !is_there || !has_anchor {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    broken
}

#[test]
fn links_lead_somewhere() {
    let top = repository();
    let documents = documents(&top);
    let count: usize = documents.values().map(|text| links(text).len()).sum();
    assert!(documents.len() > 20 && count > 200, "{} documents, {count} links", documents.len());
    let broken = broken(&top, &documents);
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_book_has_every_page_once() {
    let documents = documents(&repository());
    let contents = Path::new(CONTENTS);
    let mut listed: Vec<PathBuf> =
        links(&documents[contents]).iter().map(|link| resolved(contents, link)).collect();
    listed.sort();
    let pages: Vec<PathBuf> =
        documents.into_keys().filter(|path| path.starts_with("docs") && path != contents).collect();
    assert_eq!(listed, pages, "{CONTENTS} on the left, the pages in docs/ on the right");
}

/// The block of code below a heading of a document.
fn code_below<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, below) = text.split_once(&format!("\n{heading}\n")).expect("the heading");
    let (_, code) = below.split_once("\n```\n").expect("a block of code");
    code.split_once("```\n").expect("its end").0
}

#[test]
fn the_configurations_of_routing_daemons_are_those_of_the_lab() {
    let top = repository();
    let text = fs::read_to_string(top.join("docs/SCALE.md")).expect("a document");
    for (heading, node, daemon, first) in [
        ("### FRR, router", "r1", "frr", "! /etc/frr/zebra.conf\n"),
        ("### FRR, leaf", "leaf1", "frr", "! /etc/frr/zebra.conf\n"),
        ("### BIRD, router", "r1", "bird", "# /etc/bird/drain.conf\n"),
        ("### BIRD, leaf", "leaf1", "bird", "# /etc/bird/bird.conf\n"),
    ] {
        let mut lab = Command::new(top.join("scripts/lab"));
        let output =
            lab.args(["config", node, "--daemon", daemon]).output().expect("scripts/lab runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).expect("text");
        assert!(printed.starts_with(first), "{printed}");
        let code = code_below(&text, heading);
        assert_eq!(code, printed, "{heading}: scripts/lab config {node} --daemon {daemon}");
    }
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let page = "# A `b`: c?\n\n[a](#a-b-c) [b](P.md#a-b-c) ![c](../LICENSE-MIT) [d](https://example.net)\n\
                [e](#b) [f](Q.md) [g](P.md#d) [`h`](../docs/NONE.md) `[i](j)`\n\n```\n[k](l)\n# d\n```\n";
    let documents = BTreeMap::from([(PathBuf::from("docs/P.md"), page.to_owned())]);
    let expected = ["#b", "Q.md", "P.md#d", "../docs/NONE.md"];
    let expected: Vec<String> = expected.iter().map(|link| format!("docs/P.md: {link}")).collect();
    let top = tempfile::tempdir().expect("a directory");
    fs::create_dir(top.path().join("docs")).expect("a directory");
    for file in ["docs/P.md", "LICENSE-MIT"] {
        fs::write(top.path().join(file), page).expect("a file");
    }
    assert_eq!(broken(top.path(), &documents), expected);
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# One\n## Why not …\n## `ferroute rules show`\n## A [link](to#x), here\n## One\n#!/bin/sh\n";
    let anchors: Vec<String> = anchors(text).into_iter().collect();
    assert_eq!(anchors, ["a-link-here", "ferroute-rules-show", "one", "one-1", "why-not-"]);
}
