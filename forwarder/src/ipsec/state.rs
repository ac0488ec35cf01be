//! Security associations: the kernel's `xfrm_state`, one type for each direction.
//!
//! Everything in them is shared by workers without a lock: identity and keys do not change, and counters,
//! sequence numbers and replay window are atomic. Time is passed in, in seconds of the clock that `add_time_s`
//! was read from (the kernel takes CLOCK_REALTIME).
//!
//! Not included: negotiation, BEET and IP-TFS, padding of outbound packets for traffic flow confidentiality
//! (XFRMA_TFCPAD), and XFRM_SA_XFLAG_OSEQ_MAY_WRAP: sequence numbers never wrap here.

use std::hash::BuildHasher;
use std::mem::offset_of;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use prefetch_index::prefetch_index;
use ring::digest::SHA256;

use super::algorithm::{Auth, BadKey, EspAlgorithm, EspKeys};
use super::config::{
    EcnRules, Family, KmState, Lifetime, Mode, StateConfig, StateFlags, UdpPorts, Usage,
};
use super::crypto::{EspTransform, IvSeed};
use super::key::Secret;
use super::mac::MacKey;
use super::overhead::Layout;
use super::replay::BadWindow;
use super::{Error, ReplayWindow, Sequence};
use crate::wire::Protocol;

/// The protocol of an SA with its keys.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub enum Keys {
    /// ESP.
    Esp(EspKeys),
    /// AH.
    Ah(Auth, Secret),
}

impl Keys {
    /// A number by which two sets of keys can be told apart without keeping them. `hasher` must be random and of this
    /// process, so that the number tells nothing of the keys.
    #[must_use]
    pub fn fingerprint(&self, hasher: &impl BuildHasher) -> u64 {
        match self {
            Keys::Esp(keys @ EspKeys::Combined(_, secret)) => {
                hasher.hash_one((keys.algorithm(), secret.octets()))
            }
            Keys::Esp(keys @ EspKeys::EncryptThenMac(_, cipher, _, auth)) => {
                hasher.hash_one((keys.algorithm(), cipher.octets(), auth.octets()))
            }
            Keys::Ah(auth, secret) => hasher.hash_one((auth, secret.octets())),
        }
    }

    /// SHA-256 of the key that must not see a number twice: of ESP that for encryption, with its salt, and without
    /// encryption that for authentication. It is the same whatever else of the SA changes, also the algorithm.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let secret = match self {
            Keys::Esp(EspKeys::Combined(_, secret)) | Keys::Ah(_, secret) => secret,
            Keys::Esp(EspKeys::EncryptThenMac(_, cipher, _, auth)) if cipher.is_empty() => auth,
            Keys::Esp(EspKeys::EncryptThenMac(_, cipher, ..)) => cipher,
        };
        octets(&ring::digest::digest(&SHA256, secret.octets()))
    }

    /// SHA-256 of all that packets are protected with: the names of the algorithms, the length of the ICV and both keys,
    /// each with its length. Two SAs with the same one differ in nothing that keys or algorithms decide.
    #[must_use]
    pub fn full_digest(&self) -> [u8; 32] {
        let none: &[u8] = &[];
        let (cipher, cipher_key, auth, auth_key, icv_len) = match self {
            Keys::Esp(EspKeys::Combined(aead, secret)) => {
                let icv_len = EspAlgorithm::Combined(*aead).icv_len();
                (aead.name(), secret.octets(), "", none, icv_len)
            }
            Keys::Esp(EspKeys::EncryptThenMac(cipher, key, auth, auth_key)) => {
                (cipher.name(), key.octets(), auth.name(), auth_key.octets(), auth.icv_len())
            }
            Keys::Ah(auth, secret) => ("", none, auth.name(), secret.octets(), auth.icv_len()),
        };
        let mut context = ring::digest::Context::new(&SHA256);
        for part in [cipher.as_bytes(), cipher_key, auth.as_bytes(), auth_key] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.update(&(icv_len as u64).to_be_bytes());
        octets(&context.finish())
    }
}

