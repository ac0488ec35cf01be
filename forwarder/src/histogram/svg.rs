//! The percentile plot: times over percentiles, as drawn by the plotter of HdrHistogram.
//!
//! The horizontal axis is logarithmic in 1/(1 − percentile), so that 90 %, 99 %, 99.9 % … are equally far
//! apart; the vertical axis is logarithmic in time, as the tail may be a thousand times the median. The
//! drawing refers to generic fonts only, and needs no fonts of the machine.

use std::io;
use std::ops::Range;

use hdrhistogram::Histogram;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use super::format_ns;

/// Pixels.
const SIZE: (u32, u32) = (960, 540);
/// Points for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 10;
/// Maximum number of lines: more could not be distinguished by colour.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
];

/// Draws histograms of nanoseconds, each a line with its name, and returns the SVG.
///
/// # Errors
/// The drawing failed; empty and unusual histograms do not cause this.
pub fn draw(title: &str, lines: &[(&str, &Histogram<u64>)]) -> io::Result<String> {
    let mut svg = String::new();
    draw_into(&mut svg, title, lines).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(svg)
}

fn draw_into(
    svg: &mut String,
    title: &str,
    lines: &[(&str, &Histogram<u64>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let nines = nines(lines);
    let percentiles = Axis((0..=nines).map(f64::from).collect());
    let times = Axis(times(lines));
    let labels = times.0.len();
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .margin_right(40)
        .x_label_area_size(44)
        .y_label_area_size(80)
        .build_cartesian_2d(percentiles, times)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(nines as usize + 1)
        .y_labels(labels)
        .x_label_formatter(&|x| percentile_label(x.round() as u32))
        .y_label_formatter(&|y| format_ns(10_f64.powf(*y).round() as u64))
        .x_desc("percentile")
        .y_desc("time")
        .label_style(("sans-serif", 14))
        .draw()?;
    for ((name, histogram), colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points(histogram), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if !lines.is_empty() {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
    }
    area.present()?;
    Ok(())
}

/// An axis with labels at the given marks, from the first to the last.
struct Axis(Vec<f64>);

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        let part = (value - start) / (end - start).max(f64::MIN_POSITIVE);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.0.clone()
    }

    fn range(&self) -> Range<f64> {
        self.0.first().copied().unwrap_or(0.0)..self.0.last().copied().unwrap_or(1.0)
    }
}

/// The extent of the axis: up to the percentile of a single value of the longest line.
fn nines(lines: &[(&str, &Histogram<u64>)]) -> u32 {
    let most = lines.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or(0);
    (most.max(1) as f64).log10().ceil().clamp(1.0, 9.0) as u32
}

/// Labels of the vertical axis, decimal logarithms of nanoseconds, at least two: 1, 2 and 5 of each power
/// of ten from below the lowest to above the highest value; for wide ranges only the powers.
fn times(lines: &[(&str, &Histogram<u64>)]) -> Vec<f64> {
    let counted = || lines.iter().map(|(_, histogram)| histogram).filter(|h| !h.is_empty());
    let lowest = counted().map(|h| h.min().max(1)).min().unwrap_or(100);
    let highest = counted().map(|h| h.max().max(1)).max().unwrap_or(1000);
    let (first, last) = (lowest.ilog10(), highest.ilog10() + 1);
    if last - first > 3 {
        return (first..=last).map(f64::from).collect();
    }
    let marks = (first..=last).flat_map(|power| [1, 2, 5].map(|mark| mark * 10_u64.pow(power)));
    let marks: Vec<u64> = marks.collect();
    let from = marks.iter().rposition(|&mark| mark <= lowest).unwrap_or(0);
    let to = marks.iter().position(|&mark| mark > highest).unwrap_or(marks.len() - 1);
    marks[from..=to].iter().map(|&mark| (mark as f64).log10()).collect()
}

/// The percentile with this number of nines: 0 %, 90 %, 99 %, 99.9 %, ….
fn percentile_label(nines: u32) -> String {
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        more => format!("99.{}%", "9".repeat(more as usize - 2)),
    }
}

/// The points of a line. Its last point is the highest value, which of `n` values is at 1 − 1/n.
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let end = (histogram.len().max(1) as f64).log10();
    let ticks = if histogram.is_empty() { 0 } else { usize::MAX };
    let steps = histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE).take(ticks);
    let point = |quantile: f64, value: u64| {
        let x = if quantile < 1.0 { (1.0 / (1.0 - quantile)).log10() } else { end };
        (x.min(end), (value.max(1) as f64).log10())
    };
    steps.map(|step| point(step.quantile_iterated_to(), step.value_iterated_to())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = crate::histogram::histogram();
        values.into_iter().for_each(|ns| histogram.record(ns).expect("in bounds"));
        histogram
    }

    #[test]
    fn the_axis_has_the_percentiles_and_the_lines_their_names() {
        let histogram = of((1..=10_000).map(|n| n * 10));
        let svg = draw("residence", &[("a<b&c", &histogram)]).expect("draws");
        for label in ["0%", "90%", "99%", "99.9%", "99.99%", "1.00 µs", "a&lt;b&amp;c"] {
            assert!(svg.contains(&format!("\n{label}\n")), "{label} is not in\n{svg}");
        }
        assert!(!svg.contains("99.999%"), "10000 values have no such percentile");
    }

    #[test]
    fn odd_histograms_are_drawn_too() {
        let highest = crate::stats::histogram::HIGHEST_NS;
        let odd = [of([]), of([0]), of([highest]), of([0, highest]), of([7; 3])];
        for histogram in &odd {
            let svg = draw("odd", &[("one", histogram)]).expect("draws");
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        draw("none", &[]).expect("draws");
        let all: Vec<_> = odd.iter().map(|histogram| ("x", histogram)).collect();
        draw("all", &all).expect("draws");
    }

    #[test]
    fn a_line_ends_where_its_last_value_stands() {
        let points = points(&of(1..=1000));
        assert_eq!(points.last(), Some(&(3.0, 3.0)));
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
    }
}
