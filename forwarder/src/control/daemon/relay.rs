//! Answers to the control socket, made on the threads of its clients.
//!
//! What is told of ports and mirror comes from the last [`Snapshot`](super::snapshot::Snapshot),
//! which the control thread is asked to renew and which has to do when it does not get to that.
//! Tables come from it page by page: [`Supervisor::answer_pages`]. Nothing else is asked of it, and
//! nothing of what it owns is held while a client is waited for.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

use super::Supervisor;
use super::links::DetailedLinks;
use super::snapshot::{Snapshot, Unmirrored, View};
use crate::control::api::page::{Cursor, Page, page};
use crate::control::api::route_get::route_get;
use crate::control::api::rows::{List, ListError, RowWriter};
use crate::control::api::server::{Answer, ControlHandler, Server};
use crate::control::api::{Object, Request, Response, RouteGetRequest, ShowRequest, show};
use crate::worker::slow_path::Wakeup;

/// Questions under way to the control thread at most: as many clients as may wait for it, so that
/// there are places for others however long it takes.
const WAITING_MAX: usize = 48;
/// How long a client waits for a page; the control thread may be reading a large table again.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a report waits for what is newer than the last snapshot, and for workers.
pub(super) const REPORT_TIMEOUT: Duration = Duration::from_millis(200);
/// How long one waits that comes while the daemon starts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// What one page costs the control thread at most, but for its last few entries.
const PAGE_TIME: Duration = Duration::from_millis(1);
/// Addresses that `route get` looks up at once: some 50 µs during which no memory of the tables is
/// reclaimed.
const LOOKUPS: usize = 128;
/// The loopback interface has this number in every namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// A question to the control thread.
pub(super) enum Ask {
    /// A page of a table.
    Page { request: Arc<ShowRequest>, from: Cursor, answer: Sender<Page> },
    /// A snapshot of now.
    Snapshot(Sender<()>),
}

/// The control thread's end: what clients ask of it, and what they see of its state.
pub(super) struct Clients {
    asks: Receiver<Ask>,
    /// What was asked before this turn.
    asked: VecDeque<Ask>,
    pub(super) view: Arc<View>,
    pub(super) unmirrored: Unmirrored,
    /// `None`: nobody can connect.
    server: Option<Server>,
}

impl Clients {
    pub(super) fn new(asks: Receiver<Ask>, view: Arc<View>) -> Clients {
        let unmirrored = Unmirrored::default();
        Clients { asks, asked: VecDeque::new(), view, unmirrored, server: None }
    }

    /// Keeps what clients connect to.
    pub(super) fn serve(&mut self, server: Server) {
        self.server = Some(server);
    }

    /// Clients that wait for a page, and those to come, get an error.
    pub(super) fn refuse(&mut self) {
        (self.asks, self.asked) = (never(), VecDeque::new());
    }

    /// Lets clients take what they were promised of captures, and disconnects them.
    pub(super) fn finish(&mut self) {
        self.view.captures.finish();
        self.server = None;
    }
}

/// The clients' end.
#[derive(Clone)]
pub(super) struct Relay {
    asks: Sender<Ask>,
    wakeup: Arc<Wakeup>,
    waiting: Arc<AtomicUsize>,
    pub(super) view: Arc<View>,
}

/// Makes both ends.
pub(super) fn relay(wakeup: Arc<Wakeup>, view: Arc<View>) -> (Relay, Receiver<Ask>) {
    let (asks, receiver) = bounded(WAITING_MAX);
    (Relay { asks, wakeup, waiting: Arc::default(), view }, receiver)
}

impl ControlHandler for Relay {
    fn handle(&self, request: Request) -> Answer {
        match request {
            Request::Status => self.status().into(),
            Request::Stat => Response::Stat(self.snapshot().stat()).into(),
            Request::Drops => Response::Drops(self.snapshot().drops()).into(),
            Request::Latency { reset } => {
                Response::Latency(self.view.latency(&self.snapshot(), reset)).into()
            }
            Request::Capture(request) => {
                let snapshot = self.snapshot();
                self.view.capture(&snapshot, &request)
            }
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
    fn status(&self) -> Response {
        let begun = Instant::now();
        let turns = self.view.snapshot().turns();
        let told = self.renew(REPORT_TIMEOUT);
        let snapshot = self.view.snapshot();
        let silent = snapshot.silent_since(&turns, begun + REPORT_TIMEOUT);
        let stalled = if told { None } else { self.view.stalled() };
        Response::Status(snapshot.status(&silent, stalled))
    }

    /// The state of now, or of the control thread's last turn if it does not get to it.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.renew(if self.view.has_served() { REPORT_TIMEOUT } else { START_TIMEOUT });
        self.view.snapshot()
    }

    /// Has the control thread make a new snapshot. Whether it did so in time.
    fn renew(&self, patience: Duration) -> bool {
        let (answer, answered) = bounded(1);
        let sent = self.asks.try_send(Ask::Snapshot(answer)).is_ok();
        self.wakeup.wake();
        sent && answered.recv_timeout(patience).is_ok()
    }

    /// Asks for the first page.
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
        // The next one is made while this one is written.
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
    /// The interface that packets asked about come in by.
    fn iif(&self, request: &RouteGetRequest) -> Result<u32, String> {
        // As `ip` asks: a packet of our own, which comes in by lo.
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
        // One reader for all clients: they look up by turns, and none while it writes.
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // As a worker: first online, then the newest tables.
        reader.online();
        let tables = self.tables.load();
        let get = |addr: &IpAddr| route_get(&tables, *addr, request.from, iif, request.mark);
        let answers = addrs.iter().map(get).collect();
        reader.offline();
        answers
    }
}

impl Supervisor {
    /// Answers what clients asked of this thread before the turn began, and so before it heard the
    /// kernel: who changes a route and asks then is told of it. Ends when `budget` is spent, a page
    /// being at most [`PAGE_TIME`]; what is left, and what has come, is for the next turn, for which
    /// it rings. Called once a turn: it is by this that `status` sees that there are turns.
    pub(super) fn answer_pages(&mut self, budget: Duration) {
        self.clients.view.has_turned();
        let until = Instant::now() + budget;
        let mut is_new = false;
        while let Some(ask) = self.clients.asked.pop_front() {
            match ask {
                Ask::Snapshot(answer) => {
                    // One serves all who asked.
                    if !std::mem::replace(&mut is_new, true) {
                        self.publish_report();
                    }
                    // The client may be gone.
                    let _ = answer.send(());
                }
                Ask::Page { request, from, answer } => {
                    let until = until.min(Instant::now() + PAGE_TIME);
                    let state = self.mirror.state();
                    let page = page(state, request.object, &request.filter, from, until);
                    let _ = answer.send(page);
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
