//! Security associations: the kernel's `xfrm_state`, one type for each direction.
//!
//! Everything in them is shared by workers without a lock: identity and keys do not change, and counters,
//! sequence numbers and replay window are atomic. Time is passed in, in seconds of the clock that `add_time_s`
//! was read from (the kernel takes CLOCK_REALTIME).
//!
//! Not included: negotiation, BEET and IP-TFS, padding of outbound packets for traffic flow confidentiality
//! (XFRMA_TFCPAD), and XFRM_SA_XFLAG_OSEQ_MAY_WRAP: sequence numbers never wrap here.

use std::net::IpAddr;
use std::ops::{BitOr, BitOrAssign};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use prefetch_index::prefetch_index;

use super::algorithm::{Auth, BadKey, EspAlgorithm, EspKeys};
use super::crypto::{EspTransform, IvSeed};
use super::key::Secret;
use super::mac::MacKey;
use super::overhead::Layout;
use super::replay::BadWindow;
use super::selector::{Mark, Selector};
use super::{Error, ReplayWindow, Sequence};
use crate::wire::Protocol;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// AF_INET.
    Ipv4,
    /// AF_INET6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[inline]
    #[must_use]
    pub const fn of(addr: IpAddr) -> Family {
        if addr.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// What a tunnel's next header is for a packet of this family.
    #[inline]
    #[must_use]
    pub const fn tunnel_protocol(self) -> Protocol {
        match self {
            Family::Ipv4 => Protocol::IPIP,
            Family::Ipv6 => Protocol::IPV6,
        }
    }
}

/// What is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The payload of the packet.
    Transport,
    /// The packet, inside another one.
    Tunnel,
}

/// Flags of an SA: XFRM_STATE_* in the low octet, XFRM_SA_XFLAG_* above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateFlags(pub u16);

impl StateFlags {
    /// XFRM_STATE_NOECN: the outer header has ECN 0, and the outer ECN is not combined with the inner one.
    pub const NOECN: Self = Self(1);
    /// XFRM_STATE_DECAP_DSCP: the inner packet gets the outer DSCP. (Without it, the default, it keeps its
    /// own.)
    pub const DECAP_DSCP: Self = Self(2);
    /// XFRM_STATE_NOPMTUDISC: the outer header has DF 0. (Without it DF is copied from inside; of IPv6 it is
    /// 1.)
    pub const NOPMTUDISC: Self = Self(4);
    /// XFRM_STATE_ICMP: ICMP errors pass if the packet that they quote matches the selector.
    pub const ICMP: Self = Self(16);
    /// XFRM_STATE_AF_UNSPEC: a tunnel carries both families. (Without it, that of the selector.)
    pub const AF_UNSPEC: Self = Self(32);
    /// XFRM_STATE_ALIGN4: AH over IPv4 is a multiple of 4 octets, as RFC 4302 §2.6 has it. (Without it of 8,
    /// the default of the kernel.)
    pub const ALIGN4: Self = Self(64);
    /// XFRM_STATE_ESN: sequence numbers have 64 bits.
    pub const ESN: Self = Self(128);
    /// XFRM_SA_XFLAG_DONT_ENCAP_DSCP: the outer header has DSCP 0. (Without it a copy of the inner one.)
    pub const DONT_ENCAP_DSCP: Self = Self(1 << 8);

    /// Those of XFRM_MSG_NEWSA (`flags`) and XFRMA_SA_EXTRA_FLAGS (`extra`).
    #[must_use]
    pub const fn from_kernel(flags: u8, extra: u32) -> Self {
        Self(flags as u16 | ((extra & 0xff) as u16) << 8)
    }

    /// Whether all flags of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for StateFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for StateFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// How ECN passes a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EcnRules {
    /// RFC 6040 §4: CE is copied outward; inward the outer ECN is combined, and CE around a packet that does
    /// not understand it drops the packet.
    #[default]
    Rfc6040,
    /// As the kernel's XFRM (RFC 3168 §9.1.1): CE becomes ECT(0) outward; inward only CE counts, and around a
    /// packet that does not understand it, it is ignored.
    Xfrm,
}

