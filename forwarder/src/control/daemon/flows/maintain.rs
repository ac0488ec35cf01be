//! Time-outs of entries: they are renewed while packets are carried.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{BATCH, Follower, NS_PER_S, is_of, liberal, unchanged};
use crate::control::conntrack::{self, Change, Sysctls, Tuple};
use crate::control::daemon::flow_entry::{IPPROTO_GRE, IPPROTO_TCP, IPPROTO_UDP};
use crate::netfilter::conntrack::{FlowKey, TupleKind};

/// The longest interval between renewals of an entry, unless there are many flows.
const RENEWAL_MAX_NS: u64 = 60_000_000_000;
/// Renewals per second above which those that are not urgent wait, up to half of the time-out.
const RENEWALS_PER_S: u64 = 5_000;
/// How often each flow is looked at, at least; and the part of the shortest time-out.
const SWEEP_MAX_S: u32 = 8;
const SWEEP_PART: u32 = 8;
/// Flows that are looked at every second whatever their number is.
const SWEEP_MIN: usize = 65_536;
/// Flows that are looked at for renewal between two looks for events.
const SCAN: usize = 16_384;
/// When an entry of IPsec to the router expires is asked this long before.
const REFRESHED_NS: u64 = 30_000_000_000;
/// Time-out of an entry after a RST that does not close it: the default of nf_conntrack_tcp_timeout_close.
pub(super) const CLOSE_TIMEOUT_S: u32 = 10;
/// Time-out of an entry that was renewed while its connection was closed.
const CLOSING_TIMEOUT_S: u32 = 120;

/// The time-out that the kernel gives an entry when it sees a packet. `fresh_s`: what it was in an event.
pub(super) fn timeout_s(sysctls: &Sysctls, key: &FlowKey, fresh_s: Option<u32>) -> u32 {
    match key.protocol() {
        IPPROTO_TCP => sysctls.tcp_timeout_established_s,
        IPPROTO_UDP => sysctls.udp_timeout_stream_s,
        // It stays what the setting was when the entry was made (`ct->proto.gre.stream_timeout`). An event may have been
        // sent in the second after a packet.
        IPPROTO_GRE => match fresh_s {
            Some(fresh_s) => sysctls.gre_timeout_stream_s.min(fresh_s.saturating_add(1)),
            None => sysctls.gre_timeout_stream_s,
        },
        _ if key.kind() == Some(TupleKind::Echo) => {
            sysctls.icmp_timeouts_s[usize::from(!key.is_ipv4())]
        }
        _ => sysctls.generic_timeout_s,
    }
}

/// The shortest of those.
fn shortest_timeout_s(sysctls: &Sysctls, has_echoes: bool) -> u32 {
    let mut shortest_s = sysctls
        .tcp_timeout_established_s
        .min(sysctls.udp_timeout_stream_s)
        .min(sysctls.generic_timeout_s);
    let gre_s = sysctls.gre_timeout_stream_s;
    let of_echo = sysctls.icmp_timeouts_s.into_iter().filter(|_| has_echoes);
    for timeout_s in of_echo.chain([gre_s]).filter(|timeout_s| *timeout_s > 0) {
        shortest_s = shortest_s.min(timeout_s);
    }
    shortest_s
}

/// A renewal that the kernel is asked for.
struct Renewal {
    number: u32,
    expires_ns: u64,
    change: Change,
}

