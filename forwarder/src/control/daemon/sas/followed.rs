//! One SA of the kernel that workers may use.
//!
//! **Sending.** Reserving a range of sequence numbers is two requests: the kernel's counter is read, and set to the end of
//! the range. The kernel may send in between, and is then set back. Therefore the range that workers get begins
//! [`GUARD`] numbers above what was read, and it is not used if more than its time has passed until the counter was
//! set: the kernel cannot send so many packets on one SA in that time. So no number is used twice, also after a crash,
//! unless this thread is stopped for seconds between the last look at the clock and the request after it.
//!
//! Numbers are reserved before workers see the SA, so that they never leave packets of a new SA to the kernel: a packet
//! that the kernel sends has a number above the range, and the peer's window then refuses what workers send. When that
//! happens they get numbers above; if it happens again and again, and not for packets that were on their way to the kernel
//! when the workers took over, the kernel has the SA for a while.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Tracked;
use crate::control::netlink::query::NlSock;
use crate::control::xfrm::ae::{self, AeState, KernelReplay};
use crate::control::xfrm::state::{KernelState, SaId};
use crate::control::xfrm::workers::{self, WorkersState};
use crate::ipsec::{
    InboundState, Keys, KmState, OutboundState, ReplaySnapshot, State, StateConfig, Usage,
};
use crate::tables::Wanted;

/// Numbers that are reserved at once: at first, and at most, which workers use up in a second at the highest rates.
/// Without ESN, an SA has 2³² numbers.
const RANGE: [u64; 2] = [1 << 17, 1 << 22];
/// More are reserved when less than this part of a range is left.
const LOW: u64 = 4;
/// Numbers left out for what the kernel sends meanwhile: one for 10 ns, for it may take many at once for a packet that it
/// divides later (`xfrm_replay_overflow_offload`). Twice as many after each attempt that took longer.
const GUARD: u64 = 1 << 16;
const GUARD_DOUBLINGS: u32 = 4;
const NS_PER_NUMBER: u64 = 10;
/// Without ESN, the numbers from here on are the kernel's: workers do not end an SA early.
const SHARE: u64 = 3 << 30;
/// Until the next attempt after the first one that took longer; then twice as long each time. Each attempt uses up numbers.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long packets that workers left to the kernel before they took over may be on their way to it, and how often
/// workers get other numbers because of these.
const SETTLING_TIME: Duration = Duration::from_millis(100);
const SETTLING_MAX: u32 = 8;
/// How long the kernel has an SA after it has sent on it, at least and at most: twice as long as the last time if that
/// was less than [`CALM`] ago.
const KERNEL_TIME: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];
const CALM: Duration = Duration::from_secs(60);
/// How often replay windows and usage are written into the kernel's SA.
const WRITE_BACK: Duration = Duration::from_millis(100);
/// How often replay windows get what the kernel has received on the SA: what it alone can open, such as fragments.
const MERGE: Duration = Duration::from_secs(1);
/// How often it is asked whether the kernel sends on an SA on which workers send.
const ASK: Duration = Duration::from_millis(5);
/// Longer than any SA lasts.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Sequence numbers without ESN end here.
const SEQ_MAX: u64 = u32::MAX as u64;

/// What the workers do with an SA.
pub(super) enum Kind {
    /// They receive.
    Inbound(Arc<InboundState>),
    /// They send.
    Outbound(Arc<OutboundState>),
    /// Nothing, for this reason.
    Kernels(Wanted, String),
}

/// What of the router an SA depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its destination is an address of the router.
    pub(super) is_local: bool,
    /// It has no `if_id`, or workers use the xfrm interface with that.
    pub(super) has_interface: bool,
}

