//! The interval log of HdrHistogram, with compressed histograms of version 2, as read by
//! `HistogramLogReader` and the log analysers.
//!
//! One line per interval: its start and length in seconds, its highest value and the histogram, both in
//! nanoseconds. Histograms of parts have a tag; that of the whole has none.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};

use super::{FileError, OutFile};

/// A log being written. The file has its name from the first interval on and then grows by whole lines,
/// so that it can be followed, and is valid whenever the writer ends.
pub struct IntervalLog {
    out: OutFile,
    serializer: V2DeflateSerializer,
}

impl std::fmt::Debug for IntervalLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntervalLog").field("out", &self.out).finish_non_exhaustive()
    }
}

impl IntervalLog {
    /// Begins a log; `-` is standard output. Times of intervals are counted from `start`.
    ///
    /// # Errors
    /// The path cannot be written.
    pub fn create(path: &Path, start: SystemTime) -> Result<IntervalLog, FileError> {
        IntervalLog::new(OutFile::create(path)?, start)
    }

    /// Begins a log in a file created before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(out: OutFile, start: SystemTime) -> Result<IntervalLog, FileError> {
        let mut log = IntervalLog { out, serializer: V2DeflateSerializer::new() };
        log.out.write(|out| header(out, start))?;
        Ok(log)
    }

    /// Adds one interval: the parts with their names, then the whole without. Octets not allowed in a tag
    /// (comma, space) are replaced by underscores.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn interval<'a>(
        &mut self,
        begin: Duration,
        length: Duration,
        parts: impl IntoIterator<Item = (&'a str, &'a Histogram<u64>)>,
        whole: &Histogram<u64>,
    ) -> Result<(), FileError> {
        let mut lines = Vec::new();
        let written = parts
            .into_iter()
            .map(|(name, histogram)| (Some(name), histogram))
            .chain([(None, whole)])
            .try_for_each(|(name, histogram)| {
                line(&mut lines, &mut self.serializer, begin, length, name, histogram)
            });
        // One write for all lines: a reader never sees a partial line.
        self.out.write(|out| written.and_then(|()| out.write_all(&lines)))?;
        self.out.commit()
    }
}

fn header(out: &mut dyn Write, start: SystemTime) -> io::Result<()> {
    let mut text = Vec::new();
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Values are nanoseconds]")
        .with_start_time(start)
        .with_base_time(start)
        .begin_log_with(&mut text, &mut V2DeflateSerializer::new())?;
    out.write_all(&text)
}

fn line(
    lines: &mut Vec<u8>,
    serializer: &mut V2DeflateSerializer,
    begin: Duration,
    length: Duration,
    name: Option<&str>,
    histogram: &Histogram<u64>,
) -> io::Result<()> {
    let name = name.map(|name| name.replace([',', ' ', '\r', '\n'], "_"));
    let tag = name.as_deref().and_then(Tag::new);
    // Without headers, which were written before, this writes only the line.
    IntervalLogWriterBuilder::new()
        .begin_log_with(lines, serializer)?
        .write_histogram(histogram, begin, length, tag)
        .map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            other => io::Error::other(other.to_string()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::fs;

    /// Tag and histogram of every interval, as the library reads them.
    fn read(log: &[u8]) -> Vec<(Option<String>, Duration, Histogram<u64>)> {
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(log) {
            let LogEntry::Interval(interval) = entry.expect("a sound line") else { continue };
            let octets = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                interval.encoded_histogram(),
            );
            let octets = octets.expect("base64");
            let histogram = Deserializer::new().deserialize(&mut &octets[..]).expect("version 2");
            let tag = interval.tag().map(|tag| tag.as_str().to_owned());
            found.push((tag, interval.start_timestamp(), histogram));
        }
        found
    }

    #[test]
    fn a_log_has_a_name_from_the_first_interval_and_grows() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = IntervalLog::create(&path, SystemTime::UNIX_EPOCH).expect("can be written");
        assert!(!path.exists());
        let mut one = crate::histogram::histogram();
        one.record_n(1234, 7).expect("in bounds");
        let second = Duration::from_secs(1);
        let parts = [("a:b", &one), ("odd, name", &one)];
        log.interval(Duration::ZERO, second, parts, &one).expect("writes");
        let first = fs::read(&path).expect("is there");
        assert!(first.starts_with(b"#[Histogram log format version 1.3]\n"));
        let tags: Vec<Option<String>> = read(&first).into_iter().map(|(tag, ..)| tag).collect();
        assert_eq!(tags, [Some("a:b".into()), Some("odd,_name".replace(',', "_")), None]);
        log.interval(second, second, [], &one).expect("writes");
        let both = fs::read(&path).expect("is there");
        assert!(both.starts_with(&first));
        let intervals = read(&both);
        assert_eq!(intervals.len(), 4);
        assert_eq!(intervals[3], (None, second, one));
    }
}
