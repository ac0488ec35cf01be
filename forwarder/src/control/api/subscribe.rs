//! Subscriptions to counters, drops and events: the request, and the lines on a connection after it was answered.
//!
//! The daemon sends one [`Line`] of JSON after the other: first the state, then what the topics have, and [`Body::End`] when
//! the daemon stops. The client sends nothing, and closes the connection when it wants no more.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::Event;
use super::{DropsReport, StatReport, StatusReport};

/// The interval of counters and drops if the request has none, in milliseconds.
pub const INTERVAL_MS: u64 = 1000;
/// The shortest interval.
pub const INTERVAL_MS_MIN: u64 = 100;
/// The longest interval.
pub const INTERVAL_MS_MAX: u64 = 60_000;

/// What can be subscribed to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// What `stat` answers, at each interval.
    Counters,
    /// Drops and packets handed to the kernel, by reason, at each interval: only reasons that have counted.
    Drops,
    /// Events of all the following topics.
    Events,
    /// Forwarding begins or stops, and why.
    State,
    /// Ports.
    Ports,
    /// Tables of routes, neighbours and links.
    Tables,
    /// The firewall.
    Rules,
    /// Flow offload.
    Offload,
    /// Workers, the control thread and the way of packets to the kernel.
    Workers,
    /// The configuration file.
    Config,
    /// IPsec.
    Ipsec,
}

/// Requests lines of some topics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeRequest {
    /// At least one.
    pub topics: Vec<Topic>,
    /// Of counters and drops, in milliseconds: 100 to 60,000 [default: 1000].
    #[serde(default = "interval_ms")]
    #[schemars(range(min = INTERVAL_MS_MIN, max = INTERVAL_MS_MAX))]
    pub interval_ms: u64,
}

fn interval_ms() -> u64 {
    INTERVAL_MS
}

impl SubscribeRequest {
    /// Whether a topic is subscribed to, by itself or as one of the events.
    pub fn has(&self, topic: Topic) -> bool {
        let is_event = !matches!(topic, Topic::Counters | Topic::Drops);
        self.topics.contains(&topic) || is_event && self.topics.contains(&Topic::Events)
    }

    /// Checks the request.
    ///
    /// # Errors
    /// What is wrong with it, for the client.
    pub fn check(&self) -> Result<(), String> {
        if self.topics.is_empty() {
            return Err("subscribe: no topics; name at least one, such as events".into());
        }
        if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&self.interval_ms) {
            return Err(format!(
                "subscribe: interval_ms {}; must be {INTERVAL_MS_MIN} to {INTERVAL_MS_MAX}",
                self.interval_ms
            ));
        }
        Ok(())
    }
}

/// Answers the request: the subscription has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeGrant {
    /// The topics.
    pub topics: Vec<Topic>,
    /// The interval of counters and drops, in milliseconds.
    pub interval_ms: u64,
    /// Events that wait for the client; when there are more, they are lost and counted.
    pub queue: u64,
}

/// One line of a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SubscriptionLine")]
pub struct Line {
    /// 1 for the first line, one more for each other.
    pub seq: u64,
    /// When it happened or was read: RFC 3339, UTC, in microseconds.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub body: Body,
}

/// The contents of a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The state when the subscription began: the first line.
    Snapshot(Box<SubscriptionSnapshot>),
    /// All counters.
    Counters(Box<StatReport>),
    /// What was dropped, or handed to the kernel, since the last line of this kind.
    Drops(DropsChange),
    /// An event.
    Event(Event),
    /// This many events were lost before this line, because the client did not read fast enough.
    Lost(u64),
    /// Nothing follows: the daemon stops.
    End {},
}

/// The state at the beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscriptionSnapshot {
    /// What `status` answers.
    pub status: StatusReport,
    /// What `stat` answers: with the topic `counters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<StatReport>,
    /// What `drops` answers: with the topic `drops`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<DropsReport>,
}

/// Reasons that have counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropsChange {
    /// Dropped packets.
    pub drops: Vec<CountChange>,
    /// Packets handed to the kernel.
    pub punts: Vec<CountChange>,
}

/// A count that has grown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountChange {
    /// As `ferroute drops` names it.
    pub reason: String,
    /// Since the daemon's start.
    pub count: u64,
    /// Since the last line.
    pub new: u64,
    /// One line on what it means.
    pub help: String,
}

impl DropsChange {
    /// What has counted between two reports.
    pub fn between(before: &DropsReport, now: &DropsReport) -> DropsChange {
        let changes = |before: &[super::NamedCount], now: &[super::NamedCount]| {
            let earlier = |reason: &str| {
                before.iter().find(|row| row.reason == reason).map_or(0, |row| row.count)
            };
            let change = |row: &super::NamedCount| {
                let new = row.count.saturating_sub(earlier(&row.reason));
                let super::NamedCount { reason, count, help } = row.clone();
                (new > 0).then_some(CountChange { reason, count, new, help })
            };
            now.iter().filter_map(change).collect()
        };
        DropsChange {
            drops: changes(&before.drops, &now.drops),
            punts: changes(&before.punts, &now.punts),
        }
    }

    /// Whether nothing has counted.
    pub fn is_empty(&self) -> bool {
        self.drops.is_empty() && self.punts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::NamedCount;
    use super::*;

    #[test]
    fn a_line_has_its_number_time_and_one_more_field() {
        for (body, name) in [
            (Body::Lost(3), "lost"),
            (Body::End {}, "end"),
            (Body::Event(Event::Resync { resyncs: 1, lost: true }), "event"),
        ] {
            let line = Line { seq: 2, time: "2026-01-02T03:04:05.000006Z".into(), body };
            let value = serde_json::to_value(&line).expect("writes");
            let fields: Vec<&String> = value.as_object().expect("an object").keys().collect();
            assert_eq!(fields, [name, "seq", "time"], "sorted by name");
            assert_eq!(serde_json::from_value::<Line>(value).expect("reads"), line);
        }
    }

    #[test]
    fn only_reasons_that_have_counted_are_in_a_change() {
        let row =
            |reason: &str, count| NamedCount { reason: reason.into(), count, help: "h".into() };
        let before = DropsReport { drops: vec![row("A", 5), row("B", 1)], punts: vec![] };
        let now = DropsReport { drops: vec![row("A", 5), row("B", 4)], punts: vec![row("C", 1)] };
        let change = DropsChange::between(&before, &now);
        let (reasons, new): (Vec<&str>, Vec<u64>) =
            change.drops.iter().chain(&change.punts).map(|it| (&it.reason[..], it.new)).unzip();
        assert_eq!((reasons, new), (vec!["B", "C"], vec![3, 1]));
        assert!(DropsChange::between(&now, &now).is_empty());
    }

    #[test]
    fn events_are_all_topics_but_counters_and_drops() {
        let request =
            |topics: &[Topic], interval_ms| SubscribeRequest { topics: topics.into(), interval_ms };
        let events = request(&[Topic::Events], 1000);
        assert!(events.has(Topic::Ports) && events.has(Topic::Ipsec));
        assert!(!events.has(Topic::Counters) && !events.has(Topic::Drops));
        assert!(!request(&[Topic::Ports], 1000).has(Topic::Tables));
        assert!(events.check().is_ok());
        assert!(request(&[], 1000).check().is_err());
        assert!(request(&[Topic::Drops], 99).check().is_err());
        assert!(request(&[Topic::Drops], 60_001).check().is_err());
        let short: SubscribeRequest =
            serde_json::from_str("{\"topics\":[\"drops\"]}").expect("reads");
        assert_eq!(short.interval_ms, INTERVAL_MS);
    }
}
