//! What is known of the router, of which the screen shows a part.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::rates::Rates;
use super::super::sample::{News, Sample};
use crate::control::api::flows::FlowTopReport;

/// Measurements in the graph: as many as the widest terminal has columns.
const HISTORY_MAX: usize = 512;
/// How late an answer may be: the daemon waits for a worker up to a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known.
#[derive(Debug, Default)]
pub struct Model {
    last: Option<Sample>,
    /// When the last sample came, or could not be expected.
    heard: Option<Instant>,
    /// `None`: the daemon has not answered yet.
    pub rates: Option<Rates>,
    pub flows: Option<FlowTopReport>,
    /// Why there are no flows.
    pub no_flows: Option<String>,
    /// Since when the daemon does not answer, and why.
    pub lost: Option<(Instant, String)>,
    /// Octets per second received by all ports, the last measurement at the end.
    pub history: VecDeque<f64>,
    /// The highest rate of a port in one direction until now, octets per second.
    pub peak: f64,
    /// Number of measurements with rates.
    pub measured: u64,
}

impl Model {
    /// Takes what the daemon has answered.
    pub fn take(&mut self, news: News) {
        match news {
            News::Sample(sample) => self.take_sample(*sample),
            News::Lost(why) => match &mut self.lost {
                Some((_, reason)) => *reason = why,
                None => self.lost = Some((Instant::now(), why)),
            },
            News::Flows(report) => (self.flows, self.no_flows) = (Some(report), None),
            News::NoFlows(why) => (self.flows, self.no_flows) = (None, Some(why)),
        }
    }

    fn take_sample(&mut self, sample: Sample) {
        let rates = Rates::between(self.last.as_ref(), &sample);
        self.lost = None;
        if rates.interval.is_some() {
            self.measured += 1;
            let ports = rates.ports.iter().flat_map(|port| [port.rx_octets, port.tx_octets]);
            self.peak = ports.fold(self.peak, f64::max);
            if self.history.len() == HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(rates.packets.rx_octets);
        }
        self.heard = Some(Instant::now());
        self.last = Some(sample);
        self.rates = Some(rates);
    }

    /// How long the daemon has not answered, if it should have.
    pub fn lost_for(&self, interval: Duration) -> Option<Duration> {
        let silent = self.heard.map(|heard| heard.elapsed());
        match &self.lost {
            Some((since, _)) => Some(since.elapsed()),
            None => silent.filter(|silent| *silent > interval + PATIENCE),
        }
    }

    /// Nothing is asked at the moment.
    pub fn expect_nothing(&mut self) {
        self.heard = Some(Instant::now());
    }

    /// Flows are not asked for any more: what is known of them gets old.
    pub fn forget_flows(&mut self) {
        (self.flows, self.no_flows) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::rates::tests::sample;
    use super::*;

    #[test]
    fn a_lost_daemon_keeps_its_figures_until_it_answers_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut model = Model::default();
        model.take(News::Sample(Box::new(sample(at(0), 2, 1))));
        assert_eq!((model.measured, model.history.len()), (0, 0));
        model.take(News::Sample(Box::new(sample(at(1), 2, 2))));
        assert_eq!((model.measured, model.peak, model.history[0]), (1, 6400.0, 12_800.0));
        model.take(News::Lost("gone".into()));
        let since = model.lost.clone().map(|(since, _)| since);
        model.take(News::Lost("refused".into()));
        assert_eq!(model.lost, since.map(|since| (since, "refused".to_owned())));
        assert!(model.rates.is_some());
        // Another daemon, which has counted more: not a rate.
        let mut restarted = sample(at(9), 2, 50);
        restarted.status.pid = 8;
        model.take(News::Sample(Box::new(restarted.clone())));
        let interval = model.rates.as_ref().and_then(|rates| rates.interval);
        let second = Duration::from_secs(1);
        assert_eq!((model.lost_for(second), interval, model.measured), (None, None, 1));
        // It is stopped: the connection is open, and no answer comes.
        model.heard = Instant::now().checked_sub(Duration::from_secs(5));
        assert!(model.lost_for(second).is_some_and(|it| it >= Duration::from_secs(5)));
        assert_eq!(model.lost_for(Duration::from_secs(30)), None);
        model.expect_nothing();
        assert_eq!(model.lost_for(second), None);
        restarted.at = at(10);
        model.take(News::Sample(Box::new(restarted)));
        assert_eq!((model.measured, model.history[1]), (2, 0.0));
    }

    #[test]
    fn the_graph_has_a_greatest_length() {
        let start = Instant::now();
        let mut model = Model::default();
        for n in 0..HISTORY_MAX as u64 + 10 {
            model.take(News::Sample(Box::new(sample(start + Duration::from_secs(n), 1, n))));
        }
        assert_eq!(model.history.len(), HISTORY_MAX);
    }
}
