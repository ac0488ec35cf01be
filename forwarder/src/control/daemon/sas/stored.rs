//! The SAs of a file: made, given sequence numbers, and stored.
//!
//! There is no kernel whose counters and replay windows outlive this process. A directory is what they are otherwise
//! ([`store`]): a range of sequence numbers is on the disk before workers use the first of them, so that after a crash
//! numbers go on above all that can have been sent; what was received is written once a second.
//!
//! A disk may take any time. Only this thread waits for it, which has no capabilities: workers without numbers drop what
//! they would have to protect, and the control thread goes on.
//!
//! An SA for sending whose key has no file is not used: the key may have been. One for receiving gets a file, and its key is
//! none for sending from then on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{NAMED_MAX, Report, Shared, TICK, WAIT};
use crate::control::config::xfrm::{Identity, StaticState, StaticXfrm};
use crate::control::process::privilege;
use crate::control::xfrm::store::{KeyId, NEVER_SENT, Record, Store};
use crate::control::xfrm::workers::WorkersState;
use crate::ipsec::{InboundState, KmState, Order, OutboundState, Sad};
use crate::tables::XfrmStates;

/// Numbers that are reserved at once: at first and at least, and at most. More at once mean fewer writes, and more that are
/// not used if the process is killed.
const RANGE: [u64; 2] = [1 << 17, 1 << 24];
/// More are reserved when less than this part of a range is left.
const LOW: u64 = 2;
/// A range that was used up faster is followed by one of twice the length, and one that lasted this many times as long by
/// one of half the length.
const FAST: Duration = Duration::from_secs(1);
const SLOW: u32 = 16;
/// Without ESN, the last number (RFC 4303 2.2).
const SEQ_MAX: u64 = u32::MAX as u64;
/// With ESN: the number after it is the mark of a closed sequence.
const ESN_MAX: u64 = u64::MAX - 2;
/// How often it is stored what was received.
const STORE: Duration = Duration::from_secs(1);
/// Until the next attempt after one that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long workers may go on with SAs that the file does not have any more: until they have the others.
const REPLACED: Duration = Duration::from_secs(1);

/// What the workers do with an SA.
enum Kind {
    Inbound(Arc<InboundState>),
    Outbound(Arc<OutboundState>),
}

/// An SA of the file.
struct Stored {
    kind: Kind,
    identity: Identity,
    is_local: bool,
    name: String,
    record: Record,
    /// Length of the range that was reserved last, and when that was.
    range: u64,
    reserved_at: Instant,
    stored_at: Instant,
    retry_at: Option<Instant>,
    /// All numbers have been reserved.
    is_at_end: bool,
    /// Why something could not be stored, until it is.
    failing: Option<String>,
    /// What [`trouble`](Self::trouble) was when it was looked after last.
    is_troubled: bool,
}

