//! Common parts of tests against the running kernel: a network namespace for each.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Fails a test that was not started as root.
pub fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "needs root: run scripts/test");
}

/// Runs `test` in a thread with a network namespace of its own, which ends with the thread.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    need_root();
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs shell commands; all of them must succeed.
pub fn run(command: &str) {
    let out = Command::new("sh").args(["-ec", command]).output().expect("sh");
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}
