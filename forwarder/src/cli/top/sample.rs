//! The daemon's answers, once or again and again on threads of their own.
//!
//! The counters are those that workers share anyway (`counters`); an older daemon is asked for `stat`, for which workers
//! do a little work. Flows cost a pass over the tables of all flows before and after the interval, on the thread of the client: they are asked for
//! only while they are shown, and less often if that takes long.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::cli::unexpected;
use crate::control::api::client::{Client, ClientError};
use crate::control::api::flows::{FlowTopReport, FlowTopRequest, RateKey};
use crate::control::api::{LatencyReport, Request, Response, StatReport, StatusReport};

/// How long to wait before the next attempt to reach a daemon.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The daemon spends at most one part in this many of the time on counting flows.
const FLOW_COST_RECIPROCAL: u32 = 20;

/// The counters of one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When they were asked for.
    pub at: Instant,
    pub status: StatusReport,
    pub stat: StatReport,
    pub latency: LatencyReport,
}

/// Asks for the counters, on one connection.
#[derive(Debug)]
pub struct Sampler {
    client: Client,
    /// The daemon is older and has no `counters`.
    is_older: bool,
}

impl Sampler {
    /// Connects.
    ///
    /// # Errors
    /// If no daemon listens.
    pub fn connect(control: &Path) -> Result<Sampler> {
        Ok(Sampler { client: Client::connect(control)?, is_older: false })
    }

    /// Asks.
    ///
    /// # Errors
    /// If the daemon ends or refuses.
    pub fn sample(&mut self) -> Result<Sample> {
        let status = match self.client.ask(&Request::Status)? {
            Response::Status(report) => *report,
            other => return Err(unexpected(&other)),
        };
        let at = Instant::now();
        let stat = self.counters()?;
        let latency = match self.client.ask(&Request::Latency { reset: false })? {
            Response::Latency(report) => report,
            other => return Err(unexpected(&other)),
        };
        Ok(Sample { at, status, stat, latency })
    }

