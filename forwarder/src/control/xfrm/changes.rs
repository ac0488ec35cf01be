//! Which SAs notifications of the kernel concern.
//!
//! Notifications of SAs have keys: their buffer is to be overwritten ([`Events::wipe`]). SAs that are being negotiated
//! are added without a notification (the group [`XFRMNLGRP_ACQUIRE`] has the request to negotiate).
//!
//! [`Events::wipe`]: crate::control::netlink::events::Events::wipe

use super::ae::{self, EXPIRE_LEN, USERSA_ID_LEN};
use super::info::StateInfo;
use super::state::SaId;
use super::{family, mark, of_family, xfrma};
use crate::control::netlink::message::{Message, u8_at};
use crate::ipsec::Mark;
use crate::wire::Protocol;

/// Requests to negotiate an SA.
pub const XFRMNLGRP_ACQUIRE: u32 = 1;
/// SAs and policies that reach limits: [`changed`] reads the messages of SAs.
pub const XFRMNLGRP_EXPIRE: u32 = 2;
/// SAs that are added, changed or deleted: [`changed`].
pub const XFRMNLGRP_SA: u32 = 3;
/// Policies that are added, changed or deleted, and defaults.
pub const XFRMNLGRP_POLICY: u32 = 4;
/// Sequence numbers and usage of SAs: [`aevent`](ae::aevent).
pub const XFRMNLGRP_AEVENTS: u32 = 5;
/// SAs that get other addresses: [`changed`]; there are no messages of the group SA.
pub const XFRMNLGRP_MIGRATE: u32 = 7;

const XFRM_MSG_NEWSA: u16 = 0x10;
const XFRM_MSG_DELSA: u16 = 0x11;
const XFRM_MSG_EXPIRE: u16 = 0x18;
const XFRM_MSG_UPDSA: u16 = 0x1a;
const XFRM_MSG_FLUSHSA: u16 = 0x1c;
const XFRM_MSG_MIGRATE: u16 = 0x21;

/// Which SAs have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// This one was added, changed or deleted, or has reached a limit.
    One(SaId),
    /// Perhaps all.
    All,
}

/// Which SAs have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This one was deleted.
    Deleted(SaId),
    /// This one has reached a hard limit.
    Expired(SaId),
    /// Perhaps all.
    All,
}

/// The SAs that a notification of the groups SA, EXPIRE or MIGRATE concerns. `None`: it concerns none, but a policy. A
/// malformed one may concern all.
pub fn changed(message: &Message<'_>) -> Option<Changed> {
    let one = match message.kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => of_info(message, StateInfo::LEN),
        XFRM_MSG_EXPIRE => of_info(message, EXPIRE_LEN),
        XFRM_MSG_DELSA => {
            mark_of(message, USERSA_ID_LEN).and_then(|mark| ae::usersa_id(message.payload, mark))
        }
        XFRM_MSG_FLUSHSA | XFRM_MSG_MIGRATE => None,
        _ => return None,
    };
    Some(one.map_or(Changed::All, Changed::One))
}

/// The SAs that a notification says to have ended. `None`: none, although [`changed`] may name some.
pub fn ended(message: &Message<'_>) -> Option<End> {
    let is_expired = match message.kind {
        XFRM_MSG_DELSA | XFRM_MSG_FLUSHSA => false,
        // A hard limit.
        XFRM_MSG_EXPIRE if u8_at(message.payload, StateInfo::LEN) == Some(1) => true,
        _ => return None,
    };
    Some(match changed(message)? {
        Changed::One(id) if is_expired => End::Expired(id),
        Changed::One(id) => End::Deleted(id),
        Changed::All => End::All,
    })
}

/// Of a message that begins with a `struct xfrm_usersa_info`, in a header of `header_len` octets.
fn of_info(message: &Message<'_>, header_len: usize) -> Option<SaId> {
    let info = StateInfo::parse(message.payload)?;
    Some(SaId {
        dst: of_family(info.dst, family(info.family)?),
        spi: info.spi,
        proto: Protocol(info.proto),
        mark: mark_of(message, header_len)?,
    })
}

/// No mark if there is no attribute; `None` if a malformed attribute, or a header that is cut off, may hide it.
fn mark_of(message: &Message<'_>, header_len: usize) -> Option<Mark> {
    message.payload.get(header_len..)?;
    let mut attrs = message.attrs(header_len);
    match attrs.find(|attr| attr.kind == xfrma::MARK) {
        Some(attr) => mark(attr.value),
        None => attrs.0.is_empty().then(Mark::default),
    }
}