fn octets(digest: &ring::digest::Digest) -> [u8; 32] {
    let mut octets = [0; 32];
    octets.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    octets
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
    /// A limit of seconds since the SA was added needs to know when that was.
    #[error("a limit of seconds since the SA was added, which was at an unknown time")]
    AddTime,
    /// An IV seed that does not suit the cipher: AES-CBC needs a random one ([`IvSeed::random`]).
    #[error("the IVs of AES-CBC need a random seed")]
    IvSeed,
    /// A key of a length that the algorithm has not.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// A replay window that cannot be.
    #[error(transparent)]
    Window(#[from] BadWindow),
}

/// The part of an SA that both directions have.
///
/// Fields are in the order in which packets need them: what each packet writes, what each packet reads, what few
/// packets need. [`InboundState`] and [`OutboundState`] have the first two in whole cache lines.
#[derive(Debug)]
#[repr(C)]
pub struct State {
    bytes: AtomicU64,
    packets: AtomicU64,
    use_time_s: AtomicU64,
    km_state: AtomicU8,
    is_dying: AtomicBool,
    pub(super) hot: Hot,
    pub(super) config: StateConfig,
    algorithm: Algorithm,
    integrity_failed: AtomicU64,
}

/// Octets of [`State`] before [`State::hot`].
const WRITTEN_LEN: usize = 32;
/// A cache line, in octets.
const LINE_LEN: usize = 64;

const _: () = assert!(offset_of!(State, hot) == WRITTEN_LEN);
const _: () = assert!(size_of::<Hot>() == LINE_LEN);
const _: () = assert!(offset_of!(InboundState, state) % LINE_LEN == LINE_LEN - WRITTEN_LEN);
const _: () = assert!(offset_of!(OutboundState, state) % LINE_LEN == LINE_LEN - WRITTEN_LEN);

/// What packets need of [`StateConfig`], in one cache line.
#[derive(Debug)]
pub(super) struct Hot {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub spi: u32,
    pub encap: Option<UdpPorts>,
    pub layout: Layout,
    pub protocol: Protocol,
    pub mode: Mode,
    pub flags: StateFlags,
    pub ecn: EcnRules,
    selector_family: Option<Family>,
    /// The first second in which limits may have been reached: before it they are not compared. 0: there are limits
    /// that depend on more than the time since the SA was added.
    check_from_s: u64,
}

impl Hot {
    fn new(config: &StateConfig, algorithm: Algorithm) -> Hot {
        let Lifetime { bytes, packets, add_s, use_s } = config.lifetime;
        let is_by_age = bytes == [u64::MAX; 2] && packets == [u64::MAX; 2] && use_s == [0; 2];
        let deadlines = add_s.into_iter().filter(|&seconds| seconds != 0);
        let deadlines = deadlines.map(|seconds| config.usage.add_time_s.saturating_add(seconds));
        Hot {
            src: config.src,
            dst: config.dst,
            spi: config.spi,
            encap: config.encap,
            layout: Layout::new(config, algorithm),
            protocol: algorithm.protocol(),
            mode: config.mode,
            flags: config.flags,
            ecn: config.ecn,
            selector_family: config.selector_family,
            check_from_s: if is_by_age { deadlines.min().unwrap_or(u64::MAX) } else { 0 },
        }
    }
}

/// The protocol of an SA and its algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ESP.
    Esp(EspAlgorithm),
    /// AH.
    Ah(Auth),
}

impl Algorithm {
    fn protocol(self) -> Protocol {
        match self {
            Algorithm::Esp(_) => Protocol::ESP,
            Algorithm::Ah(_) => Protocol::AH,
        }
    }
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

/// Asks for cache lines of a value that starts with the mark; `octets`: which of it.
#[inline]
fn prefetch_lines(start: &CacheLines, octets: Range<usize>) {
    (octets.start / LINE_LEN..octets.end.div_ceil(LINE_LEN))
        .for_each(|line| prefetch_index(start, line));
}

/// A value that starts with a cache line of its own: workers that write what is before it do not take it from others.
#[repr(align(64))]
pub(super) struct Aligned<T>(pub T);

/// An SA for receiving. A packet needs two cache lines that it writes, one of the configuration, and the keys.
#[repr(C, align(64))]
pub struct InboundState {
    lines: CacheLines,
    pub(super) replay: ReplayWindow,
    pub(super) state: State,
    pub(super) transform: Aligned<Transform>,
}

/// An SA for sending. A packet needs one cache line that it writes, one of the configuration, and the keys.
#[repr(C, align(64))]
pub struct OutboundState {
    lines: CacheLines,
    pub(super) sequence: Sequence,
    pub(super) state: State,
    pub(super) transform: Aligned<Transform>,
}

impl InboundState {
    /// Asks the CPU for the SA's cache lines. Done for the SAs of a burst before its packets are processed,
    /// it hides that thousands of SAs do not fit into the cache.
    #[inline]
    pub fn prefetch(&self) {
        let written_and_hot = offset_of!(Self, state) + offset_of!(State, config);
        prefetch_lines(&self.lines, 0..written_and_hot);
        let keys = offset_of!(Self, transform);
        prefetch_lines(&self.lines, keys..keys + size_of::<Transform>());
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
        Ok(InboundState { lines: [], replay, state, transform: Aligned(transform) })
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
        let written_and_hot = offset_of!(Self, state) + offset_of!(State, config);
        prefetch_lines(&self.lines, 0..written_and_hot);
        let keys = offset_of!(Self, transform);
        prefetch_lines(&self.lines, keys..keys + size_of::<Transform>());
    }

