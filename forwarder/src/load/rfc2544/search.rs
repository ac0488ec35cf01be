//! Computes results from trials: the highest value at which a trial succeeds, and medians.

/// A search ends after this many trials at any resolution: values cannot be halved any further.
const TRIALS_MAX: usize = 40;

/// The highest value up to `highest` at which `succeeds`, to within `resolution` (a fraction of `highest`).
/// `None`: it failed down to the resolution. Begins with `first`, then halves the remaining range (RFC 2544
/// 26.1 leaves the search method to the tester).
///
/// # Errors
/// Those of `succeeds`.
pub fn highest<E>(
    highest: f64,
    first: f64,
    resolution: f64,
    mut succeeds: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Option<f64>, E> {
    let step = highest * resolution;
    let (mut low, mut high) = (0.0, highest);
    let mut next = first.clamp(step.min(highest), highest);
    for _ in 0..TRIALS_MAX {
        if succeeds(next)? {
            low = next;
        } else {
            high = next;
        }
        if high - low <= step {
            break;
        }
        next = f64::midpoint(low, high);
    }
    Ok((low > 0.0).then_some(low))
}

/// As [`highest`], for a value that may be far below `highest`: doubles from `first` until it fails, then
/// searches in between to within the fraction `resolution` of the value reached.
///
/// # Errors
/// Those of `succeeds`.
pub fn highest_from<E>(
    first: f64,
    most: f64,
    resolution: f64,
    mut succeeds: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Option<f64>, E> {
    let (mut low, mut next) = (0.0, first.min(most));
    while succeeds(next)? {
        low = next;
        if next >= most {
            return Ok(Some(most));
        }
        next = (next * 2.0).min(most);
    }
    let above = |part: f64| low + part;
    let found = highest(next - low, (next - low) / 2.0, resolution, |part| succeeds(above(part)))?;
    let found = found.map_or(low, above);
    Ok((found > 0.0).then_some(found))
}

/// The middle value, or the mean of the middle two; 0 for an empty list.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn search(limit: f64, first: f64, resolution: f64) -> (Option<f64>, usize) {
        let mut trials = 0;
        let found = highest(1000.0, first, resolution, |value| {
            trials += 1;
            assert!(value > 0.0 && value <= 1000.0, "{value}");
            Ok::<bool, Infallible>(value <= limit)
        });
        (found.expect("never fails"), trials)
    }

    proptest! {
        #[test]
        fn the_limit_is_found_within_the_resolution_wherever_the_search_begins(
            limit in 20.0..1000.0,
            first in 0.0..2000.0,
        ) {
            let (found, trials) = search(limit, first, 0.01);
            let found = found.expect("above the resolution");
            prop_assert!(found <= limit && limit - found <= 10.0, "{found} for {limit}");
            prop_assert!(trials <= 9, "{trials}");
        }
    }

    #[test]
    fn a_device_without_a_limit_takes_one_trial() {
        assert_eq!(search(f64::INFINITY, 1000.0, 0.01), (Some(1000.0), 1));
    }

    #[test]
    fn a_device_that_always_loses_has_no_rate_and_the_search_ends() {
        let (found, trials) = search(0.0, 1000.0, 0.01);
        assert_eq!(found, None);
        assert!(trials <= 9, "{trials}");
        // Also with a resolution finer than any number.
        assert_eq!(search(0.0, 1000.0, 0.0), (None, TRIALS_MAX));
    }

    #[test]
    fn a_small_limit_is_found_as_closely_as_a_large_one() {
        for (limit, expected) in [(8333.0, 8250.0..=8333.0), (70.0, 69.0..=70.0)] {
            let mut trials = 0;
            let found = highest_from(64.0, 2e6, 0.01, |value| {
                trials += 1;
                Ok::<bool, Infallible>(value <= limit)
            });
            let found = found.expect("never fails").expect("some");
            assert!(expected.contains(&found), "{found}");
            assert!(trials < 25, "{trials}");
        }
        assert_eq!(highest_from(64.0, 2e6, 0.01, |_| Ok::<_, Infallible>(true)), Ok(Some(2e6)));
        assert_eq!(highest_from(64.0, 2e6, 0.01, |_| Ok::<_, Infallible>(false)), Ok(None));
    }

    #[test]
    fn an_error_ends_the_search() {
        assert_eq!(highest(10.0, 5.0, 0.1, |_| Err("no")), Err("no"));
    }

    #[test]
    fn medians() {
        assert_eq!([median(&[]), median(&[3.0]), median(&[9.0, 1.0])], [0.0, 3.0, 5.0]);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
    }
}
