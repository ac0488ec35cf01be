//! Answers to the control socket, made on the threads of its clients.
//!
//! What is reported of ports and mirror comes from the last [`Snapshot`](super::snapshot::Snapshot). The
//! control thread is asked to renew it first; if it does not do so in time, the old one is used. The
//! control thread also makes the tables' pages: [`Supervisor::answer_pages`]. It does nothing else for
//! clients, and nothing that it owns is locked while a client is waited for.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

use super::Supervisor;
use super::links::DetailedLinks;
use super::metrics::Servers;
use super::reload::ReadOptions;
use super::snapshot::{Snapshot, Unmirrored, View};
use crate::control::api::page::{Cursor, Page, longest_prefix, page};
use crate::control::api::route_get::route_get;
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::control::api::rules::Rules;
use crate::control::api::server::{Answer, ControlHandler};
use crate::control::api::{
    Object, Request, Response, RouteGetRequest, ShowRequest, StatusReport, show,
};
use crate::control::config::ipnet::IpNet;
use crate::control::config::source::Source;
use crate::tables::{LOOPBACK_IFINDEX, Tables};
use crate::worker::slow_path::Wakeup;

/// Maximum requests pending at the control thread, and so clients waiting for it: fewer than may connect,
/// so that others find a place however long it takes.
const WAITING_MAX: usize = 48;
/// How long a client waits for a page; the control thread may be reading a large table again.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a report waits for a newer snapshot, and for workers.
pub(super) const REPORT_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a report waits that is requested while the daemon starts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time that the control thread spends on a page, apart from the last few entries.
const PAGE_TIME_MAX: Duration = Duration::from_millis(1);
/// Addresses that `route get` looks up at a time: some 50 µs, during which no memory of the tables is
/// reclaimed.
const LOOKUPS: usize = 128;

/// A request to the control thread.
pub(super) enum Ask {
    /// A page of a table.
    Page { request: Arc<ShowRequest>, from: Cursor, answer: Sender<Page> },
    /// A new snapshot.
    Snapshot(Sender<()>),
    /// The prefixes by which addresses are routed.
    Prefixes { addrs: Vec<IpAddr>, answer: Sender<Vec<Option<IpNet>>> },
    /// Options from the file that was read again.
    Reload { options: ReadOptions, answer: Sender<Response> },
}

/// The control thread's end: its clients' requests and the state that they see.
pub(super) struct Clients {
    asks: Receiver<Ask>,
    /// Requests from before this turn.
    asked: VecDeque<Ask>,
    pub(super) view: Arc<View>,
    pub(super) unmirrored: Unmirrored,
    /// `None`: clients cannot connect.
    servers: Option<Servers>,
}

impl Clients {
    pub(super) fn new(asks: Receiver<Ask>, view: Arc<View>) -> Clients {
        let unmirrored = Unmirrored::default();
        Clients { asks, asked: VecDeque::new(), view, unmirrored, servers: None }
    }

    /// Keeps the servers that clients connect to.
    pub(super) fn serve(&mut self, servers: Servers) {
        self.servers = Some(servers);
    }

    /// Clients that wait for a page, and later ones, get an error.
    pub(super) fn refuse(&mut self) {
        (self.asks, self.asked) = (never(), VecDeque::new());
    }

    /// Lets clients read the last copies of their captures and the last packets of their traces, and disconnects them.
    pub(super) fn finish(&mut self) {
        self.view.captures.finish();
        self.view.traces.finish();
        self.view.events.finish();
        self.servers = None;
    }
}

/// The clients' end.
#[derive(Clone)]
pub(super) struct Relay {
    pub(super) asks: Sender<Ask>,
    pub(super) wakeup: Arc<Wakeup>,
    /// Where the options come from, if that can be read again.
    pub(super) source: Option<Arc<Source>>,
    waiting: Arc<AtomicUsize>,
    pub(super) view: Arc<View>,
}

/// Creates both ends. `source`: of the options.
pub(super) fn relay(
    wakeup: Arc<Wakeup>,
    view: Arc<View>,
    source: Option<Source>,
) -> (Relay, Receiver<Ask>) {
    let (asks, receiver) = bounded(WAITING_MAX);
    let source = source.map(Arc::new);
    (Relay { asks, wakeup, source, waiting: Arc::default(), view }, receiver)
}

