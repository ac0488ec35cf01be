//! A message of the log, and how it is taken from an event of `tracing`.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// The field of which each value has a rate limit of its own.
const KIND: &str = "event";

/// A message.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was written.
    pub time: SystemTime,
    /// How severe it is.
    pub level: Level,
    /// The module that has written it.
    pub target: &'static str,
    /// Its source file and line.
    pub place: Option<(&'static str, u32)>,
    /// The text.
    pub message: String,
    /// Names and values for programs; the text has them, too.
    pub fields: Vec<(&'static str, String)>,
}

impl Record {
    /// A message of the log about itself.
    pub fn new(level: Level, message: String) -> Record {
        Record {
            time: SystemTime::now(),
            level,
            target: module_path!(),
            place: None,
            message,
            fields: Vec::new(),
        }
    }

    /// From an event of `tracing`.
    pub fn of(event: &Event<'_>) -> Record {
        let metadata = event.metadata();
        let mut record = Record::new(*metadata.level(), String::new());
        record.target = metadata.target();
        record.place = metadata.file().zip(metadata.line());
        event.record(&mut record);
        record
    }

    /// Distinguishes messages of one place in the program.
    pub fn kind(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.fields.iter().filter(|(name, _)| *name == KIND).for_each(|it| it.hash(&mut hasher));
        hasher.finish()
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.fields.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String does not fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }
}
