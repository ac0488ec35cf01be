//! Where messages are written, and how: as text, as JSON, or by the journal's protocol.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::record::Record;
use super::{LogFormat, LogLevel};
use crate::control::process::terminal::printable;

/// The device and inode of the journal's stream, if standard error is one (systemd.exec(5)).
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Where messages go.
pub enum Sink {
    /// A line each.
    Text(Box<dyn Write + Send>),
    /// A JSON object on a line each.
    Json(Box<dyn Write + Send>),
    /// Entries with fields (systemd's Native Journal Protocol); the other end of standard error if the journal does not
    /// take one.
    Journal(UnixDatagram, File),
}

impl Sink {
    /// For standard error.
    ///
    /// # Errors
    /// If no descriptor is available.
    pub fn open(format: LogFormat) -> io::Result<Sink> {
        // Not through std's Stderr, whose lock a blocked writer holds.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let is_journal = || {
            let stream = env::var(JOURNAL_STREAM).ok();
            stream.is_some_and(|stream| is_stream(&stderr, &stream))
        };
        Ok(match format {
            LogFormat::Json => Sink::Json(Box::new(stderr)),
            LogFormat::Text => Sink::Text(Box::new(stderr)),
            LogFormat::Auto if is_journal() => match journal(JOURNAL_SOCKET) {
                Ok(socket) => Sink::Journal(socket, stderr),
                Err(_) => Sink::Text(Box::new(stderr)),
            },
            LogFormat::Auto => Sink::Text(Box::new(stderr)),
        })
    }

    /// Writes a message, in one write, so that lines of other processes are not interleaved. May block.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        match self {
            Sink::Text(out) => out.write_all(&text(record)),
            Sink::Json(out) => out.write_all(format!("{}\n", to_json(record)).as_bytes()),
            Sink::Journal(socket, stderr) => {
                let entry = entry(record);
                // It was restarted, or does not take entries of this length.
                let sent = socket.send(&entry).or_else(|_| {
                    *socket = journal(JOURNAL_SOCKET)?;
                    socket.send(&entry)
                });
                match sent {
                    Ok(_) => Ok(()),
                    Err(_) => stderr.write_all(&text(record)),
                }
            }
        }
    }
}

fn journal(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Whether a file is the journal's stream `DEVICE:INODE`.
fn is_stream(file: &File, stream: &str) -> bool {
    file.metadata().is_ok_and(|meta| stream == format!("{}:{}", meta.st_dev(), meta.st_ino()))
}

fn text(record: &Record) -> Vec<u8> {
    printable(&format!("ferroute: {}\n", record.message)).into_owned().into_bytes()
}

fn to_json(record: &Record) -> Value {
    let time = Timestamp::try_from(record.time).map(|time| time.to_string()).unwrap_or_default();
    let fields: Map<String, Value> =
        record.fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "time": time,
        "level": LogLevel::from(record.level),
        "target": record.target,
        "message": record.message,
        "fields": fields,
    })
}

/// An entry of the journal: names in upper case, own ones with the prefix FERROUTE_.
fn entry(record: &Record) -> Vec<u8> {
    // Those of syslog(3).
    let priority = match LogLevel::from(record.level) {
        LogLevel::Error => "3",
        LogLevel::Warn => "4",
        LogLevel::Info => "6",
        LogLevel::Debug => "7",
    };
    let mut entry = Vec::new();
    let mut add = |name: &str, value: &str| {
        entry.extend(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend((value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend(value.as_bytes());
        entry.push(b'\n');
    };
    add("PRIORITY", priority);
    add("SYSLOG_IDENTIFIER", "ferroute");
    add("MESSAGE", &record.message);
    add("FERROUTE_TARGET", record.target);
    if let Some((file, line)) = record.place {
        add("CODE_FILE", file);
        add("CODE_LINE", &line.to_string());
    }
    for (name, value) in &record.fields {
        add(&format!("FERROUTE_{}", name.to_uppercase()), value);
    }
    entry
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn record() -> Record {
        let mut record = Record::new(Level::WARN, "two\nlines".to_owned());
        record.fields.push(("interface", "eth0".to_owned()));
        record
    }

    #[test]
    fn an_entry_of_the_journal_has_priority_and_fields() {
        let entry = entry(&record());
        let has = |part: &[u8]| entry.windows(part.len()).any(|window| window == part);
        assert!(entry.starts_with(b"PRIORITY=4\n"));
        assert!(has(b"\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n"));
        assert!(has(b"\nFERROUTE_INTERFACE=eth0\n"));
    }

    #[test]
    fn a_json_line_has_all_parts() {
        let value = to_json(&record());
        assert_eq!((&value["level"], &value["message"]), (&json!("warn"), &json!("two\nlines")));
        assert_eq!(value["fields"]["interface"], "eth0");
        assert!(value["time"].as_str().expect("text").parse::<Timestamp>().is_ok());
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = File::open("/").expect("opens");
        let meta = file.metadata().expect("metadata");
        assert!(is_stream(&file, &format!("{}:{}", meta.st_dev(), meta.st_ino())));
        assert!(!is_stream(&file, &format!("{}:{}", meta.st_dev(), meta.st_ino() + 1)));
        assert!(!is_stream(&file, ""));
    }
}