/// An SA.
pub(super) struct Followed {
    pub(super) kind: Kind,
    /// See [`fingerprint`].
    fingerprint: u64,
    place: Place,
    /// Usage by workers that the kernel's SA includes, and all usage of the SA when that was written.
    written: Usage,
    total: Usage,
    /// When the replay window last got what the kernel had received.
    merged_at: Option<Instant>,
    /// What workers had received when it was last written there: what they left to the kernel of it has arrived there
    /// by now.
    seen: Option<ReplaySnapshot>,
    /// The kernel's replay window does not include that yet.
    is_unwritten: bool,
    /// When it was last written there.
    written_at: Instant,
    /// The kernel's counter after numbers were reserved. `None`: none are.
    reserved: Option<u64>,
    /// How many were reserved last.
    range: u64,
    /// When more may be reserved after an attempt that took too long, and how long that is after the attempt.
    retry_at: Option<Instant>,
    retry: Duration,
    /// Attempts that took too long since the last one that did not.
    attempts: u32,
    /// When the kernel was last asked for its counter.
    asked_at: Instant,
    /// Packets that workers had sent then.
    asked_packets: u64,
    /// When the workers took over, and how often they have got other numbers since then. Nothing is on its way to the
    /// kernel any more if that is `None`.
    taken_at: Instant,
    settling: Option<u32>,
    /// The kernel has the SA until then.
    kernels_until: Option<Instant>,
    /// How long that was the last time, and when it ended.
    kernel_time: Duration,
    kernels_ended: Option<Instant>,
    /// Soft and hard limits that were reported.
    is_reported: [bool; 2],
    /// Since when the kernel has it no more.
    deleted_at: Option<Instant>,
}

/// Identifies what an SA is, without usage and sequence numbers: what has another fingerprint is another SA.
pub(super) fn fingerprint(kernel: &KernelState, hasher: &RandomState) -> u64 {
    let usage = Usage { add_time_s: kernel.config.usage.add_time_s, ..Usage::default() };
    let config = StateConfig { usage, ..kernel.config.clone() };
    let keys = match &kernel.keys {
        Ok(keys) => keys.fingerprint(hasher),
        Err(reason) => hasher.hash_one(reason.to_string()),
    };
    hasher.hash_one((format!("{config:?}"), keys, kernel.direction.map(|it| it as u8)))
}

impl Followed {
    pub(super) fn new(kernel: KernelState, fingerprint: u64, place: Place) -> Followed {
        let now = Instant::now();
        let StateConfig { dst, reqid, if_id, .. } = kernel.config;
        let wanted = Wanted { dst, proto: kernel.id.proto, reqid, if_id };
        let written = kernel.config.usage;
        let kind = kind(kernel, place).unwrap_or_else(|reason| Kind::Kernels(wanted, reason));
        Followed {
            kind,
            fingerprint,
            place,
            written,
            total: written,
            merged_at: None,
            seen: None,
            is_unwritten: false,
            written_at: now,
            reserved: None,
            range: 0,
            retry_at: None,
            retry: RETRY,
            attempts: 0,
            asked_at: now,
            asked_packets: written.packets,
            taken_at: now,
            settling: Some(0),
            kernels_until: None,
            kernel_time: Duration::ZERO,
            kernels_ended: None,
            is_reported: [false; 2],
            deleted_at: None,
        }
    }

    /// Whether it is the SA with this fingerprint, does not become one for the other direction, and was not retired or
    /// deleted: one that was deleted and added again may look the same.
    pub(super) fn is(&self, fingerprint: u64, place: Place) -> bool {
        self.fingerprint == fingerprint && self.place == place && !self.has_ended()
    }

    fn has_ended(&self) -> bool {
        let is_dead = self.state().is_some_and(|state| state.km_state() == KmState::Dead);
        is_dead || self.deleted_at.is_some()
    }

    /// Whether an SA of the kernel with the same id is this one, perhaps changed: not one that was added after it ended.
    pub(super) fn lives_on_in(&self, kernel: &KernelState) -> bool {
        let add_time_s = self.state().map(|state| state.config().usage.add_time_s);
        !self.has_ended() && add_time_s.is_none_or(|time| time == kernel.config.usage.add_time_s)
    }

    /// Whether workers may use it.
    pub(super) fn is_workers(&self) -> bool {
        !matches!(self.kind, Kind::Kernels(..))
    }

