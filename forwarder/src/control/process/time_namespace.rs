//! Checks whether CLOCK_MONOTONIC is the clock of BPF programs. In a time namespace
//! (time_namespaces(7)) it has an offset that `bpf_ktime_get_ns` does not have, so heartbeats could
//! not be compared.

use std::io;

/// Lists the offsets of the process's time namespace. Absent in kernels without CONFIG_TIME_NS.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// The monotonic clock's offset in seconds; 0 outside time namespaces.
///
/// # Errors
/// [`OFFSETS`] cannot be read or parsed.
pub fn monotonic_offset_seconds() -> io::Result<i64> {
    match std::fs::read_to_string(OFFSETS) {
        Ok(text) => parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "no offset of the monotonic clock")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns an error if heartbeats would not match the clock of the XDP program.
///
/// # Errors
/// The process is in a time namespace with another monotonic clock.
pub fn require_kernel_clock() -> anyhow::Result<()> {
    let offset = monotonic_offset_seconds()
        .map_err(|error| anyhow::anyhow!("cannot read {OFFSETS}: {error}"))?;
    anyhow::ensure!(
        offset == 0,
        "the monotonic clock of this time namespace is {offset} s from the kernel's, so the XDP \
         program could not determine whether Ferroute is alive; run it in the initial time namespace"
    );
    Ok(())
}

/// Parses lines of clock, seconds and nanoseconds; an offset of less than a second counts as one.
fn parse(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("monotonic"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(if seconds == 0 { nanoseconds.signum() } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_parsed_in_the_kernels_format() {
        let text = "monotonic      100000         0\nboottime            0         0\n";
        assert_eq!(parse(text), Some(100_000));
        assert_eq!(parse("monotonic -5 0\nboottime 0 0\n"), Some(-5));
        assert_eq!(parse("boottime 0 0\nmonotonic           0 250000000\n"), Some(1));
        assert_eq!(parse("monotonic           0         0\n"), Some(0));
        assert_eq!(parse("boottime 0 0\n"), None);
        assert_eq!(parse("monotonic x 0\n"), None);
    }
}