/// Ports of UDP encapsulation (RFC 3948), as the packets of the SA have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpPorts {
    /// Source.
    pub src: u16,
    /// Destination.
    pub dst: u16,
}

/// Limits of an SA: `xfrm_lifetime_cfg`. An SA does not work any more when it reaches a hard limit; at a soft
/// one it should be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Octets; soft and hard limit.
    pub bytes: [u64; 2],
    /// Packets; soft and hard limit.
    pub packets: [u64; 2],
    /// Seconds since the SA was added; soft and hard limit, 0 for none.
    pub add_s: [u64; 2],
    /// Seconds since the first packet; soft and hard limit, 0 for none.
    pub use_s: [u64; 2],
}

impl Lifetime {
    /// No limits: the kernel's XFRM_INF.
    pub const INFINITE: Lifetime =
        Lifetime { bytes: [u64::MAX; 2], packets: [u64::MAX; 2], add_s: [0; 2], use_s: [0; 2] };
}

impl Default for Lifetime {
    fn default() -> Lifetime {
        Lifetime::INFINITE
    }
}

/// What an SA has been used for: `xfrm_lifetime_cur`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Octets. As in the kernel: of the inner packet in tunnel mode, of the payload in transport mode.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// When the SA was added, in seconds.
    pub add_time_s: u64,
    /// When the first packet came, in seconds; 0: none did.
    pub use_time_s: u64,
}

/// What an SA is: XFRM_MSG_NEWSA without keys.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Source: of the outer header in tunnel mode.
    pub src: IpAddr,
    /// Destination, of the same family; with SPI and protocol it identifies an inbound SA.
    pub dst: IpAddr,
    /// Security parameters index, not 0.
    pub spi: u32,
    /// What templates ask for; 0: nothing in particular.
    pub reqid: u32,
    /// Mode.
    pub mode: Mode,
    /// Flags.
    pub flags: StateFlags,
    /// How ECN passes a tunnel.
    pub ecn: EcnRules,
    /// Packets that may use the SA.
    pub selector: Selector,
    /// Family of `selector`. Packets inside a tunnel must be of it, unless [`StateFlags::AF_UNSPEC`] is set.
    pub selector_family: Family,
    /// Packets with this mark find the SA.
    pub mark: Mark,
    /// XFRMA_IF_ID: the xfrm interface; 0 for none.
    pub if_id: u32,
    /// Limits.
    pub lifetime: Lifetime,
    /// Usage so far.
    pub usage: Usage,
    /// UDP encapsulation of ESP, or none.
    pub encap: Option<UdpPorts>,
    /// Length of the window against replay in packets; for receiving.
    pub replay_window: u32,
}

/// The protocol of an SA with its keys.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub enum Keys {
    /// ESP.
    Esp(EspKeys),
    /// AH.
    Ah(Auth, Secret),
}

/// An SA that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// Source and destination are of different families.
    #[error("source and destination are of different families")]
    Families,
    /// SPI 0 has a meaning of its own (RFC 4303 §2.1).
    #[error("SPI 0")]
    Spi,
    /// UDP encapsulation is for ESP (RFC 3948 §1).
    #[error("UDP encapsulation of AH")]
    EncapOfAh,
    /// A key of a length that the algorithm has not, or an IV seed that does not suit the cipher.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// A replay window that cannot be.
    #[error(transparent)]
    Window(#[from] BadWindow),
}

/// Validity of an SA: XFRM_STATE_VALID and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KmState {
    /// It works.
    Valid,
    /// It reached a hard limit.
    Expired,
    /// It was deleted.
    Dead,
}

/// The part of an SA that both directions have.
#[derive(Debug)]
pub struct State {
    pub(super) config: StateConfig,
    pub(super) layout: Layout,
    algorithm: Algorithm,
    km_state: AtomicU8,
    is_dying: AtomicBool,
    bytes: AtomicU64,
    packets: AtomicU64,
    use_time_s: AtomicU64,
    integrity_failed: AtomicU64,
}

/// The protocol of an SA and its algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ESP.
    Esp(EspAlgorithm),
    /// AH.
    Ah(Auth),
}

/// Expanded keys of either protocol.
#[expect(clippy::large_enum_variant, reason = "keys are part of the SA, to be prefetched with it")]
pub(super) enum Transform {
    Esp(EspTransform),
    Ah(Box<MacKey>),
}