impl Stored {
    /// Makes an SA with what is stored for its key.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn make(state: &StaticState, is_local: bool, store: &Store) -> Result<Stored, String> {
        let id = state.key_id();
        let record = match store.read(&id).map_err(|error| error.to_string())? {
            Some(record) if !is_local || record.sent == NEVER_SENT => record,
            found if is_local => {
                if found.is_none() {
                    info!(
                        "IPsec: {}: its key is new in the state directory: packets that were received with it before would \
                         be accepted once more",
                        state.name()
                    );
                }
                let record =
                    found.map_or_else(Record::new, Ok).map_err(|error| error.to_string())?;
                // The other end sends with it.
                let record = Record { sent: NEVER_SENT, ..record };
                store.write(&id, &record, &state.name()).map_err(not_stored)?;
                record
            }
            _ => {
                return Err(format!(
                    "no sequence numbers are stored for its key in {}; if the key was never used, say so by `ferroute xfrm \
                     new-keys -c FILE`; otherwise take another key, at both ends",
                    store.path().display()
                ));
            }
        };
        let kind = match state.make_stored(&record, is_local)? {
            WorkersState::Inbound(state) => Kind::Inbound(state),
            WorkersState::Outbound(state) => Kind::Outbound(state),
        };
        let now = Instant::now();
        let mut made = Stored {
            kind,
            identity: state.identity(),
            is_local,
            name: state.name(),
            record,
            range: RANGE[0],
            reserved_at: now,
            stored_at: now,
            retry_at: None,
            is_at_end: false,
            failing: None,
            is_troubled: false,
        };
        // Before workers see it.
        made.reserve(&id, store, now)?;
        made.is_troubled = made.trouble().is_some();
        Ok(made)
    }

    fn is_outbound(&self) -> bool {
        matches!(self.kind, Kind::Outbound(_))
    }

    /// Workers have had packets for which there was no number.
    fn is_wanted(&self) -> bool {
        matches!(&self.kind, Kind::Outbound(state) if state.sequence().is_wanted())
    }

    /// Why it does not send, or what it received is not stored.
    fn trouble(&self) -> Option<&str> {
        match &self.kind {
            Kind::Outbound(_) if self.record.sent == NEVER_SENT => {
                Some("the other end sends with its key: take another key, at both ends")
            }
            Kind::Outbound(state) if self.is_at_end && !state.sequence().has_numbers() => {
                Some("all its sequence numbers have been used: take another key, at both ends")
            }
            _ => self.failing.as_deref(),
        }
    }

    /// Whether more numbers are to be reserved, or something is to be stored.
    fn is_due(&self, now: Instant) -> bool {
        if self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        match &self.kind {
            Kind::Outbound(state) => !self.is_at_end && state.sequence().left() <= self.range / LOW,
            Kind::Inbound(state) => {
                now.saturating_duration_since(self.stored_at) >= STORE
                    && state.replay().top() > self.record.received
            }
        }
    }

    /// Does what [is due](Self::is_due), and tells people whether that works. Returns whether that, or what became of the
    /// SA, is news for them.
    fn look_after(&mut self, id: &KeyId, store: &Store, now: Instant) -> bool {
        let was_failing = self.failing.is_some();
        if self.is_due(now) {
            let was_at_end = self.is_at_end;
            let done = if self.is_outbound() {
                self.reserve(id, store, now)
            } else {
                self.stored_at = now;
                self.store_received(id, store)
            };
            self.retry_at = if done.is_err() { now.checked_add(RETRY) } else { None };
            let name = &self.name;
            match (&done, &self.failing) {
                (Ok(()), Some(_)) => info!("IPsec: {name}: its sequence numbers are stored again"),
                (Err(error), None) => warn!("IPsec: {name}: {error}"),
                _ => {}
            }
            self.failing = done.err();
            if self.is_at_end && !was_at_end {
                warn!(
                    "IPsec: {name}: its last sequence numbers are reserved: replace its key, at both ends"
                );
            }
        }
        let is_troubled = self.trouble().is_some();
        let was_troubled = std::mem::replace(&mut self.is_troubled, is_troubled);
        [was_failing, was_troubled] != [self.failing.is_some(), is_troubled]
    }

    /// Reserves sequence numbers: first on the disk, then for the workers.
    fn reserve(&mut self, id: &KeyId, store: &Store, now: Instant) -> Result<(), String> {
        let Kind::Outbound(state) = &self.kind else { return Ok(()) };
        let sequence = state.sequence();
        let lasted = now.saturating_duration_since(self.reserved_at);
        let range = match lasted {
            _ if now == self.reserved_at => self.range,
            lasted if lasted < FAST => self.range * 2,
            lasted if lasted > FAST * SLOW => self.range / 2,
            _ => self.range,
        };
        let range = range.clamp(RANGE[0], RANGE[1]);
        let limit = if sequence.is_extended() { ESN_MAX } else { SEQ_MAX };
        let last = self.record.sent.saturating_add(range).min(limit);
        if last <= self.record.sent {
            self.is_at_end = true;
            return Ok(());
        }
        let record = Record { sent: last, ..self.record.clone() };
        store.write(id, &record, &self.name).map_err(not_stored)?;
        let first = self.record.sent + 1;
        (self.record, self.range, self.reserved_at) = (record, range, now);
        sequence.take_want();
        // What is left of the range before is kept, because this one continues it.
        sequence.extend(first..last + 1).map_err(|error| error.to_string())
    }

    fn store_received(&mut self, id: &KeyId, store: &Store) -> Result<(), String> {
        let Kind::Inbound(state) = &self.kind else { return Ok(()) };
        let received = state.replay().top();
        if received <= self.record.received {
            return Ok(());
        }
        let record = Record { received, ..self.record.clone() };
        store.write(id, &record, &self.name).map_err(not_stored)?;
        self.record = record;
        Ok(())
    }

    /// Ends it.
    fn end(&mut self, id: &KeyId, store: &Store) {
        if let Err(error) = self.store_end(id, store) {
            warn!("IPsec: {}: {error}", self.name);
        }
    }

    /// Stores exactly what was sent or received, so that nothing is lost that was reserved.
    fn store_end(&mut self, id: &KeyId, store: &Store) -> Result<(), String> {
        match &self.kind {
            Kind::Outbound(state) => {
                state.state().set_km_state(KmState::Dead);
                let left = state.sequence().close();
                if left.is_empty() || left.start > self.record.sent {
                    return Ok(());
                }
                let record = Record { sent: left.start.saturating_sub(1), ..self.record.clone() };
                store.write(id, &record, &self.name).map_err(not_stored)?;
                self.record = record;
                Ok(())
            }
            Kind::Inbound(state) => {
                state.state().set_km_state(KmState::Dead);
                self.store_received(id, store)
            }
        }
    }
}

