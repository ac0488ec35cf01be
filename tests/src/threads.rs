//! The threads of a running process, as procfs(5) shows them.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use nix::libc;
use nix::unistd::Pid;

/// One thread, and the contents of one of its files.
#[derive(Debug)]
pub struct Thread {
    pub tid: Pid,
    /// At most 15 octets. The first thread has the program's name.
    pub name: String,
    pub text: String,
}

/// Reads a file of each thread's directory, such as `status`.
///
/// A thread that ends meanwhile, such as a client's, is left out.
///
/// # Errors
/// When there is no such process, or no such file.
pub fn read_each(pid: u32, file: &str) -> Result<Vec<Thread>> {
    let tasks = format!("/proc/{pid}/task");
    let mut threads = Vec::new();
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let task = task.with_context(|| format!("reading {tasks}"))?;
        let tid = task.file_name().to_string_lossy().parse().context("a thread has no number")?;
        let read = |file: &str| {
            let path = task.path().join(file);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if has_ended(&error) && !task.path().exists() => Ok(None),
                Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
            }
        };
        let (Some(name), Some(text)) = (read("comm")?, read(file)?) else { continue };
        threads.push(Thread { tid: Pid::from_raw(tid), name: name.trim_end().to_owned(), text });
    }
    Ok(threads)
}

/// An ended thread's files are gone; if a file is already open, read(2) fails with ESRCH.
fn has_ended(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The thread with that name.
///
/// # Errors
/// When there is none.
pub fn find(pid: u32, name: &str) -> Result<Pid> {
    let mut threads = read_each(pid, "comm")?.into_iter();
    let thread = threads.find(|thread| thread.name == name);
    Ok(thread.with_context(|| format!("process {pid} has no thread {name}"))?.tid)
}
