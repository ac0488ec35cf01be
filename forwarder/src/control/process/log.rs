//! The daemon's messages on standard error, written by a thread of their own: a terminal or pipe
//! that nobody reads holds that thread and no other.
//!
//! Messages wait in a bounded queue; what finds it full is dropped and counted, and the next line
//! that is written says how many were. Until [`Log::start`], and after the end of it, messages are
//! dropped. Left out: levels, time stamps and files; a service manager adds the one and keeps the
//! other.

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

/// Messages that may wait. Far more than a daemon says at once: for a burst of interfaces that come
/// and go while the terminal is slow.
const WAITING_MAX: usize = 1024;
/// How long the end of the process waits for what is still to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What goes to the thread.
enum Entry {
    Line(String),
    /// To be answered when everything before it was written.
    Flush(Sender<()>),
}

/// The queue's end that everybody has.
static QUEUE: RwLock<Option<Sender<Entry>>> = RwLock::new(None);
/// Messages dropped since one was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Puts a message on its way; never waits. See [`say!`](crate::say).
pub fn say(message: fmt::Arguments<'_>) {
    // The lock is written to at the start and at the end of the daemon only.
    let Ok(queue) = QUEUE.try_read() else { return };
    let Some(queue) = &*queue else { return };
    let line = format!("ferroute: {message}\n");
    if queue.try_send(Entry::Line(printable(&line).into_owned())).is_err() {
        LOST.fetch_add(1, Relaxed);
    }
}

/// A line on standard error, by way of the daemon's log.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::control::process::log::say(format_args!($($arg)*)) };
}

/// The log, while it is open. At its end it waits a moment for what is still to be written.
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
    /// Starts the thread that writes to standard error, and has panics written by it, too.
    ///
    /// # Errors
    /// When there is no descriptor or no thread to be had.
    pub fn start() -> io::Result<Log> {
        // Not by way of std's Stderr, whose lock a stuck writer holds.
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
        // Which a thread that panics must not do.
        if !thread::panicking() {
            let _ = std::panic::take_hook();
        }
        if let Ok(mut place) = QUEUE.write() {
            *place = None;
        }
        let (written, all) = bounded(1);
        if self.queue.send_timeout(Entry::Flush(written), LAST_WORDS).is_ok() {
            let _ = all.recv_timeout(LAST_WORDS);
        }
        // A thread that is stuck in write(2) ends with the process.
    }
}

fn write_all(entries: Receiver<Entry>, mut out: impl Write) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                let lost = LOST.swap(0, Relaxed);
                let note = match lost {
                    0 => String::new(),
                    _ => format!("ferroute: {lost} messages were lost: nobody read them\n"),
                };
                // One write, so that lines of other processes do not get between.
                if out.write_all(format!("{note}{line}").as_bytes()).is_err() {
                    // No room on a disk, say: it may be there later.
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
    fn a_reader_that_stops_costs_messages_and_no_time_and_is_told_how_many() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let log = Log::start_to(writer).expect("starts");
        let begun = Instant::now();
        let long = "x".repeat(1000);
        for n in 0..10_000 {
            say(format_args!("{n} {long}"));
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "a message waited");
        let (told, text) = bounded(1);
        thread::spawn(move || {
            let mut text = String::new();
            let _ = reader.read_to_string(&mut text);
            let _ = told.send(text);
        });
        // Room again.
        while QUEUE.read().expect("not poisoned").as_ref().is_some_and(|queue| !queue.is_empty()) {
            thread::sleep(Duration::from_millis(1));
        }
        say(format_args!("the last"));
        drop(log);
        let text = text.recv_timeout(Duration::from_secs(60)).expect("the pipe was closed");
        // The thread may have begun at whatever time: each line that it writes tells of some.
        let lost = text.lines().filter_map(|line| {
            let line = line.strip_prefix("ferroute: ")?;
            line.strip_suffix(" messages were lost: nobody read them")?.parse::<u64>().ok()
        });
        assert!(lost.sum::<u64>() > 5_000, "the queue is not bounded");
        assert!(text.ends_with("ferroute: the last\n"), "{}", &text[text.len() - 100..]);
    }
}