fn not_stored(error: std::io::Error) -> String {
    format!("its sequence numbers cannot be stored: {error}")
}

/// The SAs of a file.
struct Keeper<'a> {
    shared: &'a Shared,
    notify: &'a dyn Fn(),
    store: &'a Store,
    file: Arc<StaticXfrm>,
    /// By key, for each is the key of one.
    sas: HashMap<KeyId, Stored>,
    /// Those that the file does not have any more, and since when.
    replaced: Vec<(Instant, KeyId, Stored)>,
    /// Why the others are not used.
    refused: HashMap<KeyId, String>,
    /// The report does not have what became of some, and when it was made.
    is_stale: bool,
    published_at: Instant,
    changes: Option<u64>,
    /// When those that are refused are looked at again: a key may be said to be new, and a disk may be repaired.
    again_at: Option<Instant>,
}

/// Runs until it is stopped.
pub(super) fn keep(shared: &Shared, store: &Store, notify: &dyn Fn()) {
    privilege::drop_all();
    let mut keeper = Keeper::new(shared, store, notify);
    while !shared.stopping.load(Relaxed) {
        keeper.follow_changes(Instant::now());
        thread::sleep(keeper.tick(Instant::now()));
    }
    keeper.end();
}

/// Looks after SAs for sending, those first whose packets workers drop. Returns whether there is news for people.
fn supply(sas: &mut HashMap<KeyId, Stored>, store: &Store, now: Instant) -> bool {
    let mut is_news = false;
    for is_wanted in [true, false] {
        for (id, sa) in sas.iter_mut().filter(|(_, sa)| sa.is_outbound()) {
            // What was reserved in the first turn is not wanted any more, and not due.
            if sa.is_wanted() || !is_wanted {
                is_news |= sa.look_after(id, store, now);
            }
        }
    }
    is_news
}

