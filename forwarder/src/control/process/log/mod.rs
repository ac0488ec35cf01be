//! The daemon's messages: `tracing` collects them ([`collect`]), and a separate thread writes them to standard error or the
//! journal ([`sink`]): a terminal or pipe that nobody reads, or a journal that hangs, blocks only that thread.
//!
//! Messages wait in a bounded queue. If it is full they are dropped and counted, and the next one
//! that is written reports how many. Before [`Log::start`] and after the log is closed, messages
//! are dropped. Left out: files and their rotation, which a service manager provides.

mod collect;
mod record;
mod sink;

use std::fmt;
use std::io;
use std::panic::PanicHookInfo;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use tracing::{Level, error};

use self::collect::Collector;
pub use self::collect::set_level;
use self::record::Record;
use self::sink::Sink;
use super::privilege;

/// Maximum number of waiting messages. Far more than a daemon writes at once: for many interface
/// events while the terminal is slow.
const WAITING_MAX: usize = 1024;
/// How long the end of the process waits for remaining messages.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Which messages are written: those of this severity, and more severe ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What prevents forwarding, and bugs.
    Error,
    /// What is left to the kernel, or is not as configured.
    Warn,
    /// Also what changes in normal operation.
    #[default]
    Info,
    /// Also each event of `ferroute monitor`.
    Debug,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            _ => LogLevel::Debug,
        }
    }
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// As entries with fields if standard error is the journal, as text otherwise.
    #[default]
    Auto,
    /// As lines of text.
    Text,
    /// As a JSON object on a line each.
    Json,
}

/// An entry in the thread's queue.
enum Entry {
    Record(Box<Record>),
    /// Acknowledged when everything before it was written.
    Flush(Sender<()>),
}

/// The sending end of the queue.
static QUEUE: RwLock<Option<Sender<Entry>>> = RwLock::new(None);
/// Messages dropped since the last one was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Queues a message; does not block.
fn queue(record: Record) {
    // The lock is taken for writing only at the start and the end of the daemon.
    let Ok(queue) = QUEUE.try_read() else { return };
    let Some(queue) = &*queue else { return };
    if queue.try_send(Entry::Record(Box::new(record))).is_err() {
        LOST.fetch_add(1, Relaxed);
    }
}

/// The log, while it is open. When closed, it waits briefly for remaining messages.
#[derive(Debug)]
pub struct Log {
    queue: Sender<Entry>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Record(record) => record.fmt(f),
            Entry::Flush(_) => f.write_str("Flush"),
        }
    }
}

impl Log {
    /// Starts the thread that writes to standard error, and redirects panic messages to it.
    ///
    /// # Errors
    /// If no descriptor or thread is available.
    pub fn start(level: LogLevel, format: LogFormat) -> io::Result<Log> {
        let log = Log::start_to(Sink::open(format)?)?;
        set_level(level);
        std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
            let thread = thread::current();
            error!("thread {} {info}", thread.name().unwrap_or("?"));
        }));
        Ok(log)
    }

    fn start_to(sink: Sink) -> io::Result<Log> {
        // Set once per process; a second log has the same one.
        let _ = tracing::subscriber::set_global_default(Collector::default());
        let (queue, entries) = bounded(WAITING_MAX);
        thread::Builder::new().name("fr-log".into()).spawn(move || {
            privilege::drop_all();
            write_all(entries, sink);
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

fn write_all(entries: Receiver<Entry>, mut sink: Sink) {
    for entry in entries {
        match entry {
            Entry::Record(record) => {
                let lost = LOST.swap(0, Relaxed);
                let note = || {
                    let text = format!("{lost} messages were lost: standard error was not read");
                    Record::new(Level::WARN, text)
                };
                let noted = if lost == 0 { Ok(()) } else { sink.write(&note()) };
                if noted.and_then(|()| sink.write(&record)).is_err() {
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
        let log = Log::start_to(Sink::Text(Box::new(writer))).expect("starts");
        let begun = Instant::now();
        let long = "x".repeat(1000);
        for n in 0..10_000 {
            queue(Record::new(Level::INFO, format!("{n} {long}")));
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
        queue(Record::new(Level::INFO, "the last".to_owned()));
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