impl Transform {
    fn new(keys: &Keys, iv_seed: Option<&IvSeed>) -> Result<Transform, BadKey> {
        Ok(match keys {
            Keys::Esp(keys) => Transform::Esp(EspTransform::new(keys, iv_seed)?),
            Keys::Ah(auth, secret) => Transform::Ah(Box::new(MacKey::new(*auth, secret)?)),
        })
    }
}

/// A mark at the start of a value: the lines that it has are those after the mark.
type CacheLines = [[u64; 8]; 0];

/// Asks for the lines of a value of `octets` octets that starts with the mark.
#[inline]
fn prefetch_lines(start: &CacheLines, octets: usize) {
    (0..octets.div_ceil(64)).for_each(|line| prefetch_index(start, line));
}

/// An SA for receiving.
#[repr(C, align(64))]
pub struct InboundState {
    lines: CacheLines,
    pub(super) state: State,
    pub(super) transform: Transform,
    pub(super) replay: ReplayWindow,
}

/// An SA for sending.
#[repr(C, align(64))]
pub struct OutboundState {
    lines: CacheLines,
    pub(super) state: State,
    pub(super) transform: Transform,
    pub(super) sequence: Sequence,
}

impl InboundState {
    /// Asks the CPU for the SA's cache lines. Done for the SAs of a burst before its packets are processed,
    /// it hides that thousands of SAs do not fit into the cache.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_lines(&self.lines, size_of::<Self>());
    }

    /// An SA that has received nothing yet.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn new(config: StateConfig, keys: &Keys) -> Result<InboundState, BadState> {
        let transform = Transform::new(keys, None)?;
        let is_extended = config.flags.contains(StateFlags::ESN);
        let replay = ReplayWindow::new(config.replay_window, is_extended)?;
        let state = State::new(config, keys)?;
        Ok(InboundState { lines: [], state, transform, replay })
    }

    /// What both directions have.
    #[inline]
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The window against replay.
    #[inline]
    #[must_use]
    pub fn replay(&self) -> &ReplayWindow {
        &self.replay
    }

    /// The same, to restore it before the SA is used.
    pub fn replay_mut(&mut self) -> &mut ReplayWindow {
        &mut self.replay
    }
}

impl OutboundState {
    /// Asks the CPU for the SA's cache lines. Done for the SAs of a burst before its packets are processed,
    /// it hides that thousands of SAs do not fit into the cache.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_lines(&self.lines, size_of::<Self>());
    }

    /// An SA without reserved sequence numbers.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn new(
        config: StateConfig,
        keys: &Keys,
        iv_seed: &IvSeed,
    ) -> Result<OutboundState, BadState> {
        let transform = Transform::new(keys, Some(iv_seed))?;
        let sequence = Sequence::new(config.flags.contains(StateFlags::ESN));
        let state = State::new(config, keys)?;
        Ok(OutboundState { lines: [], state, transform, sequence })
    }

    /// What both directions have.
    #[inline]
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The sequence numbers.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }
}

impl std::fmt::Debug for InboundState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboundState").field("state", &self.state).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OutboundState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboundState").field("state", &self.state).finish_non_exhaustive()
    }
}

impl State {
    fn new(config: StateConfig, keys: &Keys) -> Result<State, BadState> {
        if config.src.is_ipv4() != config.dst.is_ipv4() {
            return Err(BadState::Families);
        }
        if config.spi == 0 {
            return Err(BadState::Spi);
        }
        let algorithm = match keys {
            Keys::Esp(keys) => Algorithm::Esp(keys.algorithm()),
            Keys::Ah(..) if config.encap.is_some() => return Err(BadState::EncapOfAh),
            Keys::Ah(auth, _) => Algorithm::Ah(*auth),
        };
        let Usage { bytes, packets, use_time_s, .. } = config.usage;
        Ok(State {
            layout: Layout::new(&config, algorithm),
            config,
            algorithm,
            km_state: AtomicU8::new(KmState::Valid as u8),
            is_dying: AtomicBool::new(false),
            bytes: AtomicU64::new(bytes),
            packets: AtomicU64::new(packets),
            use_time_s: AtomicU64::new(use_time_s),
            integrity_failed: AtomicU64::new(0),
        })
    }

