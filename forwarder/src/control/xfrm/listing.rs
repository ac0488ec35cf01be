//! SAs and policies with all that the kernel tells of them, to be shown: also what Ferroute does not support.
//!
//! Left out: names of numbers, and the format in which they are shown.

use std::io;

use zeroize::Zeroizing;

use super::ae::KernelReplay;
use super::info::{AlgorithmInfo, EncapInfo, PolicyInfo, StateInfo, TemplateInfo};
use super::policy::{POLICY_ID_LEN, XFRM_MSG_GETPOLICY};
use super::state::{self, XFRM_MSG_GETSA};
use super::{ADDRESS_LEN, array, mark, u64_at, xfrma};
use crate::control::netlink::message::{Message, string, u8_at, u16_at, u32_at};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::table::Table;
use crate::ipsec::Mark;

/// Attributes from here on are those of a newer kernel, and not shown.
const ATTRIBUTES: usize = 64;
/// Length of `struct xfrm_user_sec_ctx`, octets: two lengths, algorithm and domain, the length of the text.
const SEC_CTX_LEN: usize = 8;

/// An SA.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct StateEntry {
    /// What is not an attribute.
    pub info: StateInfo,
    /// Attributes.
    pub extras: Extras,
    /// Why workers cannot use it.
    pub obstacle: Option<String>,
}

/// A policy.
#[expect(missing_debug_implementations, reason = "has the same attributes as an SA")]
pub struct PolicyEntry {
    /// What is not an attribute.
    pub info: PolicyInfo,
    /// Attributes.
    pub extras: Extras,
}

/// Attributes of SAs and policies.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct Extras {
    /// XFRMA_SA_EXTRA_FLAGS.
    pub extra_flags: Option<u32>,
    /// XFRMA_MARK.
    pub mark: Option<Mark>,
    /// XFRMA_SET_MARK and XFRMA_SET_MARK_MASK.
    pub output_mark: Option<(u32, Option<u32>)>,
    /// XFRMA_ALG_*, in the order in which they are shown.
    pub algorithms: Vec<AlgorithmEntry>,
    /// XFRMA_ENCAP.
    pub encap: Option<EncapInfo>,
    /// XFRMA_TMPL.
    pub templates: Vec<TemplateInfo>,
    /// XFRMA_COADDR.
    pub coaddr: Option<[u8; ADDRESS_LEN]>,
    /// XFRMA_LASTUSED: seconds since 1970.
    pub lastused_s: Option<u64>,
    /// XFRMA_REPLAY_VAL or XFRMA_REPLAY_ESN_VAL.
    pub replay: Option<KernelReplay>,
    /// XFRMA_OFFLOAD_DEV: interface and XFRM_OFFLOAD_*.
    pub offload: Option<(u32, u8)>,
    /// XFRMA_IF_ID.
    pub if_id: Option<u32>,
    /// XFRMA_TFCPAD.
    pub tfcpad: Option<u32>,
    /// XFRMA_SA_DIR: XFRM_SA_DIR_*.
    pub direction: Option<u8>,
    /// XFRMA_POLICY_TYPE: XFRM_POLICY_TYPE_*.
    pub policy_type: Option<u8>,
    /// XFRMA_SEC_CTX.
    pub security_context: Option<String>,
}

/// An algorithm.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct AlgorithmEntry {
    /// Which attribute has it.
    pub kind: AlgorithmKind,
    /// The kernel's name.
    pub name: String,
    /// The key, if it was asked for.
    pub key: Option<Zeroizing<Vec<u8>>>,
    /// Length of the key in bits.
    pub key_bits: u32,
    /// Length of the ICV in bits, if the attribute has it.
    pub icv_bits: Option<u32>,
}

/// Attributes of algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlgorithmKind {
    /// XFRMA_ALG_AUTH, which is left out if there is XFRMA_ALG_AUTH_TRUNC.
    Auth,
    /// XFRMA_ALG_AUTH_TRUNC.
    AuthTrunc,
    /// XFRMA_ALG_AEAD.
    Aead,
    /// XFRMA_ALG_CRYPT.
    Crypt,
    /// XFRMA_ALG_COMP.
    Comp,
}

/// Reads all SAs. `has_keys`: with keys. `socket`: of NETLINK_XFRM.
///
/// # Errors
/// When the request fails, or a message cannot be read (InvalidData).
pub fn states(socket: &mut NlSock, has_keys: bool) -> io::Result<Vec<StateEntry>> {
    let read = |message: &Message<'_>| {
        let obstacle = state::parse(message)?.obstacle();
        let info = StateInfo::parse(message.payload)?;
        let extras = Extras::parse(message, StateInfo::LEN, has_keys)?;
        Some(StateEntry { info, extras, obstacle })
    };
    let states = socket.dump(XFRM_MSG_GETSA, &[], |message| Some(read(message)));
    socket.wipe();
    all_of(states?)
}

