//! Takes the events of `tracing`: by level, at a limited rate, and without blocking.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

use super::record::Record;
use super::{LogLevel, queue};

/// Messages of one kind within [`WINDOW`].
const BURST: u32 = 200;
const WINDOW: Duration = Duration::from_secs(5);
/// Modules of this crate; libraries are not heard.
const CRATE: &str = "ferroute";

/// [`LogLevel`] as a number.
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Which messages are written from now on.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Relaxed);
}

fn is_wanted(level: Level) -> bool {
    LogLevel::from(level) as u8 <= LEVEL.load(Relaxed)
}

/// The collector of the process.
#[derive(Debug, Default)]
pub struct Collector {
    limits: Mutex<HashMap<(Identifier, u64), Limit>>,
}

impl Subscriber for Collector {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_wanted(*metadata.level()) && metadata.target().starts_with(CRATE)
    }

    fn event(&self, event: &Event<'_>) {
        let mut record = Record::of(event);
        // Never waits: while another thread counts, the message is written.
        if let Ok(mut limits) = self.limits.try_lock() {
            let limit = limits.entry((event.metadata().callsite(), record.kind())).or_default();
            match limit.take(Instant::now()) {
                None => return,
                Some(0) => {}
                Some(suppressed) => {
                    record.message +=
                        &format!(" (and {suppressed} like this one before, not shown)");
                    record.fields.push(("suppressed", suppressed.to_string()));
                }
            }
        }
        queue(record);
    }

    // Spans are not used.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &SpanRecord<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// How many messages of a kind there were.
#[derive(Debug, Default)]
struct Limit {
    begun: Option<Instant>,
    count: u32,
    suppressed: u64,
}

impl Limit {
    /// Whether a message is written, and how many were not before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW) {
            self.begun = Some(now);
            self.count = 0;
        }
        self.count += 1;
        if self.count > BURST {
            self.suppressed += 1;
            return None;
        }
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_written_and_what_follows_counted() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        assert!((0..BURST).all(|_| limit.take(now) == Some(0)));
        assert!((0..7).all(|_| limit.take(now).is_none()));
        assert_eq!(limit.take(now + WINDOW), Some(7));
        assert_eq!(limit.take(now + WINDOW), Some(0));
    }
}
