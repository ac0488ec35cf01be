//! Rounds: runs every entrant of a section in turn, and evaluates their figures.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

/// An entrant that failed this often without a figure is not tried again.
const TRIES: usize = 2;

/// What one run of an entrant measured, by the metric's key.
pub type Sample = BTreeMap<&'static str, f64>;

/// A quantity that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in a [`Sample`].
    pub key: &'static str,
    /// Its title with its unit.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

/// A program or configuration that is measured.
pub struct Entrant<'a> {
    pub name: String,
    /// Keys of the metrics that it provides.
    pub gives: Vec<&'static str>,
    /// Measures once.
    pub run: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

/// Entrants that are compared. The first is Ferroute.
pub struct Section<'a> {
    pub title: String,
    /// What has to be known to read the figures.
    pub note: String,
    pub metrics: Vec<Metric>,
    pub entrants: Vec<Entrant<'a>>,
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` for an empty list.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: (low + high) / 2.0, min, max })
    }
}

/// A metric of an entrant.
#[derive(Debug, Serialize)]
pub struct Row {
    pub metric: &'static str,
    pub title: &'static str,
    pub entrant: String,
    /// One per round; `None` where it failed.
    pub values: Vec<Option<f64>>,
    pub spread: Option<Spread>,
    /// Ferroute's value divided by this one's, per round; not for Ferroute itself.
    pub ratio: Option<Spread>,
    /// Why there are fewer values than rounds.
    pub failed: Option<String>,
    #[serde(skip)]
    pub digits: usize,
}

/// Results of a section.
#[derive(Debug, Serialize)]
pub struct SectionResult {
    pub title: String,
    pub note: String,
    pub rounds: usize,
    pub rows: Vec<Row>,
}

impl SectionResult {
    /// Whether Ferroute has a figure for each of its metrics.
    pub fn has_subject(&self) -> bool {
        let subject = self.rows.first().map(|row| &row.entrant);
        let mut own = self.rows.iter().filter(|row| Some(&row.entrant) == subject);
        subject.is_some() && own.all(|row| row.spread.is_some())
    }
}

/// Results of an entrant, round by round.
#[derive(Debug, Default)]
struct History {
    samples: Vec<Option<Sample>>,
    failed: Option<String>,
}

impl Section<'_> {
    /// Runs every entrant `rounds` times, in turn; each round begins with another entrant.
    pub fn run(mut self, rounds: usize, interrupted: &dyn Fn() -> bool) -> SectionResult {
        let count = self.entrants.len();
        let mut histories: Vec<History> = (0..count).map(|_| History::default()).collect();
        let mut done = 0;
        'rounds: for round in 0..rounds {
            for turn in 0..count {
                if interrupted() {
                    break 'rounds;
                }
                let at = (turn + round) % count;
                let (entrant, history) = (&mut self.entrants[at], &mut histories[at]);
                let tried = history.samples.len();
                if tried >= TRIES && history.samples.iter().all(Option::is_none) {
                    continue;
                }
                eprintln!("{}: {}, round {} of {rounds}", self.title, entrant.name, round + 1);
                history.take((entrant.run)(), interrupted());
            }
            done = round + 1;
        }
        SectionResult {
            rows: rows(&self.metrics, &self.entrants, &histories),
            title: self.title,
            note: self.note,
            rounds: done,
        }
    }
}

impl History {
    fn take(&mut self, result: Result<Sample>, interrupted: bool) {
        if let Err(error) = &result {
            eprintln!("  could not run: {error:#}");
            self.failed = Some(match interrupted {
                true => "interrupted".into(),
                false => format!("{error:#}"),
            });
        }
        self.samples.push(result.ok());
    }

    fn values(&self, key: &str) -> Vec<Option<f64>> {
        self.samples.iter().map(|sample| sample.as_ref()?.get(key).copied()).collect()
    }
}

fn rows(metrics: &[Metric], entrants: &[Entrant<'_>], histories: &[History]) -> Vec<Row> {
    let mut rows = Vec::new();
    for metric in metrics {
        let subject = histories.first().map_or(Vec::new(), |history| history.values(metric.key));
        for (at, (entrant, history)) in entrants.iter().zip(histories).enumerate() {
            if !entrant.gives.contains(&metric.key) {
                continue;
            }
            let values = history.values(metric.key);
            let ratios =
                subject.iter().zip(&values).filter_map(|(own, its)| Some((*own)? / (*its)?));
            rows.push(Row {
                metric: metric.key,
                title: metric.title,
                entrant: entrant.name.clone(),
                spread: Spread::of(values.iter().flatten().copied().collect()),
                ratio: if at == 0 { None } else { Spread::of(ratios.collect()) },
                failed: history.failed.clone(),
                digits: metric.digits,
                values,
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    const SPEED: Metric = Metric { key: "speed", title: "speed, pps", digits: 1 };

    fn entrant<'a>(name: &str, mut run: impl FnMut() -> Result<f64> + 'a) -> Entrant<'a> {
        let run = Box::new(move || Ok(Sample::from([("speed", run()?)])));
        Entrant { name: name.into(), gives: vec!["speed"], run }
    }

    fn section(entrants: Vec<Entrant<'_>>) -> Section<'_> {
        Section { title: "t".into(), note: String::new(), metrics: vec![SPEED], entrants }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        let four = Spread::of(vec![9.0, 1.0, 4.0, 2.0]);
        assert_eq!(four, Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn ratios_are_taken_within_a_round_so_that_a_slow_machine_cancels_out() {
        // The machine is half as fast in the second round.
        let (mut own, mut its) = ([10.0, 5.0, 11.0].into_iter(), [20.0, 10.0, 20.0].into_iter());
        let result = section(vec![
            entrant("own", || Ok(own.next().expect("three rounds"))),
            entrant("peer", || Ok(its.next().expect("three rounds"))),
        ])
        .run(3, &|| false);
        assert_eq!(result.rows[0].ratio, None);
        let ratio = result.rows[1].ratio.expect("both ran");
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.5, 0.55));
        assert!(result.has_subject());
    }

    #[test]
    fn a_peer_that_cannot_run_has_an_error_and_is_not_retried_forever() {
        let mut tries = 0;
        let result = section(vec![
            entrant("own", || Ok(1.0)),
            entrant("peer", || {
                tries += 1;
                bail!("peerd is not installed")
            }),
        ])
        .run(5, &|| false);
        assert_eq!(tries, TRIES);
        let row = &result.rows[1];
        assert_eq!((row.spread, row.ratio), (None, None));
        assert_eq!(row.failed.as_deref(), Some("peerd is not installed"));
        assert!(result.has_subject());
    }

    #[test]
    fn a_round_begins_with_another_entrant_each_time() {
        let order = std::cell::RefCell::new(Vec::new());
        let note = |name: &'static str| {
            let order = &order;
            entrant(name, move || {
                order.borrow_mut().push(name);
                Ok(1.0)
            })
        };
        section(vec![note("a"), note("b"), note("c")]).run(2, &|| false);
        assert_eq!(*order.borrow(), ["a", "b", "c", "b", "c", "a"]);
    }

    #[test]
    fn without_the_subject_there_is_no_ratio_and_it_shows() {
        let fails = entrant("own", || bail!("no"));
        let result = section(vec![fails, entrant("peer", || Ok(2.0))]).run(1, &|| false);
        assert!(!result.has_subject());
        assert!(result.rows[1].spread.is_some() && result.rows[1].ratio.is_none());
    }
}