    /// An SA without reserved sequence numbers. The seed is used up. `first_free` is the lowest sequence number
    /// that nobody has used or reserved with these keys: 1 only if the keys are new, the kernel's counter plus
    /// one for an SA of the kernel, and for one that replaces another the start of what [`Sequence::close`]
    /// of that one returned. A number that is used twice with one key breaks counter modes.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn new(
        config: StateConfig,
        keys: &Keys,
        iv_seed: IvSeed,
        first_free: u64,
    ) -> Result<OutboundState, BadState> {
        if let Keys::Esp(keys) = keys
            && !iv_seed.suits(keys.algorithm())
        {
            return Err(BadState::IvSeed);
        }
        let transform = Transform::new(keys, Some(&iv_seed))?;
        let sequence = Sequence::new(config.flags.contains(StateFlags::ESN), first_free);
        let state = State::new(config, keys)?;
        Ok(OutboundState { lines: [], sequence, state, transform: Aligned(transform) })
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
        if config.spi == 0 && config.km_state != KmState::Acquiring {
            return Err(BadState::Spi);
        }
        let algorithm = match keys {
            Keys::Esp(keys) => Algorithm::Esp(keys.algorithm()),
            Keys::Ah(..) if config.encap.is_some() => return Err(BadState::EncapOfAh),
            Keys::Ah(auth, _) => Algorithm::Ah(*auth),
        };
        let Usage { bytes, packets, add_time_s, use_time_s } = config.usage;
        if add_time_s == 0 && config.lifetime.add_s != [0; 2] {
            return Err(BadState::AddTime);
        }
        Ok(State {
            bytes: AtomicU64::new(bytes),
            packets: AtomicU64::new(packets),
            use_time_s: AtomicU64::new(use_time_s),
            km_state: AtomicU8::new(config.km_state as u8),
            is_dying: AtomicBool::new(false),
            hot: Hot::new(&config, algorithm),
            config,
            algorithm,
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
        self.hot.protocol
    }

    /// Family of the addresses: of the outer header in tunnel mode.
    #[inline]
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.hot.dst)
    }

    /// Whether the SA has a flag.
    #[inline]
    #[must_use]
    pub fn has(&self, flag: StateFlags) -> bool {
        self.hot.flags.contains(flag)
    }

    /// Whether a tunnel may carry a packet of a family.
    #[inline]
    #[must_use]
    pub fn carries(&self, family: Family) -> bool {
        self.hot.selector_family.is_none_or(|of_selector| of_selector == family)
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
        const STATES: [KmState; 5] =
            [KmState::Acquiring, KmState::Valid, KmState::Error, KmState::Expired, KmState::Dead];
        let number = usize::from(self.km_state.load(Ordering::Relaxed));
        STATES.get(number).copied().unwrap_or(KmState::Dead)
    }

    /// Ends the SA, for example because it was deleted. An SA does not come back: `Acquiring` and `Valid`
    /// have no effect, nor has `Expired` after `Dead`.
    pub fn set_km_state(&self, km_state: KmState) {
        if !matches!(km_state, KmState::Acquiring | KmState::Valid) {
            // The states that end it are in the order of finality.
            self.km_state.fetch_max(km_state as u8, Ordering::Relaxed);
        }
    }