impl Follower<'_> {
    /// Whether there are more flows to look at this time.
    pub(super) fn is_maintaining(&self) -> bool {
        self.cursor < self.cursor_end
    }

    /// Determines which flows are looked at this time, and looks at those whose time-out is short.
    pub(super) fn begin_maintenance(&mut self, now_ns: u64) {
        self.renewals = 0;
        let len = self.carried.len();
        let shortest_s = match self.shared.sets_entries.load(Relaxed) {
            true => 0,
            false => shortest_timeout_s(&self.sysctls, self.echoes > 0),
        };
        let sweep_s = (shortest_s / SWEEP_PART).clamp(1, SWEEP_MAX_S);
        let count = len.div_ceil(sweep_s as usize).max(SWEEP_MIN);
        if self.cursor >= len {
            self.cursor = 0;
        }
        self.cursor_end = (self.cursor + count).min(len);
        self.refresh_ungated(now_ns);
        let mut shortened = std::mem::take(&mut self.shortened);
        let renewals = shortened.iter().filter_map(|number| self.renewal(*number, now_ns));
        let renewals: Vec<Renewal> = renewals.collect();
        self.renew(renewals);
        let is_shortened = |number: &u32| {
            self.carried.get(*number as usize).copied().flatten().is_some_and(|it| it.is_shortened)
        };
        shortened.retain(is_shortened);
        shortened.append(&mut self.shortened);
        self.shortened = shortened;
    }

    /// Learns when entries of IPsec to the router expire: packets that are the kernel's, such as keepalives, renew them,
    /// too, without an event.
    fn refresh_ungated(&mut self, now_ns: u64) {
        let carried = &self.carried;
        let is_ungated = |number: &u32| {
            carried.get(*number as usize).copied().flatten().is_some_and(|it| !it.is_gated)
        };
        self.ungated.retain(is_ungated);
        // A number may have been used again.
        self.ungated.sort_unstable();
        self.ungated.dedup();
        let due = |number: u32| {
            let desc = self.writer.get(number)?;
            let is_due = desc.expires_ns < now_ns + REFRESHED_NS;
            is_due.then(|| (number, Tuple::of_key(&desc.keys[0])))
        };
        let from = self.ungated.partition_point(|number| *number < self.refreshed_from);
        let rest = self.ungated.get(from..).unwrap_or(&[]);
        let due: Vec<(u32, Tuple)> =
            rest.iter().filter_map(|number| due(*number)).take(BATCH).collect();
        self.refreshed_from = match due.last() {
            Some((last, _)) if due.len() == BATCH => last + 1,
            _ => 0,
        };
        let changes: Vec<Change> = due.iter().map(|(_, tuple)| unchanged(*tuple)).collect();
        let results = conntrack::update_and_read(&mut self.requests, &changes);
        for ((number, _), result) in due.into_iter().zip(results) {
            match result {
                Ok(Some(entry)) if is_of(&self.carried, self.writer, number, &entry) => {
                    let timeout_s = entry.timeout_s.unwrap_or(0);
                    let expires_ns = now_ns + u64::from(timeout_s) * NS_PER_S;
                    self.writer.set_expires_ns(number, expires_ns);
                }
                // The kernel does not tell, or not now.
                Ok(None) => {}
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {}
                _ => self.drop_number(number),
            }
        }
    }

    /// Renews the time-outs of entries whose packets were carried: of some of them at a time, so that events are
    /// followed meanwhile.
    pub(super) fn maintain(&mut self, now_ns: u64) {
        let mut renewals = Vec::new();
        let end = (self.cursor + SCAN).min(self.cursor_end);
        while renewals.len() < BATCH && self.cursor < end {
            renewals.extend(self.renewal(self.cursor as u32, now_ns));
            self.cursor += 1;
        }
        self.renew(renewals);
    }

    /// The renewal of a flow that is due.
    fn renewal(&mut self, number: u32, now_ns: u64) -> Option<Renewal> {
        let len = self.writer.len() as u64;
        let carried = self.carried.get_mut(number as usize)?.as_mut()?;
        let table = self.writer.table();
        let seen_ns = table.last_seen_ns(number);
        if seen_ns <= carried.renewed_ns {
            return None;
        }
        let desc = self.writer.get(number)?;
        let key = desc.keys[0];
        let has_own_timeouts = self.shared.sets_entries.load(Relaxed);
        let timeout_s = match key.protocol() {
            // What the kernel had set when the connection was established.
            _ if has_own_timeouts && carried.is_timeout_fresh => carried.timeout_s,
            // Not known: it is left to the kernel when it expires.
            _ if has_own_timeouts => return None,
            _ => {
                let fresh_s = carried.is_timeout_fresh.then_some(carried.timeout_s);
                timeout_s(&self.sysctls, &key, fresh_s)
            }
        };
        let timeout_ns = u64::from(timeout_s) * NS_PER_S;
        let interval_ns = match carried.has_events && !carried.is_shortened {
            true => (timeout_ns / 8)
                .min(RENEWAL_MAX_NS)
                .max(len * NS_PER_S / RENEWALS_PER_S)
                .min(timeout_ns / 2),
            false => 0,
        };
        if now_ns < carried.renewed_ns.saturating_add(interval_ns) || table.is_closing(number) {
            return None;
        }
        // After a start all flows are due at once.
        let is_urgent = interval_ns == 0 || desc.expires_ns < now_ns + timeout_ns / 2;
        if !is_urgent && self.renewals >= RENEWALS_PER_S {
            return None;
        }
        self.renewals += 1;
        carried.renewed_ns = now_ns;
        carried.is_shortened = false;
        // Counted from the last packet, as the kernel does.
        let idle_s = (now_ns.saturating_sub(seen_ns) / NS_PER_S) as u32;
        let timeout_s = timeout_s.saturating_sub(idle_s);
        let expires_ns = now_ns + u64::from(timeout_s) * NS_PER_S;
        // The kernel does not see the later acknowledgements, and would take a RST for invalid after 2 GiB.
        // Until workers know one of each direction, it knows the highest, and judges RSTs by it.
        let forgets_max_ack = table.knows_acks(number);
        let change = Change { forgets_max_ack, ..liberal(Tuple::of_key(&key), Some(timeout_s)) };
        Some(Renewal { number, expires_ns, change })
    }

    fn renew(&mut self, renewals: Vec<Renewal>) {
        let table = Arc::clone(self.writer.table());
        let changes: Vec<Change> = renewals.iter().map(|renewal| renewal.change).collect();
        let results = conntrack::update(&mut self.requests, &changes);
        let mut closed = Vec::new();
        for (Renewal { number, expires_ns, change }, result) in renewals.into_iter().zip(results) {
            if result.is_err() {
                self.drop_number(number);
            } else if table.is_closing(number) {
                // The kernel may have set a shorter time-out before.
                closed.push(Change { timeout_s: Some(CLOSING_TIMEOUT_S), ..change });
            } else {
                self.writer.set_expires_ns(number, expires_ns);
            }
        }
        // One that is gone needs none.
        let _ = conntrack::update(&mut self.requests, &closed);
    }
}
