//! Network namespaces of tests that need root.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread in a new network namespace, which is removed with the thread.
pub fn in_netns(test: impl FnOnce() + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command, which must succeed; returns its output.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh starts");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Has nft load a ruleset.
pub fn nft(ruleset: &str) {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft starts");
    child.stdin.take().expect("piped").write_all(ruleset.as_bytes()).expect("written");
    assert!(child.wait().expect("nft ends").success(), "nft refused a ruleset");
}