    fn counters(&mut self) -> Result<StatReport> {
        if !self.is_older {
            match self.client.ask(&Request::Counters) {
                Ok(Response::Counters(report)) => return Ok(report),
                Ok(other) => return Err(unexpected(&other)),
                Err(ClientError::Refused(why)) if why.contains("unknown variant `counters`") => {
                    self.is_older = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        match self.client.ask(&Request::Stat)? {
            Response::Stat(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }
}

/// Which flows are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowWish {
    /// How long packets are counted, in milliseconds.
    pub interval_ms: u32,
    /// Number of flows.
    pub flows: u32,
    /// Which rate is looked at.
    pub sort: RateKey,
}

/// Asks for flows, and waits for the interval in which they are counted.
///
/// # Errors
/// If the daemon ends, refuses, or counts for others already.
pub fn flows(client: &mut Client, wish: FlowWish) -> Result<FlowTopReport> {
    let FlowWish { interval_ms, flows, sort } = wish;
    let filter = Default::default();
    let request = Request::FlowTop(FlowTopRequest { interval_ms, flows, sort, filter });
    match client.ask(&request)? {
        Response::FlowTop(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

/// What the threads report.
#[derive(Debug)]
pub enum News {
    Sample(Box<Sample>),
    /// There is no answer, and why; the question is repeated.
    Lost(String),
    Flows(FlowTopReport),
    /// Flows cannot be had, and why; the question is repeated.
    NoFlows(String),
}

/// What is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Milliseconds between two questions; `None`: none are asked.
    pub interval_ms: Option<u32>,
    /// `None`: no flows.
    pub flows: Option<FlowWish>,
}

/// Two threads that ask, on connections of their own. They end when this is dropped.
#[derive(Debug)]
pub struct Feed {
    counters: Sender<Option<u32>>,
    flows: Sender<Option<FlowWish>>,
    wish: Wish,
}

impl Feed {
    /// Starts them. Nothing is asked before [`Feed::set`].
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start<T: From<News> + Send + 'static>(control: &Path, news: &Sender<T>) -> Result<Feed> {
        let (counters, wanted) = unbounded();
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        let (path, to) = (control.to_owned(), news.clone());
        thread("top-counters").spawn(move || ask_counters(&path, &wanted, &to))?;
        let (flows, wanted) = unbounded();
        let (path, to) = (control.to_owned(), news.clone());
        thread("top-flows").spawn(move || ask_flows(path, &wanted, &to))?;
        Ok(Feed { counters, flows, wish: Wish { interval_ms: None, flows: None } })
    }

    /// Changes what is asked, from now on.
    pub fn set(&mut self, wish: Wish) {
        // If a thread has ended, its end of `news` is closed, which the reader of that sees.
        if wish.interval_ms != self.wish.interval_ms {
            let _ = self.counters.send(wish.interval_ms);
        }
        if wish.flows != self.wish.flows {
            let _ = self.flows.send(wish.flows);
        }
        self.wish = wish;
    }
}

/// Waits for a wish, or until `end` while there is one. Returns whether it is time to ask; `None`: at the end.
fn next<W: Copy>(wish: &mut Option<W>, wanted: &Receiver<Option<W>>, end: Instant) -> Option<bool> {
    let change = match wish {
        None => wanted.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(_) => wanted.recv_deadline(end),
    };
    match change {
        Ok(new) => {
            // A first wish is fulfilled at once, a changed one when it is time.
            let was_none = wish.is_none();
            *wish = new;
            Some(was_none && wish.is_some())
        }
        Err(RecvTimeoutError::Timeout) => Some(true),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn ask_counters<T: From<News>>(control: &Path, wanted: &Receiver<Option<u32>>, news: &Sender<T>) {
    let (mut sampler, mut interval_ms) = (None::<Sampler>, None);
    let (mut last, mut is_lost) = (Instant::now(), false);
    loop {
        let pause = match interval_ms {
            _ if is_lost => RETRY_INTERVAL,
            interval_ms => Duration::from_millis(interval_ms.unwrap_or(0).into()),
        };
        match next(&mut interval_ms, wanted, last + pause) {
            None => return,
            Some(false) => continue,
            Some(true) => last = Instant::now(),
        }
        let answer = match &mut sampler {
            Some(sampler) => sampler.sample(),
            None => Sampler::connect(control).and_then(|new| sampler.insert(new).sample()),
        };
        is_lost = answer.is_err();
        let answer = answer.map(|sample| News::Sample(Box::new(sample))).unwrap_or_else(|error| {
            sampler = None;
            News::Lost(format!("{error:#}"))
        });
        if news.send(answer.into()).is_err() {
            return;
        }
    }
}

fn ask_flows<T: From<News>>(
    control: PathBuf,
    wanted: &Receiver<Option<FlowWish>>,
    news: &Sender<T>,
) {
    let (mut client, mut wish) = (None::<Client>, None::<FlowWish>);
    let mut due = Instant::now();
    loop {
        match next(&mut wish, wanted, due) {
            None => return,
            Some(false) => continue,
            Some(true) => {}
        }
        let Some(asked) = wish else { continue };
        let begun = Instant::now();
        let answer = match &mut client {
            Some(client) => flows(client, asked),
            None => Client::connect(&control)
                .map_err(anyhow::Error::from)
                .and_then(|new| flows(client.insert(new), asked)),
        };
        due = Instant::now();
        let answer = match answer {
            Ok(report) => {
                let counted = Duration::from_millis(asked.interval_ms.into());
                let cost = begun.elapsed().saturating_sub(counted);
                due += (cost * FLOW_COST_RECIPROCAL).saturating_sub(counted);
                News::Flows(report)
            }
            Err(error) => {
                client = None;
                due += RETRY_INTERVAL;
                News::NoFlows(format!("{error:#}"))
            }
        };
        if news.send(answer.into()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_wish_is_fulfilled_at_once_and_none_waits() {
        let (sender, wanted) = unbounded();
        let (mut wish, far) = (None::<u32>, Instant::now() + Duration::from_secs(600));
        sender.send(Some(7)).expect("open");
        assert_eq!((next(&mut wish, &wanted, far), wish), (Some(true), Some(7)));
        // It changes: not yet time.
        sender.send(Some(8)).expect("open");
        assert_eq!((next(&mut wish, &wanted, far), wish), (Some(false), Some(8)));
        assert_eq!(next(&mut wish, &wanted, Instant::now()), Some(true));
        sender.send(None).expect("open");
        assert_eq!((next(&mut wish, &wanted, far), wish), (Some(false), None));
        drop(sender);
        assert_eq!(next(&mut wish, &wanted, far), None);
    }

    #[test]
    fn without_a_daemon_the_question_is_repeated_and_the_threads_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (to, news) = unbounded::<News>();
        let mut feed = Feed::start(&directory.path().join("no"), &to).expect("threads");
        drop(to);
        let flows = FlowWish { interval_ms: 100, flows: 1, sort: RateKey::Bits };
        feed.set(Wish { interval_ms: Some(100), flows: Some(flows) });
        let (mut lost, mut no_flows) = (0, 0);
        while lost < 2 || no_flows < 2 {
            match news.recv_timeout(Duration::from_secs(60)).expect("news") {
                News::Lost(why) => {
                    assert!(why.contains("no ferroute runs here"), "{why}");
                    lost += 1;
                }
                News::NoFlows(_) => no_flows += 1,
                other => panic!("{other:?}"),
            }
        }
        drop(feed);
        while news.recv_timeout(Duration::from_secs(60)).is_ok() {}
        assert_eq!(news.try_recv().map(|_| ()), Err(crossbeam_channel::TryRecvError::Disconnected));
    }
}