impl ControlHandler for Relay {
    fn handle(&self, request: Request) -> Answer {
        match request {
            Request::Status => Response::Status(Box::new(self.status().1)).into(),
            Request::Stat => Response::Stat(self.snapshot().stat()).into(),
            Request::Counters => Response::Counters(self.snapshot().counters()).into(),
            Request::Drops => Response::Drops(self.snapshot().drops()).into(),
            Request::Rules { format } => {
                self.count_offloaded();
                Answer::List(format, Box::new(Rules::new(self.snapshot().nft.clone(), format)))
            }
            Request::FlowFind(request) => {
                self.count_offloaded();
                self.find_flows(&request)
            }
            Request::FlowShow(request) => {
                self.count_offloaded();
                self.show_flows(request)
            }
            Request::FlowCount(filter) => self.count_flows(filter),
            Request::FlowTop(request) => self.top_flows(&request),
            Request::Latency { reset } => {
                Response::Latency(self.view.latency(&self.snapshot(), reset)).into()
            }
            Request::Capture(request) => {
                let snapshot = self.snapshot();
                self.view.capture(&snapshot, &request)
            }
            Request::Trace(request) => self.trace(&request),
            Request::Subscribe(request) => self.subscribe(request),
            Request::Reload => self.reload().into(),
            Request::Show(request) if request.details && request.object == Object::Link => {
                let format = request.format;
                Answer::List(format, Box::new(DetailedLinks::new(self.clone(), request)))
            }
            Request::Show(request) => {
                let format = request.format;
                Answer::List(format, Box::new(Table::new(self.clone(), request)))
            }
            Request::RouteGet(request) => match self.view.iif(&request) {
                Ok(iif) => {
                    let view = Arc::clone(&self.view);
                    Answer::List(request.format, Box::new(Lookups { view, request, iif, at: 0 }))
                }
                Err(why) => Response::error(why).into(),
            },
        }
    }
}

impl Relay {
    /// Counters of rules and flows include what the XDP program has forwarded until now.
    pub(super) fn count_offloaded(&self) {
        if let Some(offloads) = &self.view.snapshot().offloads {
            offloads.count_all();
        }
    }

    /// The state, and the snapshot that it is of.
    pub(super) fn status(&self) -> (Arc<Snapshot>, StatusReport) {
        let begun = Instant::now();
        let turns = self.view.snapshot().turns();
        let is_new = self.renew(REPORT_TIMEOUT);
        let snapshot = self.view.snapshot();
        let silent = snapshot.silent_since(&turns, begun + REPORT_TIMEOUT);
        let stalled = if is_new { None } else { self.view.stalled() };
        let status = snapshot.status(&silent, stalled);
        (snapshot, status)
    }

    /// The current state, or that of the control thread's last turn if it does not respond in time.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.renew(if self.view.has_served() { REPORT_TIMEOUT } else { START_TIMEOUT });
        self.view.snapshot()
    }

    /// Has the control thread make a new snapshot. Returns whether it did so in time.
    fn renew(&self, timeout: Duration) -> bool {
        let (answer, answered) = bounded(1);
        let sent = self.asks.try_send(Ask::Snapshot(answer)).is_ok();
        self.wakeup.wake();
        sent && answered.recv_timeout(timeout).is_ok()
    }

    /// Requests the first page.
    pub(super) fn first_page(&self, request: &Arc<ShowRequest>) -> Result<Page, ListError> {
        let asked = self.ask_page(request, Cursor::Start)?;
        self.wait_for(&asked)
    }

    fn ask_page(
        &self,
        request: &Arc<ShowRequest>,
        from: Cursor,
    ) -> Result<Receiver<Page>, ListError> {
        let (answer, asked) = bounded(1);
        let ask = Ask::Page { request: Arc::clone(request), from, answer };
        let sent = self.asks.try_send(ask);
        self.wakeup.wake();
        sent.map_err(|_| busy())?;
        Ok(asked)
    }

    fn wait_for(&self, asked: &Receiver<Page>) -> Result<Page, ListError> {
        let more = |count| (count < WAITING_MAX).then_some(count + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, more).map_err(|_| busy())?;
        let page = asked.recv_timeout(PAGE_TIMEOUT);
        self.waiting.fetch_sub(1, Relaxed);
        page.map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                ListError::Refused("the control thread does not answer; see `status`".into())
            }
            RecvTimeoutError::Disconnected => ListError::Refused("the daemon is stopping".into()),
        })
    }
}

impl Relay {
    /// The longest prefixes with a route that addresses are in, while there are no rules of policy routing.
    pub(super) fn prefixes(
        &self,
        mut addrs: Vec<IpAddr>,
    ) -> Result<HashMap<IpAddr, IpNet>, ListError> {
        let mut found = HashMap::new();
        while !addrs.is_empty() {
            let (answer, answered) = bounded(1);
            let ask = Ask::Prefixes { addrs: addrs.clone(), answer };
            let sent = self.asks.try_send(ask);
            self.wakeup.wake();
            sent.map_err(|_| busy())?;
            let prefixes = answered.recv_timeout(PAGE_TIMEOUT).map_err(|_| busy())?;
            // The control thread has looked up at least one.
            let looked_up = addrs.drain(..prefixes.len().clamp(1, addrs.len()));
            found.extend(looked_up.zip(prefixes).filter_map(|(addr, net)| Some((addr, net?))));
        }
        Ok(found)
    }
}