impl<'a> Keeper<'a> {
    fn new(shared: &'a Shared, store: &'a Store, notify: &'a dyn Fn()) -> Keeper<'a> {
        Keeper {
            shared,
            notify,
            store,
            file: Arc::default(),
            sas: HashMap::new(),
            replaced: Vec::new(),
            refused: HashMap::new(),
            is_stale: false,
            published_at: Instant::now(),
            changes: None,
            again_at: None,
        }
    }

    /// Follows the file if something has changed, or is to be tried again.
    fn follow_changes(&mut self, now: Instant) {
        let changes = self.shared.changes.load(Acquire);
        let is_changed = self.changes.replace(changes) != Some(changes);
        if is_changed || self.again_at.is_some_and(|at| now >= at) {
            self.follow_file(is_changed);
        }
    }

    /// Has the workers use the SAs that the file has now. `is_changed`: there may be other ones, or in another order.
    fn follow_file(&mut self, mut is_changed: bool) {
        self.file = self.shared.file.load_full().unwrap_or_default();
        let is_enabled =
            self.shared.is_enabled.load(Relaxed) && self.shared.conflict.load().is_none();
        let locals = self.shared.locals.load_full();
        let now = Instant::now();
        let mut old = std::mem::take(&mut self.sas);
        let mut refused = HashMap::new();
        let mut supplied_at = now;
        let file = Arc::clone(&self.file);
        for state in file.states().iter().filter(|_| is_enabled) {
            let (id, is_local) = (state.key_id(), locals.contains(state.dst()));
            if let Some(mut known) = old.remove(&id) {
                if known.identity == state.identity() && known.is_local == is_local {
                    self.sas.insert(id, known);
                    continue;
                }
                is_changed = true;
                // The same key: no number of the one before may be sent from now on.
                known.end(&id, self.store);
            }
            self.end_replaced(|_, other| *other == id);
            // The disk may be slow, and workers send on the others.
            if supplied_at.elapsed() >= TICK {
                supplied_at = Instant::now();
                for sas in [&mut self.sas, &mut old] {
                    self.is_stale |= supply(sas, self.store, supplied_at);
                }
            }
            match Stored::make(state, is_local, self.store) {
                Ok(made) => {
                    is_changed = true;
                    self.sas.insert(id, made);
                }
                Err(reason) => {
                    if self.refused.get(&id) != Some(&reason) {
                        warn!(
                            "IPsec: {}: {reason}; what it should protect is dropped",
                            state.name()
                        );
                    }
                    refused.insert(id, reason);
                }
            }
        }
        is_changed |= !old.is_empty() || refused != self.refused || !is_enabled;
        self.again_at = if refused.is_empty() { None } else { now.checked_add(RETRY) };
        self.refused = refused;
        self.replaced.extend(old.into_iter().map(|(id, sa)| (now, id, sa)));
        if !is_enabled {
            self.end_replaced(|_, _| true);
        }
        if is_changed {
            self.publish();
        }
    }

    /// Gives the SAs to the control thread, which gives them to the workers.
    fn publish(&mut self) {
        (self.is_stale, self.published_at) = (false, Instant::now());
        let (mut inbound, mut states) = (Vec::new(), XfrmStates::default());
        let mut kernels: Vec<String> = Vec::new();
        if let Some(conflict) = &*self.shared.conflict.load() {
            kernels.push(conflict.to_string());
        }
        for state in self.file.states() {
            let id = state.key_id();
            let known = self.sas.get(&id);
            match known.map(|sa| &sa.kind) {
                Some(Kind::Inbound(state)) => inbound.push(Arc::clone(state)),
                // Also one that is at its end: no other SA may send instead.
                Some(Kind::Outbound(state)) => states.outbound.push(Arc::clone(state)),
                None => {}
            }
            let refused = self.refused.get(&id).map(String::as_str);
            let reason = refused.or_else(|| known.and_then(Stored::trouble));
            if let Some(reason) = reason.filter(|_| kernels.len() < NAMED_MAX) {
                kernels.push(format!("{}: {reason}", state.name()));
            }
        }
        states.inbound = Sad::new(inbound, Order::OldestFirst);
        self.shared.report.store(Arc::new(Report { states: Arc::new(states), kernels }));
        (self.notify)();
    }

    /// Looks after the SAs; returns how long to wait until that is due again.
    ///
    /// The disk may be slow: what was received is written for one SA only before workers get more numbers to send.
    fn tick(&mut self, now: Instant) -> Duration {
        self.is_stale |= supply(&mut self.sas, self.store, now);
        let received = self.sas.iter_mut().filter(|(_, sa)| !sa.is_outbound() && sa.is_due(now));
        let longest_ago = received.min_by_key(|(_, sa)| sa.stored_at);
        let has_written = longest_ago.is_some();
        if let Some((id, sa)) = longest_ago {
            self.is_stale |= sa.look_after(id, self.store, now);
        }
        self.end_replaced(|since, _| now.saturating_duration_since(since) >= REPLACED);
        // Each report has the workers' tables compiled again.
        if self.is_stale && now.saturating_duration_since(self.published_at) >= RETRY {
            self.publish();
        }
        let sends = || self.sas.values().any(|sa| sa.is_outbound() && !sa.is_at_end);
        match has_written {
            true => Duration::ZERO,
            false if sends() => TICK,
            false => WAIT,
        }
    }

    /// Ends those that the file does not have any more, by when that began and by their keys.
    fn end_replaced(&mut self, is_over: impl Fn(Instant, &KeyId) -> bool) {
        for (_, id, mut sa) in self.replaced.extract_if(.., |(since, id, _)| is_over(*since, id)) {
            sa.end(&id, self.store);
        }
    }

    /// The workers have stopped.
    fn end(&mut self) {
        self.end_replaced(|_, _| true);
        self.sas.iter_mut().for_each(|(id, sa)| sa.end(id, self.store));
    }
}

#[cfg(test)]
mod tests;
