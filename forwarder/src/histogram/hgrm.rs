//! The percentile distribution as text: HdrHistogram's `outputPercentileDistribution`, the `.hgrm`
//! files that its plotters read. Values are microseconds with three decimals.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Steps for each halving of the distance to 100 %, as in HdrHistogram's own tools.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Nanoseconds of a value's unit.
const UNIT_NS: f64 = 1000.0;

/// Writes a histogram of nanoseconds.
///
/// # Errors
/// Those of the writer.
pub fn write(histogram: &Histogram<u64>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    let points = if histogram.is_empty() { 0 } else { usize::MAX };
    for point in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE).take(points) {
        total += point.count_since_last_iteration();
        let value = point.value_iterated_to() as f64 / UNIT_NS;
        let quantile = point.quantile_iterated_to();
        write!(out, "{value:12.3} {quantile:2.12} {total:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = match histogram.is_empty() {
        true => (0.0, 0.0),
        false => (histogram.mean() / UNIT_NS, histogram.stdev() / UNIT_NS),
    };
    let max = histogram.max() as f64 / UNIT_NS;
    let sub_buckets = (2 * 10_u64.pow(histogram.sigfig().into())).next_power_of_two();
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len())?;
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {sub_buckets:12}]", histogram.buckets())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[u64]) -> String {
        let mut histogram = crate::histogram::histogram();
        values.iter().for_each(|&ns| histogram.record(ns).expect("in bounds"));
        let mut text = Vec::new();
        write(&histogram, &mut text).expect("writes");
        String::from_utf8(text).expect("is text")
    }

    #[test]
    fn the_form_is_that_of_hdrhistogram() {
        // Written by hand from the format's description; the end-to-end tests have a reader of it.
        assert_eq!(
            text(&[1000, 1500, 2000]),
            "       Value     Percentile TotalCount 1/(1-Percentile)\n\
             \n\
             \x20      1.000 0.000000000000          1           1.00\n\
             \x20      1.000 0.100000000000          1           1.11\n\
             \x20      1.000 0.200000000000          1           1.25\n\
             \x20      1.000 0.300000000000          1           1.43\n\
             \x20      1.500 0.400000000000          2           1.67\n\
             \x20      1.500 0.500000000000          2           2.00\n\
             \x20      1.500 0.550000000000          2           2.22\n\
             \x20      1.500 0.600000000000          2           2.50\n\
             \x20      1.500 0.650000000000          2           2.86\n\
             \x20      2.000 0.700000000000          3           3.33\n\
             \x20      2.000 1.000000000000          3\n\
             #[Mean    =        1.500, StdDeviation   =        0.408]\n\
             #[Max     =        2.000, Total count    =            3]\n\
             #[Buckets =           26, SubBuckets     =         2048]\n"
        );
    }

    #[test]
    fn nothing_counted_is_no_line() {
        let text = text(&[]);
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2);
        assert!(text.contains("Total count    =            0]"), "{text}");
    }
}