fn busy() -> ListError {
    ListError::Refused("the control thread is busy or stopping; try again".into())
}

/// A table, page by page.
struct Table {
    relay: Relay,
    request: Arc<ShowRequest>,
    /// `None`: at the beginning.
    next: Option<Receiver<Page>>,
}

impl Table {
    fn new(relay: Relay, request: ShowRequest) -> Table {
        Table { relay, request: Arc::new(request), next: None }
    }
}

impl List for Table {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let mut page = match self.next.take() {
            Some(asked) => self.relay.wait_for(&asked)?,
            None => self.relay.first_page(&self.request)?,
        };
        // The next page is made while this one is written.
        if let Some(from) = page.next.take() {
            self.next = Some(self.relay.ask_page(&self.request, from)?);
        }
        show::write(&page, &self.request, to)?;
        Ok(self.next.is_some())
    }
}

/// Answers to `route get`, from the tables that workers use.
struct Lookups {
    view: Arc<View>,
    request: RouteGetRequest,
    iif: u32,
    at: usize,
}

impl List for Lookups {
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let rest = &self.request.addrs[self.at..];
        let some = &rest[..rest.len().min(LOOKUPS)];
        let answers = self.view.look_up(some, &self.request, self.iif);
        answers.iter().try_for_each(|answer| to.row(answer))?;
        self.at += some.len();
        Ok(self.at < self.request.addrs.len())
    }
}

impl View {
    /// The ifindex by which the packets asked about come in.
    fn iif(&self, request: &RouteGetRequest) -> Result<u32, String> {
        // As `ip` does: a packet of our own, which is received on lo.
        let Some(name) = &request.iif else { return Ok(LOOPBACK_IFINDEX) };
        let tables = self.tables.load();
        let link = tables.links.named(name);
        Ok(link.ok_or_else(|| format!("route get: no interface {name}"))?.ifindex)
    }

    fn look_up(
        &self,
        addrs: &[IpAddr],
        request: &RouteGetRequest,
        iif: u32,
    ) -> Vec<crate::control::api::route_get::RouteGet> {
        self.with_tables(|tables| {
            let get = |addr: &IpAddr| route_get(tables, *addr, request.from, iif, request.mark);
            addrs.iter().map(get).collect()
        })
    }

    /// Looks up in the tables that workers use; during that, none of their memory is reclaimed.
    pub(super) fn with_tables<T>(&self, look_up: impl FnOnce(&Tables) -> T) -> T {
        // One reader for all clients: they look up in turn, and no one holds it while writing an answer.
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // As a worker does: online first, then the newest tables.
        reader.online();
        let tables = self.tables.load();
        let found = look_up(&tables);
        reader.offline();
        found
    }
}

impl Supervisor {
    /// Answers requests that clients sent before the turn began, and thus before the kernel's messages were
    /// read: a client that changes a route and then asks sees the change. Ends when `budget` is spent,
    /// where a page takes at most [`PAGE_TIME_MAX`]. What is left, and new requests, are for the next turn, for
    /// which it wakes this thread. Called once per turn: this is how `status` detects a stalled thread.
    pub(super) fn answer_pages(&mut self, budget: Duration) {
        self.clients.view.has_turned();
        let until = Instant::now() + budget;
        let mut is_new = false;
        while let Some(ask) = self.clients.asked.pop_front() {
            match ask {
                Ask::Snapshot(answer) => {
                    // One snapshot serves all clients that asked for one.
                    if !std::mem::replace(&mut is_new, true) {
                        self.publish_report();
                    }
                    // The client may be gone.
                    let _ = answer.send(());
                }
                Ask::Page { request, from, answer } => {
                    let until = until.min(Instant::now() + PAGE_TIME_MAX);
                    let state = self.mirror.state();
                    let page = page(state, request.object, &request.filter, from, until);
                    let _ = answer.send(page);
                }
                Ask::Prefixes { addrs, answer } => {
                    let until = until.min(Instant::now() + PAGE_TIME_MAX);
                    let state = self.mirror.state();
                    let mut prefixes = Vec::new();
                    for addr in &addrs {
                        prefixes.push(longest_prefix(state, *addr));
                        if Instant::now() >= until {
                            break;
                        }
                    }
                    let _ = answer.send(prefixes);
                }
                Ask::Reload { options, answer } => {
                    // Applied at the end of the turn.
                    self.reloads.pending.push_back((options, answer));
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        let room = WAITING_MAX.saturating_sub(self.clients.asked.len());
        self.clients.asked.extend(self.clients.asks.try_iter().take(room));
        if !self.clients.asked.is_empty() {
            self.wakeup.wake();
        }
    }
}