    /// Whether workers send on it.
    pub(super) fn is_outbound(&self) -> bool {
        matches!(self.kind, Kind::Outbound(_))
    }

    fn state(&self) -> Option<&State> {
        match &self.kind {
            Kind::Inbound(state) => Some(state.state()),
            Kind::Outbound(state) => Some(state.state()),
            Kind::Kernels(..) => None,
        }
    }

    /// Workers do not use it any more, from their next packet on.
    pub(super) fn retire(&self) {
        if let Some(state) = self.state() {
            state.set_km_state(KmState::Dead);
        }
        if let Kind::Outbound(state) = &self.kind {
            // Nobody uses what is left.
            let _unused = state.sequence().close();
        }
    }

    /// The kernel has deleted it. Workers may still send on it until they have the one that replaces it, which they may
    /// not have yet, although it was added before: otherwise the kernel would have their packets.
    pub(super) fn delete(&mut self) {
        self.deleted_at.get_or_insert_with(Instant::now);
        if !self.is_outbound() {
            self.retire();
        }
    }

    /// Whether the kernel has deleted it this long ago, or longer.
    pub(super) fn was_deleted(&self, now: Instant, ago: Duration) -> bool {
        self.deleted_at.is_some_and(|at| now.saturating_duration_since(at) >= ago)
    }

    /// Takes over what the kernel has received on the same SA.
    pub(super) fn merge(&self, kernel: &KernelReplay) {
        if let Kind::Inbound(state) = &self.kind {
            state.replay().merge(kernel.seq, |back| kernel.is_received(back));
        }
    }

    /// Nothing that workers left to the kernel is on its way any more.
    pub(super) fn settle(&mut self) {
        if let Kind::Inbound(state) = &self.kind {
            self.seen = Some(state.replay().snapshot());
            self.is_unwritten = true;
        }
    }

    /// Writes everything into the kernel's SA, and reads it again for the successor of this one.
    pub(super) fn hand_over(
        mut self,
        kernel: &mut KernelState,
        requests: &mut NlSock,
    ) -> io::Result<()> {
        self.settle();
        self.write_back(&kernel.id, requests)?;
        if let Some(now) = read_ae(requests, &kernel.id)? {
            (kernel.replay, kernel.config.usage) = (now.replay, now.usage);
        }
        Ok(())
    }

    /// Whether the connection of packets that workers send is one that they carry, or is not tracked.
    fn is_carried(&self, tracked: Option<&Tracked>) -> bool {
        match (&self.kind, tracked) {
            (Kind::Outbound(state), Some(tracked)) => {
                let state = state.state();
                tracked.carries(state.protocol(), state.config())
            }
            _ => true,
        }
    }

    /// Whether [`look_after`](Self::look_after) has something to do.
    pub(super) fn needs_care(&self, now: Instant, tracked: Option<&Tracked>) -> bool {
        let Some(state) = self.state().filter(|_| self.deleted_at.is_none()) else { return false };
        let usage = state.usage();
        let is_late = now.saturating_duration_since(self.written_at) >= WRITE_BACK;
        let is_asked = match &self.kind {
            // The kernel sends: nothing is to be asked, but once given up.
            Kind::Outbound(_) if !self.is_carried(tracked) => self.reserved.is_some(),
            Kind::Outbound(state) if state.sequence().is_left() => true,
            Kind::Outbound(state) => {
                self.may_ask(now) && self.is_ask_due(usage.packets, state, now)
            }
            Kind::Inbound(_) => self.is_merge_due(now),
            Kind::Kernels(..) => false,
        };
        is_asked || is_late && !self.is_written(&usage) || self.limits_to_report() != [false; 2]
    }

    /// Whether the kernel's SA includes this usage by workers, and what they have received.
    fn is_written(&self, usage: &Usage) -> bool {
        let is_counted = (usage.packets, usage.bytes) == (self.written.packets, self.written.bytes);
        is_counted && !self.is_unwritten
    }

