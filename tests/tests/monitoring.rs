//! The alert rules and the dashboard in docs/monitoring name only metrics that there are.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;

use ferroute_tests::lab::repository;
use serde_json::Value;

/// Prefix of every metric.
const PREFIX: &str = "ferroute_";

/// Names of the series of every metric in docs/METRICS.md.
fn existing() -> BTreeSet<String> {
    let page = fs::read_to_string(repository().join("docs/METRICS.md")).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `ferroute_"));
    let mut names = BTreeSet::new();
    for row in rows {
        let (name, rest) = row.split_once("` | ").expect("a name and a type");
        let suffixes: &[&str] = match rest.starts_with("histogram") {
            true => &["_bucket", "_count", "_sum"],
            false => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{PREFIX}{name}{suffix}")));
    }
    assert!(names.len() > 100, "the table was not found");
    names
}

/// Words of a text that begin as names of metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(PREFIX)).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let existing = existing();
    for file in ["ferroute.rules.yml", "ferroute.rules.test.yml", "ferroute.grafana.json"] {
        let text = fs::read_to_string(repository().join("docs/monitoring").join(file)).expect(file);
        let named = named(&text);
        assert!(named.len() > 10, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&existing).collect();
        assert!(unknown.is_empty(), "{file} names metrics that do not exist: {unknown:?}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let found = named("expr: rate(ferroute_drops_total[5m]) > ferroute_nothing{port=\"a\"}");
    let unknown: Vec<_> = found.difference(&existing()).cloned().collect();
    assert_eq!(unknown, ["ferroute_nothing"]);
}

#[test]
fn every_alert_is_tested() {
    let read = |file| fs::read_to_string(repository().join("docs/monitoring").join(file));
    let rules = read("ferroute.rules.yml").expect("the rules");
    let tests = read("ferroute.rules.test.yml").expect("their tests");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut count = 0;
    for alert in alerts {
        // Once where it must not be raised, and once where it must.
        let words = tests.split(|c: char| !c.is_ascii_alphanumeric());
        let times = words.filter(|word| *word == alert).count();
        assert!(times >= 2, "{alert} is named {times} times in the tests");
        count += 1;
    }
    assert!(count > 10, "{count} alerts");
}

#[test]
fn the_dashboard_is_complete() {
    let path = repository().join("docs/monitoring/ferroute.grafana.json");
    let text = fs::read_to_string(path).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{panel} has the number of another panel");
        for target in panel["targets"].as_array().expect("targets") {
            let expr = target["expr"].as_str().expect("an expression");
            assert!(expr.contains("instance=~\"$instance\""), "{expr} is of all routers");
        }
    }
    assert!(ids.len() > 10, "{} panels", ids.len());
}