    /// Whether a soft limit was reached: the SA should be replaced.
    #[inline]
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.is_dying.load(Ordering::Relaxed)
    }

    /// Compares the time with the limits of time, as the kernel's `xfrm_timer_handler`, and sets
    /// [`km_state`](Self::km_state) and [`is_dying`](Self::is_dying) accordingly; false: a hard limit was
    /// reached, and the SA does not work any more. For an SA that has no packets.
    #[inline]
    pub fn check_time(&self, now_s: u64) -> bool {
        now_s < self.hot.check_from_s || self.compare_time(now_s)
    }

    fn compare_time(&self, now_s: u64) -> bool {
        let Lifetime { add_s, use_s, .. } = self.config.lifetime;
        // The time of addition is known if it has a limit (`BadState::AddTime`); a use that has not begun
        // has no end.
        let use_time_s = self.use_time_s.load(Ordering::Relaxed);
        let since = [(self.config.usage.add_time_s, add_s), (use_time_s, use_s)];
        let [soft, hard] = [0, 1].map(|limit| {
            since.into_iter().any(|(since_s, seconds)| {
                let seconds = seconds.get(limit).copied().unwrap_or(0);
                seconds != 0 && since_s != 0 && now_s >= since_s.saturating_add(seconds)
            })
        });
        self.set_reached(soft, hard)
    }

    /// Compares usage and time with the limits, as the kernel's `xfrm_state_check_expire` and
    /// `xfrm_timer_handler`; false: a hard limit was reached, and the SA does not work any more.
    #[inline]
    pub fn check_expire(&self, now_s: u64) -> bool {
        now_s < self.hot.check_from_s || self.compare_usage(now_s)
    }

    fn compare_usage(&self, now_s: u64) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let packets = self.packets.load(Ordering::Relaxed);
        let Lifetime {
            bytes: [soft_bytes, hard_bytes], packets: [soft_packets, hard_packets], ..
        } = self.config.lifetime;
        let hard = bytes >= hard_bytes || packets >= hard_packets;
        let soft = bytes >= soft_bytes || packets >= soft_packets;
        self.set_reached(soft, hard) && self.compare_time(now_s)
    }

    #[inline]
    fn set_reached(&self, soft: bool, hard: bool) -> bool {
        if hard {
            self.set_km_state(KmState::Expired);
        } else if soft && !self.is_dying() {
            self.is_dying.store(true, Ordering::Relaxed);
        }
        !hard
    }

    /// Counts one packet; false: another worker's packet has reached a hard limit since
    /// [`check_expire`](Self::check_expire), this one is not counted, and the SA does not work any more.
    ///
    /// Of several workers that have checked the same counters, only as many pass here as the limits permit.
    #[inline]
    pub(super) fn count(&self, octets: usize, now_s: u64) -> bool {
        if self.hot.check_from_s != 0 {
            // There are no limits of octets and packets.
            self.packets.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(octets as u64, Ordering::Relaxed);
        } else if !self.count_below(octets) {
            return false;
        }
        if self.use_time_s.load(Ordering::Relaxed) == 0 {
            // Of several first packets any one will do. 0 means that none came.
            self.use_time_s.store(now_s.max(1), Ordering::Relaxed);
        }
        true
    }

    /// The same for an SA that has limits.
    fn count_below(&self, octets: usize) -> bool {
        let Lifetime { bytes: [_, hard_bytes], packets: [_, hard_packets], .. } =
            self.config.lifetime;
        if !add_below(&self.packets, 1, hard_packets) {
            self.set_km_state(KmState::Expired);
            return false;
        }
        if !add_below(&self.bytes, octets as u64, hard_bytes) {
            // The SA has ended: that the packet was counted for a moment changes no decision.
            self.set_km_state(KmState::Expired);
            self.packets.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes back a packet that was counted and that another, such as the kernel, processes and counts instead.
    pub fn uncount(&self, octets: usize) {
        let subtract = |counter: &AtomicU64, amount: u64| {
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                Some(count.saturating_sub(amount))
            });
        };
        subtract(&self.packets, 1);
        subtract(&self.bytes, octets as u64);
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
            _ => Err(invalid),
        }
    }
}

/// Adds `amount` if the counter is below `limit`, in one step; false: it is not, and nothing is added.
#[inline]
fn add_below(counter: &AtomicU64, amount: u64, limit: u64) -> bool {
    if limit == u64::MAX {
        counter.fetch_add(amount, Ordering::Relaxed);
        return true;
    }
    // Not `fetch_add`, which would count packets that do not pass.
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            (value < limit).then(|| value.saturating_add(amount))
        })
        .is_ok()
}
