//! The clients of the control socket. Their number is limited; when the limit is reached, an idle client is
//! disconnected for a new one.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::{LargeRequests, Shared, Waits};
use super::{Envelope, Response};
use crate::control::process::limits;

/// Connections at one time.
pub(super) const CLIENTS_MAX: usize = 64;
/// Threads for clients: one that was disconnected may take a moment to end.
const THREADS_MAX: usize = limits::CLIENT_THREADS_MAX;
const _: () = assert!(THREADS_MAX > CLIENTS_MAX);
/// How long a new client waits for a place if no client can be disconnected at once.
const PLACE_TIMEOUT: Duration = Duration::from_millis(250);
/// How often it is checked whether there is a place meanwhile.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Age at which a client whose request has not arrived completely may be disconnected.
const REQUEST_AGE_MIN: Duration = Duration::from_millis(100);
/// Age at which a client that does not read its answer may be disconnected.
const ANSWER_AGE_MIN: Duration = Duration::from_secs(1);

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    list: Mutex<List>,
    left: Condvar,
    large: Arc<LargeRequests>,
}

#[derive(Debug, Default)]
struct List {
    places: Vec<Arc<Shared>>,
    threads: usize,
}

impl List {
    /// Makes room for one more client, by disconnecting another if necessary. Returns whether there is room.
    fn make_place(&mut self) -> bool {
        self.threads < THREADS_MAX
            && (self.places.len() < CLIENTS_MAX || disconnect_longest_idle(&mut self.places))
    }
}

/// A client's place. It is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<Clients>,
    pub(super) shared: Arc<Shared>,
}

impl Clients {
    /// Gives a connection a place, if necessary that of a waiting client. `None`: there is none; the client
    /// gets an error and is disconnected.
    pub(super) fn admit(self: &Arc<Self>, stream: UnixStream) -> Option<Place> {
        let shared = Arc::new(Shared::new(stream).ok()?);
        let until = Instant::now() + PLACE_TIMEOUT;
        let mut list = self.list();
        while !list.make_place() {
            if Instant::now() >= until {
                drop(list);
                say(&shared.stream, "too many clients at once; try again");
                return None;
            }
            let waited = self.left.wait_timeout(list, CHECK_INTERVAL);
            list = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        list.threads += 1;
        list.places.push(Arc::clone(&shared));
        Some(Place { clients: Arc::clone(self), shared })
    }

    /// Disconnects a waiting client. Returns whether there was one.
    pub(super) fn disconnect_idle(&self) -> bool {
        disconnect_longest_idle(&mut self.list().places)
    }

    /// Threads that serve clients.
    pub(super) fn threads(&self) -> usize {
        self.list().threads
    }

    /// Makes room for one more client when descriptors are scarce: disconnects an idle one, and waits for its
    /// thread to end. Returns whether one more may be served; the only client always may.
    pub(super) fn replace_idle(&self) -> bool {
        let mut list = self.list();
        let before = list.threads;
        if before == 0 {
            return true;
        }
        if !disconnect_longest_idle(&mut list.places) {
            return false;
        }
        let still = |list: &mut List| list.threads >= before;
        let waited = self.left.wait_timeout_while(list, PLACE_TIMEOUT, still);
        waited.unwrap_or_else(PoisonError::into_inner).0.threads < before
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // No panic while this is held can leave the list inconsistent.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The permits for large requests, shared by all clients.
    pub(super) fn large(&self) -> Arc<LargeRequests> {
        Arc::clone(&self.clients.large)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.clients.list();
        list.places.retain(|place| !Arc::ptr_eq(place, &self.shared));
        list.threads -= 1;
        self.clients.left.notify_all();
    }
}

/// Sends a client an error that answers no request, without blocking.
pub(super) fn say(mut stream: &UnixStream, message: &str) {
    // What does not fit into its buffer is lost; the connection is closed next.
    let _ = stream.set_nonblocking(true);
    if let Ok(mut line) = serde_json::to_vec(&Envelope::new(Response::error(message))) {
        line.push(b'\n');
        let _ = stream.write(&line);
    }
}

/// Disconnects the client that has waited longest. Returns whether there was one.
fn disconnect_longest_idle(places: &mut Vec<Arc<Shared>>) -> bool {
    let now = Instant::now();
    let mut waiting: Vec<(u8, Instant, usize)> = places
        .iter()
        .enumerate()
        .filter_map(|(at, place)| rank(place.waits(), now).map(|(rank, since)| (rank, since, at)))
        .collect();
    waiting.sort_unstable();
    // A client whose request has arrived is not idle; its thread has just not run yet.
    let idle = waiting.iter().find(|(rank, _, at)| *rank != 0 || !places[*at].has_input());
    let Some(&(rank, _, at)) = idle else { return false };
    let place = places.swap_remove(at);
    if rank < 2 {
        // Not in the middle of an answer.
        say(&place.stream, "too many clients at once: the one idle longest was disconnected");
    }
    let _: io::Result<()> = place.stream.shutdown(Shutdown::Both);
    true
}

/// Priority for disconnecting a client: lowest rank first, and within a rank the one that has waited
/// longest.
fn rank(waits: Waits, now: Instant) -> Option<(u8, Instant)> {
    let is_older = |since: Instant, than: Duration| now.saturating_duration_since(since) >= than;
    match waits {
        Waits::No => None,
        Waits::Request(since) => Some((0, since)),
        Waits::Rest(since) => is_older(since, REQUEST_AGE_MIN).then_some((1, since)),
        Waits::Reader(since) => is_older(since, ANSWER_AGE_MIN).then_some((2, since)),
    }
}
