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

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{NAMED_MAX, Report, Shared, TICK, WAIT};
use crate::control::config::xfrm::{StaticState, StaticXfrm};
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
    /// What it is, without its keys.
    config: String,
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
                return Err(
                    "no sequence numbers are stored for its key; if the key was never used, say so by `ferroute xfrm \
                     new-keys -c FILE`; otherwise take another key, at both ends"
                        .to_owned(),
                );
            }
        };
        let kind = match state.make_stored(&record, is_local)? {
            WorkersState::Inbound(state) => Kind::Inbound(state),
            WorkersState::Outbound(state) => Kind::Outbound(state),
        };
        let now = Instant::now();
        let mut made = Stored {
            kind,
            config: state.config_text(),
            is_local,
            name: state.name(),
            record,
            range: RANGE[0],
            reserved_at: now,
            stored_at: now,
            retry_at: None,
            is_at_end: false,
        };
        // Before workers see it.
        made.reserve(&id, store, now)?;
        Ok(made)
    }

    /// Whether the workers have a use for a wider or an earlier range, or there is something to be stored.
    fn look_after(&mut self, id: &KeyId, store: &Store, now: Instant) -> Result<(), String> {
        if self.retry_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        let done = match &self.kind {
            Kind::Outbound(state) => match state.sequence().left() <= self.range / LOW {
                true => self.reserve(id, store, now),
                false => Ok(()),
            },
            Kind::Inbound(_) if now.saturating_duration_since(self.stored_at) >= STORE => {
                self.stored_at = now;
                self.store_received(id, store)
            }
            Kind::Inbound(_) => Ok(()),
        };
        self.retry_at = if done.is_err() { now.checked_add(RETRY) } else { None };
        done
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

    /// Ends it. Stores exactly what was sent or received, so that nothing is lost that was reserved.
    fn end(&mut self, id: &KeyId, store: &Store) -> Result<(), String> {
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
    /// Keys that could not be looked after, about which something was said.
    failing: HashSet<KeyId>,
    changes: Option<u64>,
    /// When those that are refused are looked at again: a key may be said to be new, and a disk may be repaired.
    again_at: Option<Instant>,
}

/// Runs until it is stopped.
pub(super) fn keep(shared: &Shared, store: &Store, notify: &dyn Fn()) {
    privilege::drop_all();
    let mut keeper = Keeper::new(shared, store, notify);
    while !shared.stopping.load(Relaxed) {
        let changes = shared.changes.load(Acquire);
        let is_due = keeper.again_at.is_some_and(|at| Instant::now() >= at);
        if keeper.changes.replace(changes) != Some(changes) || is_due {
            keeper.follow_file(!is_due);
        }
        let sends = keeper.tick(Instant::now());
        thread::sleep(if sends { TICK } else { WAIT });
    }
    keeper.end();
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
            failing: HashSet::new(),
            changes: None,
            again_at: None,
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
        let file = Arc::clone(&self.file);
        for state in file.states().iter().filter(|_| is_enabled) {
            let (id, is_local) = (state.key_id(), locals.contains(state.dst()));
            if let Some(mut known) = old.remove(&id) {
                if known.config == state.config_text() && known.is_local == is_local {
                    self.sas.insert(id, known);
                    continue;
                }
                is_changed = true;
                // The same key: no number of the one before may be sent from now on.
                if let Err(error) = known.end(&id, self.store) {
                    warn!("IPsec: {}: {error}", known.name);
                }
            }
            self.end_replaced(|other| *other == id);
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
            self.end_replaced(|_| true);
        }
        if is_changed {
            self.publish();
        }
    }

    /// Gives the SAs to the control thread, which gives them to the workers.
    fn publish(&self) {
        let (mut inbound, mut states) = (Vec::new(), XfrmStates::default());
        let mut kernels: Vec<String> = Vec::new();
        if let Some(conflict) = &*self.shared.conflict.load() {
            kernels.push(conflict.to_string());
        }
        for state in self.file.states() {
            let id = state.key_id();
            match self.sas.get(&id).map(|sa| (&sa.kind, sa.is_at_end)) {
                Some((Kind::Inbound(state), _)) => inbound.push(Arc::clone(state)),
                Some((Kind::Outbound(state), _)) => states.outbound.push(Arc::clone(state)),
                None => {}
            }
            if let Some(reason) = self.refused.get(&id).filter(|_| kernels.len() < NAMED_MAX) {
                kernels.push(format!("{}: {reason}", state.name()));
            }
        }
        states.inbound = Sad::new(inbound, Order::OldestFirst);
        self.shared.report.store(Arc::new(Report { states: Arc::new(states), kernels }));
        (self.notify)();
    }

    /// Looks after the SAs; returns whether workers send on one.
    fn tick(&mut self, now: Instant) -> bool {
        let mut sends = false;
        for (id, sa) in &mut self.sas {
            sends |= matches!(sa.kind, Kind::Outbound(_)) && !sa.is_at_end;
            let was_at_end = sa.is_at_end;
            match sa.look_after(id, self.store, now) {
                Ok(()) => {
                    if self.failing.remove(id) {
                        info!("IPsec: {}: its sequence numbers are stored again", sa.name);
                    }
                }
                Err(error) => {
                    if self.failing.insert(id.clone()) {
                        warn!("IPsec: {}: {error}", sa.name);
                    }
                }
            }
            if sa.is_at_end && !was_at_end {
                warn!(
                    "IPsec: {}: its last sequence numbers are reserved: replace its key, at both ends",
                    sa.name
                );
            }
        }
        self.end_replaced_since(now);
        sends
    }

    fn end_replaced_since(&mut self, now: Instant) {
        let is_over = |(since, ..): &mut (Instant, KeyId, Stored)| {
            now.saturating_duration_since(*since) >= REPLACED
        };
        let over: Vec<_> = self.replaced.extract_if(.., is_over).collect();
        self.end_each(over);
    }

    fn end_replaced(&mut self, is_over: impl Fn(&KeyId) -> bool) {
        let over: Vec<_> = self.replaced.extract_if(.., |(_, id, _)| is_over(id)).collect();
        self.end_each(over);
    }

    fn end_each(&self, over: Vec<(Instant, KeyId, Stored)>) {
        for (_, id, mut sa) in over {
            if let Err(error) = sa.end(&id, self.store) {
                warn!("IPsec: {}: {error}", sa.name);
            }
        }
    }

    /// The workers have stopped.
    fn end(&mut self) {
        self.end_replaced(|_| true);
        for (id, sa) in &mut self.sas {
            if let Err(error) = sa.end(id, self.store) {
                warn!("IPsec: {}: {error}", sa.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::control::config::Config;
    use crate::control::daemon::flow_entry::Locals;
    use crate::control::xfrm::store;

    /// SAs that send from 198.18.2.1, and one that receives there.
    fn file(spis: &[u32]) -> Arc<StaticXfrm> {
        let sa = |spi: &u32| {
            let [src, dst] = match spi % 2 {
                0 => ["198.18.2.1", "198.18.2.2"],
                _ => ["198.18.2.2", "198.18.2.1"],
            };
            format!(
                "[[xfrm.state]]\nsrc = \"{src}\"\ndst = \"{dst}\"\nproto = \"esp\"\nspi = {spi}\nmode = \"tunnel\"\n\
                 aead = {{ name = \"rfc4106(gcm(aes))\", key = \"0x{spi:040x}\", icv = 128 }}\n"
            )
        };
        let text: String = spis.iter().map(sa).collect();
        Config::parse(&text, Path::new("x.toml")).expect("is right").xfrm
    }

    /// The router's own address.
    fn own(address: &str) -> Locals {
        let ipv4 = [(address.parse().expect("an address"), 32)].into();
        Locals { ipv4, ..Locals::default() }
    }

    struct Lab {
        dir: tempfile::TempDir,
        shared: Shared,
    }

    impl Lab {
        fn new() -> Lab {
            let dir = tempfile::tempdir().expect("a directory");
            fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("changes");
            let shared = Shared::default();
            shared.is_enabled.store(true, Relaxed);
            shared.locals.store(Arc::new(own("198.18.2.1")));
            Lab { dir, shared }
        }

        /// Runs a process of its own with the file until it is killed, or ends.
        fn run<T>(&self, spis: &[u32], act: impl FnOnce(&mut Keeper<'_>, &Report) -> T) -> T {
            let store = Store::open(self.dir.path()).expect("opens");
            self.shared.file.store(Some(file(spis)));
            let nobody = || {};
            let mut keeper = Keeper::new(&self.shared, &store, &nobody);
            keeper.follow_file(true);
            let report = self.shared.report.load_full();
            act(&mut keeper, &report)
        }

        fn new_keys(&self, spis: &[u32]) {
            for sa in file(spis).states() {
                store::create(self.dir.path(), &sa.key_id(), "x").expect("makes it");
            }
        }
    }

    fn taken(report: &Report) -> u64 {
        report.states.outbound[0].sequence().take().expect("a number")
    }

    #[test]
    fn numbers_go_on_above_all_that_were_reserved_unless_the_process_ends() {
        let lab = Lab::new();
        lab.run(&[2], |_, report| {
            assert_eq!(report.states.outbound.len(), 0);
            assert!(report.kernels[0].contains("new-keys"), "{:?}", report.kernels);
        });
        lab.new_keys(&[2]);
        let mut next = 1;
        for _ in 0..3 {
            next = lab.run(&[2], |_, report| {
                assert_eq!([taken(report), taken(report)], [next, next + 1]);
                // Killed.
                next + RANGE[0]
            });
        }
        lab.run(&[2], |keeper, report| {
            assert_eq!(taken(report), next);
            keeper.end();
            let state = &report.states.outbound[0];
            assert!(state.sequence().take().is_err(), "it is not used any more");
        });
        lab.run(&[2], |_, report| assert_eq!(taken(report), next + 1));
    }

    #[test]
    fn more_numbers_are_reserved_before_the_last_is_taken() {
        let lab = Lab::new();
        lab.new_keys(&[2]);
        lab.run(&[2], |keeper, report| {
            for number in 1..=3 * RANGE[0] {
                assert_eq!(taken(report), number);
                if number % (RANGE[0] / 4) == 0 {
                    keeper.tick(Instant::now());
                }
            }
            let id = file(&[2]).states()[0].key_id();
            let stored = keeper.store.read(&id).expect("reads").expect("is there");
            assert!(stored.sent > 3 * RANGE[0] && stored.sent < 12 * RANGE[0], "{stored:?}");
        });
    }

    #[test]
    fn what_was_received_is_refused_after_a_restart() {
        let lab = Lab::new();
        let check = |report: &Report, number: u32| {
            let state = report.states.inbound.states().next().expect("an SA");
            state.replay().check(number).is_ok()
        };
        lab.run(&[3], |keeper, report| {
            let state = report.states.inbound.states().next().expect("an SA");
            state.replay().accept(900).expect("is new");
            keeper.tick(Instant::now() + STORE);
            state.replay().accept(901).expect("is new");
        });
        lab.run(&[3], |keeper, report| {
            // 901 came in the last second.
            assert_eq!([880, 900, 901].map(|number| check(report, number)), [false, false, true]);
            let state = report.states.inbound.states().next().expect("an SA");
            state.replay().accept(950).expect("is new");
            keeper.end();
        });
        lab.run(&[3], |_, report| assert!(!check(report, 950) && check(report, 951)));
    }

    #[test]
    fn a_key_of_the_other_end_is_none_to_send_with() {
        let lab = Lab::new();
        lab.new_keys(&[3]);
        lab.run(&[3], |_, report| assert_eq!(report.states.inbound.len(), 1));
        // The addresses have moved.
        lab.shared.locals.store(Arc::new(own("198.18.2.2")));
        lab.run(&[3], |_, report| {
            let [state] = &report.states.outbound[..] else { panic!("it sends") };
            assert!(state.sequence().take().is_err());
        });
    }

    #[test]
    fn the_file_may_change_and_another_sa_of_the_kernel_stops_all() {
        let lab = Lab::new();
        lab.new_keys(&[2, 4]);
        let changed = Cell::new(0);
        let store = Store::open(lab.dir.path()).expect("opens");
        let notify = || changed.set(changed.get() + 1);
        let mut keeper = Keeper::new(&lab.shared, &store, &notify);
        let mut follow = |spis: &[u32]| {
            lab.shared.file.store(Some(file(spis)));
            keeper.follow_file(true);
            keeper.tick(Instant::now());
            lab.shared.report.load_full()
        };
        let one = follow(&[2]);
        assert_eq!(taken(&one), 1);
        let both = follow(&[4, 2]);
        let spis = |report: &Report| {
            let of = report.states.outbound.iter().map(|state| state.state().config().spi);
            of.collect::<Vec<_>>()
        };
        assert_eq!((spis(&both), spis(&follow(&[2, 4]))), (vec![4, 2], vec![2, 4]));
        assert_eq!(taken(&follow(&[2, 4])), 2, "it is the same SA");
        // Until workers have the other ones, they send by this one.
        let four = follow(&[4]);
        assert_eq!((spis(&four), taken(&one)), (vec![4], 3));
        assert_eq!(taken(&follow(&[2])), 4, "none is sent twice");
        lab.shared.conflict.store(Some(Arc::new("the kernel has one".to_owned())));
        let none = follow(&[2]);
        assert_eq!(
            (spis(&none), none.kernels.as_slice()),
            (vec![], &["the kernel has one".to_owned()][..])
        );
        assert!(one.states.outbound[0].sequence().take().is_err());
        lab.shared.conflict.store(None);
        assert_eq!(taken(&follow(&[2])), 5);
        assert!(changed.get() >= 8);
    }
}
