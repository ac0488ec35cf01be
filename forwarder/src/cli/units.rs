//! Numbers for people, and numbers from them: rates with SI prefixes, intervals of measurements.

use crate::control::api::flows::TOP_INTERVAL_MS;

/// Three digits and a prefix of SI.
pub fn si(value: f64) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G"] {
        match value {
            // What is rounded up to 1000 has the next prefix.
            ..9.995 => return format!("{value:.2}{prefix}"),
            ..99.95 => return format!("{value:.1}{prefix}"),
            ..999.5 => return format!("{value:.0}{prefix}"),
            _ => value /= 1e3,
        }
    }
    format!("{value:.1}T")
}

/// An interval of [`TOP_INTERVAL_MS`] in milliseconds, from seconds.
///
/// # Errors
/// What was expected, for the user.
pub fn parse_interval(text: &str) -> Result<u32, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    // Casts saturate; NaN becomes 0.
    let interval_ms = (seconds * 1e3).round() as u32;
    match TOP_INTERVAL_MS.contains(&interval_ms) {
        true => Ok(interval_ms),
        false => Err("expected 0.1 to 30 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0.00"),
            (9.99, "9.99"),
            (9.999, "10.0"),
            (99.96, "100"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234_567.0, "1.23M"),
            (98_765_432_100.0, "98.8G"),
            (1.5e15, "1500.0T"),
        ] {
            assert_eq!(si(value), text, "{value}");
        }
    }

    #[test]
    fn intervals_are_seconds() {
        assert_eq!((parse_interval("1"), parse_interval("0.25")), (Ok(1000), Ok(250)));
        for text in ["", "0", "0.05", "-1", "NaN", "inf", "1e99", "31", "x"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