    /// Whether the kernel's counter matters now.
    fn may_ask(&self, now: Instant) -> bool {
        let is_kernels = self.kernels_until.is_some_and(|until| now < until);
        let is_waiting = self.reserved.is_none() && self.retry_at.is_some_and(|at| now < at);
        !is_kernels && !is_waiting
    }

    fn is_ask_due(&self, packets: u64, state: &OutboundState, now: Instant) -> bool {
        let is_open = self.settling.is_some() && self.reserved.is_some();
        let is_due = now.saturating_duration_since(self.asked_at) >= ASK;
        is_due && (is_open || packets != self.asked_packets) || state.sequence().is_wanted()
    }

    fn is_merge_due(&self, now: Instant) -> bool {
        self.merged_at.is_none_or(|at| now.saturating_duration_since(at) >= MERGE)
    }

    /// What is to be done at regular intervals. `false`: the kernel does not have the SA any more.
    pub(super) fn look_after(
        &mut self,
        id: &SaId,
        requests: &mut NlSock,
        now: Instant,
        tracked: Option<&Tracked>,
    ) -> io::Result<bool> {
        if let Kind::Outbound(state) = &self.kind {
            let state = Arc::clone(state);
            if !self.is_carried(tracked) {
                // The kernel sends: what is left of the range is below its numbers then.
                state.sequence().give_up();
                state.sequence().take_up();
                (self.reserved, self.range) = (None, 0);
            } else if state.sequence().is_left() {
                self.leave_to_kernel(&state, now);
            } else if !self.look_after_numbers(&state, id, requests, now)? {
                return Ok(false);
            }
        }
        if matches!(self.kind, Kind::Inbound(_)) && self.is_merge_due(now) {
            self.merged_at = Some(now);
            let Some(kernel) = read_ae(requests, id)? else {
                return Ok(false);
            };
            self.merge(&kernel.replay);
        }
        let ends = self.limits_to_report();
        if now.saturating_duration_since(self.written_at) < WRITE_BACK && ends == [false; 2] {
            return Ok(true);
        }
        self.written_at = now;
        let Some(usage) = self.write_back(id, requests)? else { return Ok(false) };
        let is_used = usage.packets != self.written.packets;
        (self.written, self.is_unwritten) = (usage, false);
        if is_used {
            self.settle();
        }
        self.report_limits(ends, id, requests)
    }

    /// Reserves sequence numbers, before the workers see the SA. `false`: there is no such SA.
    /// An SA of a connection that workers do not carry gets none.
    pub(super) fn take_over(
        &mut self,
        id: &SaId,
        requests: &mut NlSock,
        tracked: Option<&Tracked>,
    ) -> io::Result<bool> {
        let Kind::Outbound(state) = &self.kind else { return Ok(true) };
        if !self.is_carried(tracked) {
            return Ok(true);
        }
        let state = Arc::clone(state);
        // With a guard for as much time as the kernel takes.
        for _ in 0..=GUARD_DOUBLINGS {
            let now = Instant::now();
            self.taken_at = now;
            let Some(kernel) = read_ae(requests, id)? else {
                return Ok(false);
            };
            if !self.reserve(&state, id, requests, &kernel.replay, now)? {
                return Ok(false);
            }
            if state.sequence().has_numbers() || self.kernels_until.is_some() {
                break;
            }
        }
        Ok(true)
    }

    /// The kernel has the SA for a while: longer, if it had it a short time ago.
    fn leave_to_kernel(&mut self, state: &OutboundState, now: Instant) {
        let is_soon = |ended: Instant| now.saturating_duration_since(ended) < CALM;
        let doubled = match self.kernels_ended.is_some_and(is_soon) {
            true => self.kernel_time * 2,
            false => Duration::ZERO,
        };
        self.kernel_time = doubled.clamp(KERNEL_TIME[0], KERNEL_TIME[1]);
        state.sequence().give_up();
        state.sequence().take_up();
        (self.reserved, self.kernels_until) = (None, Some(now + self.kernel_time));
    }

