//! What changes in an SA while it works: its sequence numbers, replay window and usage, read by XFRM_MSG_GETAE and
//! written by XFRM_MSG_NEWAE; and its end, by XFRM_MSG_EXPIRE. An owner of an SA other than the kernel keeps the
//! kernel's values up to date with them.

use std::io;

use super::info::{self, StateInfo, USAGE_LEN};
use super::state::SaId;
use super::{
    SELECTOR_LEN, address_octets, array, be32, family, family_number, mark, mark_octets, of_family,
    xfrma,
};
use crate::control::netlink::message::{Message, Request, u8_at, u16_at, u32_at};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::table::Table;
use crate::ipsec::{Mark, ReplaySnapshot, Usage, WINDOW_MAX};
use crate::wire::Protocol;

const XFRM_MSG_EXPIRE: u16 = 0x18;
const XFRM_MSG_NEWAE: u16 = 0x1e;
const XFRM_MSG_GETAE: u16 = 0x1f;
const NLM_F_REPLACE: u16 = 0x100;

/// Length of `struct xfrm_usersa_id`, octets.
pub(super) const USERSA_ID_LEN: usize = 24;
/// Length of `struct xfrm_aevent_id`, octets: a `struct xfrm_usersa_id`, source, flags, reqid.
const AEVENT_ID_LEN: usize = USERSA_ID_LEN + 24;
/// Length of `struct xfrm_user_expire`, octets: a `struct xfrm_usersa_info`, and whether the limit is a hard one.
pub(super) const EXPIRE_LEN: usize = StateInfo::LEN + 8;
/// Length of `struct xfrm_replay_state_esn` without the bitmap, octets.
const ESN_LEN: usize = 24;
/// Attributes before XFRMA_IF_ID.
const ATTRIBUTES: usize = 32;

/// Sequence numbers of an SA: `xfrm_replay_state` or `xfrm_replay_state_esn`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelReplay {
    /// The last number sent; 0 before the first packet. At most [`u32::MAX`] without ESN.
    pub oseq: u64,
    /// The highest number received; 0 before the first packet. At most [`u32::MAX`] without ESN.
    pub seq: u64,
    /// Numbers received: [`is_received`](Self::is_received) reads it. It has the length of the kernel's, which accepts
    /// no other (`xfrm_replay_verify_len`).
    pub bitmap: Vec<u32>,
    /// Length of the replay window in packets if it is XFRMA_REPLAY_ESN_VAL that has the numbers. `None`:
    /// XFRMA_REPLAY_VAL has, with one word of bitmap.
    pub window: Option<u32>,
}

impl KernelReplay {
    /// `None`: they are malformed. Without either attribute nothing was sent or received.
    pub(super) fn parse<const N: usize>(attrs: &Table<'_, N>) -> Option<KernelReplay> {
        if let Some(esn) = attrs.get(xfrma::REPLAY_ESN_VAL) {
            return Self::parse_esn(esn);
        }
        let legacy = attrs.get(xfrma::REPLAY_VAL).unwrap_or(&[0; 12]);
        let word = |n: usize| u32_at(legacy, 4 * n);
        Some(KernelReplay {
            oseq: word(0)?.into(),
            seq: word(1)?.into(),
            bitmap: vec![word(2)?],
            window: None,
        })
    }

    fn parse_esn(esn: &[u8]) -> Option<KernelReplay> {
        let word = |n: usize| u32_at(esn, 4 * n);
        let number = |low, high| Some(u64::from(word(high)?) << 32 | u64::from(word(low)?));
        let (words, window) = (word(0)?, word(5)?);
        if words > WINDOW_MAX / u32::BITS || window > words * u32::BITS {
            return None;
        }
        let bitmap = (0..words as usize).map(|n| u32_at(esn, ESN_LEN + 4 * n));
        Some(KernelReplay {
            oseq: number(1, 3)?,
            seq: number(2, 4)?,
            bitmap: bitmap.collect::<Option<_>>()?,
            window: Some(window),
        })
    }

    /// Whether `seq - back` was received, for each `back` below the length of the window: what
    /// [`ReplayWindow::restore`] needs.
    #[must_use]
    pub fn is_received(&self, back: u32) -> bool {
        self.bit(back).is_some_and(|(word, bit)| {
            self.bitmap.get(word).is_some_and(|received| received & bit != 0)
        })
    }

