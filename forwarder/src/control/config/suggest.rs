//! The nearest right word, after a message about a wrong one.

/// From this similarity on (Jaro-Winkler, 0 to 1) a word may be meant.
const SIMILAR: f64 = 0.8;

/// Adds the nearest of the expected words to a message such as ``unknown field `queue`, expected one of `queues`,
/// `cpus` ``. Other messages stay as they are, and so do those without a near word.
pub(super) fn with_suggestion(message: String) -> String {
    match nearest(&message) {
        Some(word) => format!("{message}; did you mean `{word}`?"),
        None => message,
    }
}

fn nearest(message: &str) -> Option<&str> {
    let rest =
        message.strip_prefix("unknown field `").or(message.strip_prefix("unknown variant `"))?;
    let (wrong, rest) = rest.split_once('`')?;
    let expected = rest.strip_prefix(", expected ")?;
    // Words in backquotes are every second piece.
    let words = expected.split('`').skip(1).step_by(2);
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let rated = words.map(|word| (strsim::jaro_winkler(&plain(wrong), &plain(word)), word));
    let best = rated.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (best.0 >= SIMILAR).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggestion(wrong: &str) -> Option<String> {
        let message = format!(
            "unknown field `{wrong}`, expected one of `queues`, `rx_ring`, `tx_ring`, `offload`, `offload_flows`, \
             `worker_timeout_ms`, `latency_sample`"
        );
        let with = with_suggestion(message.clone());
        let rest = with.strip_prefix(&message).expect("the message comes first");
        rest.strip_prefix("; did you mean `").map(|rest| rest.trim_end_matches("`?").to_owned())
    }

    #[test]
    fn words_that_are_nearly_right_are_completed() {
        for (wrong, right) in [
            ("queue", "queues"),
            ("offload_flow", "offload_flows"),
            ("offload-flows", "offload_flows"),
            ("worker_timeout", "worker_timeout_ms"),
            ("rxring", "rx_ring"),
            ("Latency_Sample", "latency_sample"),
        ] {
            assert_eq!(suggestion(wrong).as_deref(), Some(right), "{wrong}");
        }
        for wrong in ["", "interfaces", "x", "…", "mtu"] {
            assert_eq!(suggestion(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn other_messages_stay_as_they_are() {
        for message in
            ["unknown field `x`", "invalid type: integer `1`, expected `a`", "unknown field `", ""]
        {
            assert_eq!(with_suggestion(message.to_owned()), message);
        }
        assert_eq!(
            with_suggestion("unknown variant `of`, expected `on` or `off`".into()),
            "unknown variant `of`, expected `on` or `off`; did you mean `off`?"
        );
    }
}