/// Reads all policies, those of sockets included. `socket`: of NETLINK_XFRM.
///
/// # Errors
/// When the request fails, or a message cannot be read (InvalidData).
pub fn policies(socket: &mut NlSock) -> io::Result<Vec<PolicyEntry>> {
    let read = |message: &Message<'_>| {
        let info = PolicyInfo::parse(message.payload)?;
        let extras = Extras::parse(message, PolicyInfo::LEN, false)?;
        Some(PolicyEntry { info, extras })
    };
    let request = [0; POLICY_ID_LEN];
    all_of(socket.dump(XFRM_MSG_GETPOLICY, &request, |message| Some(read(message)))?)
}

fn all_of<T>(entries: Vec<Option<T>>) -> io::Result<Vec<T>> {
    let entries: Option<Vec<T>> = entries.into_iter().collect();
    entries.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message cannot be parsed"))
}

impl Extras {
    /// `None`: an attribute is malformed.
    pub(super) fn parse(
        message: &Message<'_>,
        header_len: usize,
        has_keys: bool,
    ) -> Option<Extras> {
        let attrs: Table<'_, ATTRIBUTES> = Table::lenient(message.attrs(header_len))?;
        let number = |kind| optional(attrs.get(kind), |value| u32_at(value, 0));
        let octet = |kind| optional(attrs.get(kind), |value| u8_at(value, 0));
        let set_mark = number(xfrma::SET_MARK)?;
        let set_mask = number(xfrma::SET_MARK_MASK)?;
        let has_replay = attrs.has(xfrma::REPLAY_VAL) || attrs.has(xfrma::REPLAY_ESN_VAL);
        let templates = attrs.get(xfrma::TMPL).unwrap_or_default();
        Some(Extras {
            extra_flags: number(xfrma::SA_EXTRA_FLAGS)?,
            mark: optional(attrs.get(xfrma::MARK), mark)?,
            output_mark: set_mark.map(|value| (value, set_mask)),
            algorithms: algorithms(&attrs, has_keys)?,
            encap: optional(attrs.get(xfrma::ENCAP), EncapInfo::parse)?,
            templates: templates
                .chunks(TemplateInfo::LEN)
                .map(TemplateInfo::parse)
                .collect::<Option<_>>()?,
            coaddr: optional(attrs.get(xfrma::COADDR), |value| array(value, 0))?,
            lastused_s: optional(attrs.get(xfrma::LASTUSED), |value| u64_at(value, 0))?,
            replay: if has_replay { Some(KernelReplay::parse(&attrs)?) } else { None },
            offload: optional(attrs.get(xfrma::OFFLOAD_DEV), |value| {
                Some((u32_at(value, 0)?, u8_at(value, 4)?))
            })?,
            if_id: number(xfrma::IF_ID)?,
            tfcpad: number(xfrma::TFCPAD)?,
            direction: octet(xfrma::SA_DIR)?,
            policy_type: octet(xfrma::POLICY_TYPE)?,
            security_context: optional(attrs.get(xfrma::SEC_CTX), |value| {
                let len = usize::from(u16_at(value, 6)?);
                Some(string(value.get(SEC_CTX_LEN..)?.get(..len)?))
            })?,
        })
    }
}

/// `None`: the value is malformed.
fn optional<'a, T>(
    value: Option<&'a [u8]>,
    parse: impl FnOnce(&'a [u8]) -> Option<T>,
) -> Option<Option<T>> {
    match value {
        Some(value) => parse(value).map(Some),
        None => Some(None),
    }
}

fn algorithms(attrs: &Table<'_, ATTRIBUTES>, has_keys: bool) -> Option<Vec<AlgorithmEntry>> {
    let kinds = [
        (xfrma::ALG_AUTH, AlgorithmKind::Auth, false),
        (xfrma::ALG_AUTH_TRUNC, AlgorithmKind::AuthTrunc, true),
        (xfrma::ALG_AEAD, AlgorithmKind::Aead, true),
        (xfrma::ALG_CRYPT, AlgorithmKind::Crypt, false),
        (xfrma::ALG_COMP, AlgorithmKind::Comp, false),
    ];
    let is_shown = |kind| kind != xfrma::ALG_AUTH || !attrs.has(xfrma::ALG_AUTH_TRUNC);
    let mut entries = Vec::with_capacity(kinds.len());
    for (attr, kind, has_icv) in kinds {
        let Some(value) = attrs.get(attr).filter(|_| is_shown(attr)) else { continue };
        let info = AlgorithmInfo::parse(value, has_icv)?;
        entries.push(AlgorithmEntry {
            kind,
            name: string(info.name),
            key: has_keys.then(|| Zeroizing::new(info.key.to_vec())),
            key_bits: info.key_bits,
            icv_bits: has_icv.then_some(info.icv_bits),
        });
    }
    Some(entries)
}