    /// Reserves sequence numbers that workers need, unless the kernel sends.
    fn look_after_numbers(
        &mut self,
        state: &OutboundState,
        id: &SaId,
        requests: &mut NlSock,
        now: Instant,
    ) -> io::Result<bool> {
        let sequence = state.sequence();
        let packets = state.state().usage().packets;
        if !self.may_ask(now) || !self.is_ask_due(packets, state, now) {
            return Ok(true);
        }
        sequence.take_want();
        let from = Instant::now();
        (self.asked_at, self.asked_packets) = (from, packets);
        let is_starved = !sequence.has_numbers();
        let Some(kernel) = read_ae(requests, id)? else {
            return Ok(false);
        };
        let since = now.saturating_duration_since(self.taken_at);
        if self.kernels_until.take().is_some() {
            (self.taken_at, self.settling, self.kernels_ended) = (now, Some(0), Some(now));
        } else if self.reserved.is_some_and(|reserved| reserved != kernel.replay.oseq) {
            // It has sent: the peer may not accept what is left of the range.
            sequence.give_up();
            if !is_starved {
                self.range = 0;
            }
            let settling = self.settling.map(|count| count + 1);
            let is_again = settling.map_or(since < CALM, |count| count > SETTLING_MAX);
            // Without numbers, workers have left packets to it.
            if is_again && !is_starved {
                self.leave_to_kernel(state, now);
                return Ok(true);
            }
            (self.taken_at, self.settling) = (now, settling.or(Some(0)));
        } else if since >= SETTLING_TIME {
            self.settling = None;
        }
        let is_low = sequence.left() <= self.range / LOW;
        match is_low && self.retry_at.is_none_or(|at| now >= at) {
            true => self.reserve(state, id, requests, &kernel.replay, from),
            false => Ok(true),
        }
    }

    /// `kernel`: the kernel's numbers, read after `from`.
    fn reserve(
        &mut self,
        state: &OutboundState,
        id: &SaId,
        requests: &mut NlSock,
        kernel: &KernelReplay,
        from: Instant,
    ) -> io::Result<bool> {
        let (limit, seq_max) = match state.sequence().is_extended() {
            true => (u64::MAX - 1, u64::MAX - 1),
            false => (SHARE, SEQ_MAX),
        };
        let guard = GUARD << self.attempts.min(GUARD_DOUBLINGS);
        let guard_time = Duration::from_nanos(guard * NS_PER_NUMBER);
        let start = kernel.oseq.saturating_add(1 + guard);
        let range = (self.range * 2).clamp(RANGE[0], RANGE[1]);
        let last = start.saturating_add(range).min(limit);
        if start >= last {
            // The kernel uses the rest.
            self.kernels_until = from.checked_add(NEVER);
            return Ok(true);
        }
        if from.elapsed() >= guard_time {
            return Ok(self.was_late(state, from));
        }
        let set = KernelReplay { oseq: last, ..kernel.clone() };
        if unless_ended(ae::new_ae(requests, id, Some(&set), None))? != Some(true) {
            return Ok(false);
        }
        let took = from.elapsed();
        if took >= guard_time {
            // The kernel may have been set back: it goes on above all that it can have sent.
            let sent = took.as_nanos() as u64 / NS_PER_NUMBER;
            let set = KernelReplay { oseq: (last + sent).min(seq_max), ..kernel.clone() };
            unless_ended(ae::new_ae(requests, id, Some(&set), None))?;
            // What the workers still have is below its counter now.
            state.sequence().give_up();
            return Ok(self.was_late(state, from));
        }
        if !state.sequence().has_numbers() && self.settling.is_none() {
            (self.taken_at, self.settling) = (from, Some(0));
        }
        (self.reserved, self.range) = (Some(last), range);
        (self.retry_at, self.retry, self.attempts) = (None, RETRY, 0);
        // Fails if numbers of the range are not above all earlier ones; then none is used.
        let _ = state.sequence().extend(start..last + 1);
        Ok(true)
    }

