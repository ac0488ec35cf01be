//! The daemon's messages on standard error, written by a separate thread: a terminal or pipe that
//! nobody reads blocks only that thread.
//!
//! Messages wait in a bounded queue. If it is full they are dropped and counted, and the next line
//! that is written reports how many. Before [`Log::start`] and after the log is closed, messages
//! are dropped. Left out: levels, time stamps and files, which a service manager provides.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::privilege;
use super::terminal::printable;

/// Maximum number of waiting messages. Far more than a daemon writes at once: for many interface
/// events while the terminal is slow.
const WAITING_MAX: usize = 1024;
/// How long the end of the process waits for remaining messages.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// An entry in the thread's queue.
enum Entry {
    Line(String),
    /// Acknowledged when everything before it was written.
    Flush(Sender<()>),
}

/// The sending end of the queue.
static QUEUE: RwLock<Option<Sender<Entry>>> = RwLock::new(None);
/// Messages dropped since the last one was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Queues a message; does not block. See [`say!`](crate::say).
pub fn say(message: fmt::Arguments<'_>) {
    // The lock is taken for writing only at the start and the end of the daemon.
    let Ok(queue) = QUEUE.try_read() else { return };
    let Some(queue) = &*queue else { return };
    let line = format!("ferroute: {message}\n");
    if queue.try_send(Entry::Line(printable(&line).into_owned())).is_err() {
        LOST.fetch_add(1, Relaxed);
    }
}

/// Writes a line to standard error through the daemon's log.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::control::process::log::say(format_args!($($arg)*)) };
}

/// The log, while it is open. When closed, it waits briefly for remaining messages.
#[derive(Debug)]
pub struct Log {
    queue: Sender<Entry>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Line(line) => line.fmt(f),
            Entry::Flush(_) => f.write_str("Flush"),
        }
    }
}

impl Log {
    /// Starts the thread that writes to standard error, and redirects panic messages to it.
    ///
    /// # Errors
    /// If no descriptor or thread is available.
    pub fn start() -> io::Result<Log> {
        // Not through std's Stderr, whose lock a blocked writer holds.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let log = Log::start_to(stderr)?;
        std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
            let thread = thread::current();
            say(format_args!("thread {} {info}", thread.name().unwrap_or("?")));
        }));
        Ok(log)
    }

    fn start_to(out: impl Write + Send + 'static) -> io::Result<Log> {
        let (queue, entries) = bounded(WAITING_MAX);
        thread::Builder::new().name("fr-log".into()).spawn(move || {
            privilege::drop_all();
            write_all(entries, out);
        })?;
        if let Ok(mut place) = QUEUE.write() {
            *place = Some(queue.clone());
        }
        Ok(Log { queue })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A panicking thread must not call `take_hook`.
        if !thread::panicking() {
            let _ = std::panic::take_hook();
        }
        if let Ok(mut place) = QUEUE.write() {
            *place = None;
        }
        let (written, all) = bounded(1);
        if self.queue.send_timeout(Entry::Flush(written), FLUSH_TIMEOUT).is_ok() {
            let _ = all.recv_timeout(FLUSH_TIMEOUT);
        }
        // A thread that is blocked in write(2) ends with the process.
    }
}

fn write_all(entries: Receiver<Entry>, mut out: impl Write) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                let lost = LOST.swap(0, Relaxed);
                let note = match lost {
                    0 => String::new(),
                    _ => format!(
                        "ferroute: {lost} messages were lost: standard error was not read\n"
                    ),
                };
                // One write, so that lines of other processes are not interleaved.
                if out.write_all(format!("{note}{line}").as_bytes()).is_err() {
                    // For example a full disk, which may have space later.
                    LOST.fetch_add(lost + 1, Relaxed);
                }
            }
            Entry::Flush(written) => drop(written.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_stopped_reader_loses_messages_which_are_counted_and_blocks_nobody() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let log = Log::start_to(writer).expect("starts");
        let begun = Instant::now();
        let long = "x".repeat(1000);
        for n in 0..10_000 {
            say(format_args!("{n} {long}"));
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "a message waited");
        let (output, text) = bounded(1);
        thread::spawn(move || {
            let mut text = String::new();
            let _ = reader.read_to_string(&mut text);
            let _ = output.send(text);
        });
        // Waits for space in the queue.
        while QUEUE.read().expect("not poisoned").as_ref().is_some_and(|queue| !queue.is_empty()) {
            thread::sleep(Duration::from_millis(1));
        }
        say(format_args!("the last"));
        drop(log);
        let text = text.recv_timeout(Duration::from_secs(60)).expect("the pipe was closed");
        // The thread's start is not synchronised with the messages: each note counts some of the
        // lost ones.
        let lost = text.lines().filter_map(|line| {
            let line = line.strip_prefix("ferroute: ")?;
            line.strip_suffix(" messages were lost: standard error was not read")?
                .parse::<u64>()
                .ok()
        });
        assert!(lost.sum::<u64>() > 5_000, "the queue is not bounded");
        assert!(text.ends_with("ferroute: the last\n"), "{}", &text[text.len() - 100..]);
    }
}