    /// What the SA was made from.
    #[inline]
    #[must_use]
    pub fn config(&self) -> &StateConfig {
        &self.config
    }

    /// Protocol and algorithms.
    #[inline]
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// ESP or AH.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.algorithm {
            Algorithm::Esp(_) => Protocol::ESP,
            Algorithm::Ah(_) => Protocol::AH,
        }
    }

    /// Family of the addresses: of the outer header in tunnel mode.
    #[inline]
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.config.dst)
    }

    /// Whether the SA has a flag.
    #[inline]
    #[must_use]
    pub fn has(&self, flag: StateFlags) -> bool {
        self.config.flags.contains(flag)
    }

    /// Whether a tunnel may carry a packet of a family.
    #[inline]
    #[must_use]
    pub fn carries(&self, family: Family) -> bool {
        self.has(StateFlags::AF_UNSPEC) || family == self.config.selector_family
    }

    /// What the SA has been used for, at some time during the call.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            bytes: self.bytes.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
            add_time_s: self.config.usage.add_time_s,
            use_time_s: self.use_time_s.load(Ordering::Relaxed),
        }
    }

    /// Packets with a wrong ICV: `integrity_failed` of `xfrm_stats`.
    #[must_use]
    pub fn integrity_failed(&self) -> u64 {
        self.integrity_failed.load(Ordering::Relaxed)
    }

    /// Whether the SA works.
    #[inline]
    #[must_use]
    pub fn km_state(&self) -> KmState {
        match self.km_state.load(Ordering::Relaxed) {
            0 => KmState::Valid,
            1 => KmState::Expired,
            _ => KmState::Dead,
        }
    }

    /// Ends the SA, for example because it was deleted.
    pub fn set_km_state(&self, km_state: KmState) {
        self.km_state.store(km_state as u8, Ordering::Relaxed);
    }

    /// Whether a soft limit was reached: the SA should be replaced.
    #[inline]
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.is_dying.load(Ordering::Relaxed)
    }

    /// Compares usage with the limits, as the kernel's `xfrm_state_check_expire` and `xfrm_timer_handler`;
    /// false: a hard limit was reached, and the SA does not work any more.
    #[inline]
    pub fn check_expire(&self, now_s: u64) -> bool {
        let usage = self.usage();
        let has_reached = |limit: usize| {
            let Lifetime { bytes, packets, add_s, use_s } = self.config.lifetime;
            let is_over = |since_s: u64, seconds: [u64; 2]| {
                let seconds = seconds.get(limit).copied().unwrap_or(0);
                seconds != 0 && since_s != 0 && now_s >= since_s.saturating_add(seconds)
            };
            bytes.get(limit).is_some_and(|&limit| usage.bytes >= limit)
                || packets.get(limit).is_some_and(|&limit| usage.packets >= limit)
                || is_over(usage.add_time_s, add_s)
                || is_over(usage.use_time_s, use_s)
        };
        if has_reached(1) {
            self.set_km_state(KmState::Expired);
            return false;
        }
        if has_reached(0) && !self.is_dying() {
            self.is_dying.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Counts one packet.
    #[inline]
    pub(super) fn count(&self, octets: usize, now_s: u64) {
        self.bytes.fetch_add(octets as u64, Ordering::Relaxed);
        self.packets.fetch_add(1, Ordering::Relaxed);
        if self.use_time_s.load(Ordering::Relaxed) == 0 {
            // Of several first packets any one will do.
            self.use_time_s.store(now_s, Ordering::Relaxed);
        }
    }

    /// Counts a packet with a wrong ICV.
    pub(super) fn count_integrity_failed(&self) {
        self.integrity_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the SA may be used now.
    #[inline]
    pub(super) fn check_usable(
        &self,
        now_s: u64,
        invalid: Error,
        expired: Error,
    ) -> Result<(), Error> {
        match self.km_state() {
            KmState::Valid if self.check_expire(now_s) => Ok(()),
            KmState::Valid => Err(expired),
            // As the kernel: only the packet that meets the limit counts as expired.
            KmState::Expired | KmState::Dead => Err(invalid),
        }
    }
}