    /// The same SA after a window, which must have the length of the SA's, has received, too.
    #[must_use]
    pub fn with_received_by(&self, window: &ReplaySnapshot) -> KernelReplay {
        let top = window.top.max(self.seq);
        let mut replay = KernelReplay { seq: top, ..self.clone() };
        replay.bitmap.fill(0);
        for back in 0..window.window() {
            let of_kernel = |number| {
                let back = self.seq.checked_sub(number).and_then(|back| u32::try_from(back).ok());
                back.is_some_and(|back| self.is_received(back))
            };
            let is_received = top
                .checked_sub(u64::from(back))
                .is_some_and(|number| window.is_received(number) || of_kernel(number));
            if is_received
                && let Some((word, bit)) = replay.bit(back)
                && let Some(word) = replay.bitmap.get_mut(word)
            {
                *word |= bit;
            }
        }
        replay
    }

    /// The word and the bit of `seq - back`.
    fn bit(&self, back: u32) -> Option<(usize, u32)> {
        let at = match self.window {
            // `xfrm_replay_advance`: the highest number is the lowest bit.
            None => (back < u32::BITS).then_some(back)?,
            // `xfrm_replay_check_esn`: a ring.
            Some(window) => {
                (back < window).then_some(())?;
                let top = (self.seq as u32).wrapping_sub(1) % window;
                if top >= back { top - back } else { window - (back - top) }
            }
        };
        Some(((at / u32::BITS) as usize, 1 << (at % u32::BITS)))
    }

    /// Appends the attribute.
    fn append(&self, request: Request) -> Request {
        let octets = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let Some(window) = self.window else {
            // A number that is too large becomes the last one: the kernel sends nothing after it.
            let number = |seq: u64| u32::try_from(seq).unwrap_or(u32::MAX);
            let bitmap = self.bitmap.first().copied().unwrap_or_default();
            let legacy = octets(&[number(self.oseq), number(self.seq), bitmap]);
            return request.attr(xfrma::REPLAY_VAL, &legacy);
        };
        let (oseq, seq) = (self.oseq, self.seq);
        let [oseq_hi, seq_hi] = [oseq, seq].map(|number| (number >> 32) as u32);
        let words = self.bitmap.len() as u32;
        let mut esn = octets(&[words, oseq as u32, seq as u32, oseq_hi, seq_hi, window]);
        esn.extend(octets(&self.bitmap));
        request.attr(xfrma::REPLAY_ESN_VAL, &esn)
    }
}

/// What changes in an SA while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AeState {
    /// Sequence numbers.
    pub replay: KernelReplay,
    /// Usage.
    pub usage: Usage,
}

