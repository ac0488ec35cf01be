//! Samples as text: OpenMetrics, or the older text format of Prometheus.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::catalog::Kind;
use super::samples::{Family, Value};

/// Content type of OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Both formats of the same samples.
#[derive(Debug, Default)]
pub struct Texts {
    /// OpenMetrics.
    pub openmetrics: String,
    /// The text format.
    pub text: String,
}

impl Texts {
    /// Writes samples.
    pub fn of(families: Vec<Family>) -> Texts {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Samples(families)));
        let mut texts = Texts::default();
        // Writing to a string does not fail.
        let _ = text::encode(&mut texts.openmetrics, &registry);
        let _ = prometheus_text::encode(&mut texts.text, &registry);
        texts
    }
}

#[derive(Debug)]
struct Samples(Vec<Family>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { metric, samples } in &self.0 {
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
                Kind::Histogram => MetricType::Histogram,
            };
            let unit = metric.unit.as_ref();
            let mut to = encoder.encode_descriptor(&metric.base, &metric.help, unit, kind)?;
            for (values, value) in samples {
                let labels: Vec<(&str, &str)> =
                    metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                match (value, labels.is_empty()) {
                    (Value::Info, _) => to.encode_info(&labels)?,
                    (value, true) => write(&mut to, metric.kind, value)?,
                    (value, false) => write(&mut to.encode_family(&labels)?, metric.kind, value)?,
                }
            }
        }
        Ok(())
    }
}

fn write(to: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;
    match (value, kind) {
        (Value::Count(count), _) => to.encode_counter(count, NO_EXEMPLAR),
        (Value::Number(number), Kind::Counter) => to.encode_counter(number, NO_EXEMPLAR),
        (Value::Number(number), _) => to.encode_gauge(number),
        (Value::Buckets(sum, count, buckets), _) => {
            to.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
        }
        (Value::Info, _) => Ok(()),
    }
}

/// Whether a client that accepts these types gets OpenMetrics: if it accepts version 1 of it, or any, and does not exclude it
/// by `q=0`.
pub fn wants_openmetrics(accept: &str) -> bool {
    accept.split(',').any(|kind| {
        let mut words = kind.split(';').map(str::trim);
        let is_kind = |kind: &str| kind.eq_ignore_ascii_case("application/openmetrics-text");
        words.next().is_some_and(is_kind)
            && words.filter_map(|word| word.split_once('=')).all(|(name, value)| {
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => value.parse::<f64>().is_ok_and(|q| q > 0.0),
                    "version" => value == "1" || value.starts_with("1."),
                    _ => true,
                }
            })
    })
}

#[cfg(test)]
mod tests {
    use super::super::catalog;
    use super::*;

    fn texts() -> Texts {
        let label = |text: &str| vec![text.to_owned()];
        Texts::of(vec![
            Family {
                metric: catalog::BUILD,
                samples: vec![(vec!["1".into(), "af_xdp".into()], Value::Info)],
            },
            Family {
                metric: catalog::DROPS,
                samples: vec![(label("A\"\\\nB"), Value::Count(u64::MAX))],
            },
            Family { metric: catalog::READING_TIME, samples: vec![(vec![], Value::Number(0.5))] },
            Family {
                metric: catalog::LATENCY,
                samples: vec![(
                    vec!["a".into(), "b".into()],
                    Value::Buckets(2.0, 3, vec![(1.0, 1), (f64::INFINITY, 2)]),
                )],
            },
        ])
    }

    #[test]
    fn both_formats_are_as_specified() {
        let Texts { openmetrics, text } = texts();
        for line in [
            "# TYPE ferroute_build info\n",
            "ferroute_build_info{version=\"1\",driver=\"af_xdp\"} 1\n",
            "# TYPE ferroute_drops counter\n",
            "ferroute_drops_total{reason=\"A\\\"\\\\\\nB\"} 18446744073709551615\n",
            "# UNIT ferroute_metrics_reading_duration_seconds seconds\n",
            "ferroute_latency_seconds_bucket{le=\"1.0\",iif=\"a\",oif=\"b\"} 1\n",
            "ferroute_latency_seconds_bucket{le=\"+Inf\",iif=\"a\",oif=\"b\"} 3\n",
        ] {
            assert!(openmetrics.contains(line), "{line:?} is not in\n{openmetrics}");
        }
        assert!(openmetrics.ends_with("# EOF\n"));
        for line in [
            "# TYPE ferroute_build_info gauge\n",
            "# TYPE ferroute_drops_total counter\n",
            "# TYPE ferroute_latency_seconds histogram\n",
            "ferroute_metrics_reading_duration_seconds 0.5\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    #[test]
    fn openmetrics_is_for_those_who_ask() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        assert!(wants_openmetrics(prometheus));
        assert!(!wants_openmetrics("*/*") && !wants_openmetrics(""));
        for (accept, wants) in [
            ("application/openmetrics-text", true),
            ("text/plain, Application/OpenMetrics-Text; charset=utf-8; version=\"1.0.0\"", true),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text; version=1.0.0; q=0.0", false),
            ("application/openmetrics-text; version=2.0.0", false),
            (
                "application/openmetrics-text; version=2.0.0, application/openmetrics-text; version=1.0.0",
                true,
            ),
        ] {
            assert_eq!(wants_openmetrics(accept), wants, "{accept}");
        }
    }
}
