//! The systemd units: valid, and as confined as they are documented to be. `systemd-analyze` checks the files; no
//! unit is started.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ferroute_tests::lab::repository;

/// The files, and the names under which they are checked: a template needs an instance.
const UNITS: [(&str, &str); 2] =
    [("ferroute.service", "ferroute.service"), ("ferroute@.service", "ferroute@lan.service")];
/// In tenths, as `--threshold` has it: 2.0 of 10.
const EXPOSURE_MAX: &str = "20";

fn unit(file: &str) -> String {
    fs::read_to_string(repository().join("scripts").join(file)).expect("a unit")
}

/// Success, and all that was printed.
fn analyze(args: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(args).output();
    let output = output.expect("systemd-analyze runs: scripts/setup installs it");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A copy under the name that is to be checked, with a program that exists.
fn copy(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    let text = text.replace("=/usr/bin/ferroute ", "=/bin/true ");
    for key in ["ExecStart", "ExecReload"] {
        assert!(text.contains(&format!("\n{key}=/bin/true ")), "{text}");
    }
    fs::write(&path, text).expect("writes");
    path
}

#[test]
fn units_are_valid() {
    for (file, name) in UNITS {
        let dir = tempfile::tempdir().expect("a directory");
        let verify = |text: &str| {
            let path = copy(&dir, name, text);
            analyze(&["verify", "--man=no", path.to_str().expect("a path")])
        };
        let (is_valid, said) = verify(&unit(file));
        // What it does not know it ignores, with a message.
        assert!(is_valid && said.trim().is_empty(), "{file}: {said}");
        let (_, said) = verify(&unit(file).replace("WatchdogSec=", "WatchdogTime="));
        assert!(said.contains("WatchdogTime"), "an unknown key is not found: {said}");
    }
}

#[test]
fn units_are_confined() {
    for (file, name) in UNITS {
        let dir = tempfile::tempdir().expect("a directory");
        let security = |text: &str| {
            let path = copy(&dir, name, text);
            let path = path.to_str().expect("a path");
            let threshold = format!("--threshold={EXPOSURE_MAX}");
            analyze(&["security", "--offline=yes", "--no-pager", &threshold, path])
        };
        let (is_confined, said) = security(&unit(file));
        assert!(is_confined, "{file}: {said}");
        let (is_confined, _) = security(&unit(file).replace("ProtectHome=yes\n", ""));
        assert!(!is_confined, "{file}: what is missing is not found");
    }
}

#[test]
fn both_units_differ_in_names_only() {
    let body = |file: &str| {
        let text = unit(file);
        text[text.find("[Unit]").expect("a section")..].to_owned()
    };
    let one = body("ferroute.service");
    let each = body("ferroute@.service")
        .replace(" (%i)", "")
        .replace("/etc/ferroute/%i.toml", "/etc/ferroute/ferroute.toml")
        .replace("ferroute-%i", "ferroute");
    assert_eq!(one, each);
}