/// Reads what the kernel has now; `None` if there is no such SA. `socket`: of NETLINK_XFRM.
///
/// # Errors
/// When the request fails for another reason, or the reply cannot be read (InvalidData).
pub fn get_ae(socket: &mut NlSock, id: &SaId) -> io::Result<Option<AeState>> {
    let request = |flags| with_mark(Request::new(XFRM_MSG_GETAE, flags, &aevent_id(id)), id.mark);
    match socket.get(request, aevent) {
        Ok(Some((_, state))) => Ok(Some(state)),
        Ok(None) => Err(io::Error::new(io::ErrorKind::InvalidData, "an SA cannot be parsed")),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces sequence numbers and usage, as far as they are given; `false` if there is no such SA. `replay` is one that
/// was read from this SA, with other numbers. The kernel does not compare: numbers that it has given meanwhile are given
/// again. It notifies the group [`XFRMNLGRP_AEVENTS`](super::changes::XFRMNLGRP_AEVENTS).
///
/// # Errors
/// When the request fails for another reason: EINVAL if the bitmap has another length than the kernel's, or if the
/// SA does not work, being negotiated or expired.
pub fn new_ae(
    socket: &mut NlSock,
    id: &SaId,
    replay: Option<&KernelReplay>,
    usage: Option<Usage>,
) -> io::Result<bool> {
    let mut answers = new_ae_all(socket, &[(*id, replay.cloned(), usage)]);
    answers.pop().unwrap_or(Ok(false))
}

/// As [`new_ae`], for many SAs in few system calls; the answers are in the order of `updates`.
pub fn new_ae_all(
    socket: &mut NlSock,
    updates: &[(SaId, Option<KernelReplay>, Option<Usage>)],
) -> Vec<io::Result<bool>> {
    let request = |update: &(SaId, Option<KernelReplay>, Option<Usage>), flags| {
        let (id, replay, usage) = update;
        let request = with_mark(Request::new(XFRM_MSG_NEWAE, flags, &aevent_id(id)), id.mark);
        let request = match replay {
            Some(replay) => replay.append(request),
            None => request,
        };
        match usage {
            Some(usage) => request.attr(xfrma::LTIME_VAL, &usage_octets(usage)),
            None => request,
        }
    };
    let answers = socket.change_all(updates, NLM_F_REPLACE, request, |_| {});
    answers.into_iter().map(|answer| unless(libc::ESRCH, answer)).collect()
}

/// Reports that an SA has reached a limit: the kernel tells key management, and deletes the SA if the limit is a hard
/// one. `false` if there is no such SA.
///
/// # Errors
/// When the request fails for another reason: EINVAL if the SA does not work.
pub fn expire(socket: &mut NlSock, id: &SaId, is_hard: bool) -> io::Result<bool> {
    // `xfrm_add_sa_expire` reads of the SA only what identifies it.
    let mut header = [0; EXPIRE_LEN];
    let [dst, spi, proto, family] = [0, 16, 20, 212 - SELECTOR_LEN].map(|at| SELECTOR_LEN + at);
    header[dst..spi].copy_from_slice(&address_octets(id.dst));
    header[spi..proto].copy_from_slice(&id.spi.to_be_bytes());
    header[proto] = id.proto.0;
    header[family..family + 2].copy_from_slice(&family_number(id.family()).to_ne_bytes());
    header[StateInfo::LEN] = u8::from(is_hard);
    let request = |flags| with_mark(Request::new(XFRM_MSG_EXPIRE, flags, &header), id.mark);
    unless(libc::ENOENT, socket.get(request, |_| None::<()>).map(drop))
}

/// XFRM_MSG_NEWAE, of a reply or of a notification: which SA, and what it has now. `None`: it is another message, or
/// malformed.
pub fn aevent(message: &Message<'_>) -> Option<(SaId, AeState)> {
    (message.kind == XFRM_MSG_NEWAE).then_some(())?;
    let attrs: Table<'_, ATTRIBUTES> = Table::lenient(message.attrs(AEVENT_ID_LEN))?;
    // Without it the attributes are cut off.
    let usage = info::usage(attrs.get(xfrma::LTIME_VAL)?, 0)?;
    let mark = attrs.get(xfrma::MARK).map_or(Some(Mark::default()), mark)?;
    let id = usersa_id(message.payload, mark)?;
    Some((id, AeState { replay: KernelReplay::parse(&attrs)?, usage }))
}

/// A `struct xfrm_usersa_id` at the start of `data`.
pub(super) fn usersa_id(data: &[u8], mark: Mark) -> Option<SaId> {
    let family = family(u16_at(data, 20)?)?;
    Some(SaId {
        dst: of_family(array(data, 0)?, family),
        spi: be32(data, 16)?,
        proto: Protocol(u8_at(data, 22)?),
        mark,
    })
}

/// A `struct xfrm_aevent_id`, of which the kernel reads what identifies the SA, and which other attributes are wanted.
fn aevent_id(id: &SaId) -> [u8; AEVENT_ID_LEN] {
    let mut octets = [0; AEVENT_ID_LEN];
    octets[..16].copy_from_slice(&address_octets(id.dst));
    octets[16..20].copy_from_slice(&id.spi.to_be_bytes());
    octets[20..22].copy_from_slice(&family_number(id.family()).to_ne_bytes());
    octets[22] = id.proto.0;
    octets
}

fn with_mark(request: Request, mark: Mark) -> Request {
    if mark == Mark::default() { request } else { request.attr(xfrma::MARK, &mark_octets(mark)) }
}

fn usage_octets(usage: &Usage) -> [u8; USAGE_LEN] {
    let mut octets = [0; USAGE_LEN];
    let values = [usage.bytes, usage.packets, usage.add_time_s, usage.use_time_s];
    for (place, value) in octets.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    octets
}

/// `false` for an errno that says that there is no such SA.
fn unless(errno: i32, answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(false),
        Err(error) => Err(error),
    }
}
