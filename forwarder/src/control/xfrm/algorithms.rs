//! The algorithms and keys of an SA, from XFRMA_ALG_AEAD, XFRMA_ALG_CRYPT and XFRMA_ALG_AUTH_TRUNC.
//!
//! Keys are copied once, from the receive buffer into [`Secret`]. Left out: lengths of keys, which [`InboundState`]
//! checks.
//!
//! [`InboundState`]: crate::ipsec::InboundState

use super::info::AlgorithmInfo;
use super::state::Unsupported;
use super::xfrma;
use crate::control::netlink::message::string;
use crate::control::netlink::table::Table;
use crate::ipsec::{Aead, Auth, Cipher, EspKeys, Keys, Secret};
use crate::wire::Protocol;

/// The keys of an SA of `proto`, which is ESP or AH.
pub(super) fn keys<const N: usize>(
    proto: Protocol,
    attrs: &Table<'_, N>,
) -> Result<Keys, Unsupported> {
    let aead = find(attrs, xfrma::ALG_AEAD, "XFRMA_ALG_AEAD", true)?;
    let cipher = find(attrs, xfrma::ALG_CRYPT, "XFRMA_ALG_CRYPT", false)?;
    let auth = find(attrs, xfrma::ALG_AUTH_TRUNC, "XFRMA_ALG_AUTH_TRUNC", true)?;
    match (proto, aead, cipher, auth) {
        (Protocol::ESP, Some(info), None, None) => {
            let name = string(info.name);
            let aead = Aead::from_name(&name, info.icv_bits).ok_or_else(|| of_icv(&info))?;
            Ok(Keys::Esp(EspKeys::Combined(aead, secret(&info)?)))
        }
        (Protocol::ESP, None, Some(cipher), Some(auth)) => {
            let name = string(cipher.name);
            let of_name = || Unsupported::new(format!("algorithm {name}"));
            let kind = Cipher::from_name(&name).ok_or_else(of_name)?;
            let (auth, auth_key) = auth_key(&auth)?;
            Ok(Keys::Esp(EspKeys::EncryptThenMac(kind, secret(&cipher)?, auth, auth_key)))
        }
        (Protocol::ESP, None, Some(_), None) => {
            Err(Unsupported::new("encryption without authentication"))
        }
        (Protocol::AH, None, None, Some(auth)) => {
            let (auth, key) = auth_key(&auth)?;
            Ok(Keys::Ah(auth, key))
        }
        // The kernel does not accept other combinations.
        _ => Err(Unsupported::new("this combination of algorithms")),
    }
}

fn find<'a, const N: usize>(
    attrs: &Table<'a, N>,
    kind: u16,
    name: &str,
    has_icv: bool,
) -> Result<Option<AlgorithmInfo<'a>>, Unsupported> {
    let Some(value) = attrs.get(kind) else { return Ok(None) };
    let info = AlgorithmInfo::parse(value, has_icv);
    info.map(Some).ok_or_else(|| Unsupported::new(format!("a malformed {name}")))
}

fn auth_key(info: &AlgorithmInfo<'_>) -> Result<(Auth, Secret), Unsupported> {
    let auth = Auth::from_name(&string(info.name), info.icv_bits).ok_or_else(|| of_icv(info))?;
    Ok((auth, secret(info)?))
}

fn of_icv(info: &AlgorithmInfo<'_>) -> Unsupported {
    let name = string(info.name);
    Unsupported::new(format!("algorithm {name} with an ICV of {} bits", info.icv_bits))
}

fn secret(info: &AlgorithmInfo<'_>) -> Result<Secret, Unsupported> {
    if !info.key_bits.is_multiple_of(8) {
        return Err(Unsupported::new(format!("a key of {} bits", info.key_bits)));
    }
    // In confidentiality mode, lockdown replaces keys by zeros (`xfrm_redact`).
    if !info.key.is_empty() && info.key.iter().all(|octet| *octet == 0) {
        return Err(Unsupported::new("a key of zeros, as those that kernel lockdown hides"));
    }
    Ok(Secret::from(info.key))
}