    /// An attempt to reserve numbers took too long.
    fn was_late(&mut self, state: &OutboundState, from: Instant) -> bool {
        if !state.sequence().has_numbers() {
            self.reserved = None;
        }
        self.retry_at = from.checked_add(self.retry);
        self.retry = (self.retry * 2).min(RETRY_MAX);
        self.attempts = self.attempts.saturating_add(1);
        true
    }

    /// Soft and hard limits of octets and packets that workers have reached, and that were not reported. The kernel
    /// reports those of time.
    fn limits_to_report(&self) -> [bool; 2] {
        let Some(state) = self.state() else { return [false; 2] };
        let (usage, limits) = (state.usage(), state.config().lifetime);
        let used_bytes = usage.bytes.max(self.total.bytes);
        let used_packets = usage.packets.max(self.total.packets);
        [0, 1].map(|n| {
            let (bytes, packets) = (limits.bytes[n], limits.packets[n]);
            (used_bytes >= bytes || used_packets >= packets) && !self.is_reported[n]
        })
    }

    /// Reports limits, after usage was written. `false`: there is no such SA any more.
    fn report_limits(
        &mut self,
        ends: [bool; 2],
        id: &SaId,
        requests: &mut NlSock,
    ) -> io::Result<bool> {
        for (n, is_hard) in [(0, false), (1, true)] {
            if ends[n] {
                self.is_reported[n] = true;
                if is_hard && let Some(state) = self.state() {
                    state.set_km_state(KmState::Expired);
                }
                if unless_ended(ae::expire(requests, id, is_hard))? != Some(true) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Writes replay window and usage into the kernel's SA; returns the usage by workers that it includes then. `None`:
    /// there is no such SA.
    pub(super) fn write_back(
        &mut self,
        id: &SaId,
        requests: &mut NlSock,
    ) -> io::Result<Option<Usage>> {
        let Some(usage) = self.state().map(State::usage) else { return Ok(Some(self.written)) };
        if self.is_written(&usage) {
            return Ok(Some(usage));
        }
        let Some(kernel) = read_ae(requests, id)? else {
            return Ok(None);
        };
        let total = Usage {
            // Less than was written if packets were given back.
            bytes: kernel.usage.bytes.wrapping_add(usage.bytes.wrapping_sub(self.written.bytes)),
            packets: (kernel.usage.packets)
                .wrapping_add(usage.packets.wrapping_sub(self.written.packets)),
            add_time_s: kernel.usage.add_time_s,
            use_time_s: match kernel.usage.use_time_s {
                0 => usage.use_time_s,
                used => used,
            },
        };
        self.merge(&kernel.replay);
        // Only SAs for receiving have any: on others the kernel may be sending.
        let replay = self.seen.as_ref().map(|seen| kernel.replay.with_received_by(seen));
        self.total = total;
        let exists = unless_ended(ae::new_ae(requests, id, replay.as_ref(), Some(total)))?;
        Ok((exists == Some(true)).then_some(usage))
    }
}

/// What the kernel has of an SA. `None`: the SA is at its end, or there is none.
fn read_ae(requests: &mut NlSock, id: &SaId) -> io::Result<Option<AeState>> {
    Ok(unless_ended(ae::get_ae(requests, id))?.flatten())
}

/// `None`: the SA is at its end (EINVAL).
fn unless_ended<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        answer => answer.map(Some),
    }
}

/// What workers can do with an SA.
///
/// # Errors
/// Why they cannot use it.
fn kind(kernel: KernelState, place: Place) -> Result<Kind, String> {
    if !place.has_interface {
        return Err(workers::no_interface(kernel.config.if_id));
    }
    if let Some(obstacle) = kernel.obstacle() {
        return Err(obstacle);
    }
    let keys: Keys = kernel.keys.map_err(|reason| reason.to_string())?;
    Ok(
        match workers::make(kernel.config, &keys, kernel.direction, &kernel.replay, place.is_local)?
        {
            WorkersState::Inbound(state) => Kind::Inbound(state),
            WorkersState::Outbound(state) => Kind::Outbound(state),
        },
    )
}
