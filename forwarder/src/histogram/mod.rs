//! HDR histograms of times, output for people and for the public HdrHistogram tools.
//!
//! - [`Summary`]: count, percentiles and maximum, for a table or JSON;
//! - [`hgrm`]: the percentile distribution as text (`.hgrm`), which plotters read;
//! - [`log`]: the interval log, version 2 histograms;
//! - [`svg`]: the percentile plot;
//! - [`file`](mod@file): output files: complete or absent, `-` for standard output.
//!
//! All values are nanoseconds. Measuring them is done elsewhere.

pub mod file;
pub mod hgrm;
pub mod log;
pub mod svg;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::stats::histogram::{HIGHEST_NS, SIGNIFICANT_DIGITS};

pub use file::{FileError, OutFile};
pub use log::IntervalLog;

/// An empty histogram for times of up to 68.7 s, with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS).expect("the bounds are sound")
}

/// The values that a table shows of a histogram. Zeros if it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Lowest.
    pub min_ns: u64,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    #[serde(rename = "p99.9_ns")]
    pub p99_9_ns: u64,
    /// 99.99th percentile.
    #[serde(rename = "p99.99_ns")]
    pub p99_99_ns: u64,
    /// Highest.
    pub max_ns: u64,
}

impl Summary {
    /// Titles of [`Self::cells`].
    pub const TITLES: [&str; 7] = ["count", "p50", "p90", "p99", "p99.9", "p99.99", "max"];

    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Summary {
        if histogram.is_empty() {
            return Summary::default();
        }
        // The product with the count may be an ulp above a whole number, which must not select the next
        // rank.
        let at = |quantile: f64| histogram.value_at_quantile(quantile.next_down());
        Summary {
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            p99_99_ns: at(0.9999),
            max_ns: histogram.max(),
        }
    }

    /// Cells of a table's row; times with their units, `-` if the histogram is empty.
    pub fn cells(&self) -> [String; 7] {
        let Summary { count, p50_ns, p90_ns, p99_ns, p99_9_ns, p99_99_ns, max_ns, .. } = *self;
        let time = |ns| if count == 0 { "-".to_owned() } else { format_ns(ns) };
        let times = [p50_ns, p90_ns, p99_ns, p99_9_ns, p99_99_ns, max_ns].map(time);
        let [p50, p90, p99, p99_9, p99_99, max] = times;
        [count.to_string(), p50, p90, p99, p99_9, p99_99, max]
    }
}

/// A time with three significant digits in a suitable unit: `7 ns`, `1.23 µs`, `45.6 ms`.
pub fn format_ns(ns: u64) -> String {
    const UNITS: [&str; 3] = ["µs", "ms", "s"];
    if ns < 1000 {
        return format!("{ns} ns");
    }
    let mut value = ns as f64 / 1000.0;
    let mut unit = 0;
    // 999.5 would be written as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (45_600_000, "45.6 ms"),
            (68_700_000_000, "68.7 s"),
            (4_000_000_000_000, "4000 s"),
        ] {
            assert_eq!(format_ns(ns), text);
        }
    }

    #[test]
    fn a_summary_has_the_percentiles_and_nothing_of_an_empty_histogram() {
        let mut histogram = histogram();
        let empty = Summary::of(&histogram);
        assert_eq!(empty, Summary::default());
        assert_eq!(empty.cells(), ["0", "-", "-", "-", "-", "-", "-"]);
        for ns in 1..=1000 {
            histogram.record(ns).expect("in bounds");
        }
        let summary = Summary::of(&histogram);
        let Summary { count, min_ns, p50_ns, p90_ns, p99_ns, p99_9_ns, max_ns, .. } = summary;
        assert_eq!((count, min_ns, p50_ns, p90_ns), (1000, 1, 500, 900));
        assert_eq!((p99_ns, p99_9_ns, max_ns), (990, 999, 1000));
        assert_eq!(summary.cells()[..2], ["1000", "500 ns"]);
        let json = serde_json::to_value(summary).expect("writes");
        assert_eq!(json["p99.9_ns"], 999);
    }
}
