//! HMAC over the pieces of a packet (RFC 2104), truncated to the ICV (RFC 2404, RFC 4868).

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::algorithm::{Auth, BadKey};
use super::crypto::{Failed, Number};
use super::key::Secret;

/// An HMAC key: the hash states after the padded key (RFC 2104 §4).
pub(super) struct MacKey {
    /// The hash of a packet before its first octet.
    start: MacContext,
    icv_len: usize,
}

/// The hash of one packet.
#[derive(Clone)]
pub(super) enum MacContext {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

/// Runs code for the hash.
macro_rules! with_hmac {
    ($context:expr, $hmac:ident => $code:expr) => {
        match $context {
            MacContext::Sha1($hmac) => $code,
            MacContext::Sha256($hmac) => $code,
            MacContext::Sha384($hmac) => $code,
            MacContext::Sha512($hmac) => $code,
        }
    };
}

impl MacKey {
    /// A key of any length but none: RFC 2404 §3 and RFC 4868 §2.1.1 require that of the hash, but the kernel
    /// accepts others, and a peer may have one. An empty key would authenticate everyone.
    pub fn new(auth: Auth, secret: &Secret) -> Result<MacKey, BadKey> {
        let key = secret.octets();
        if key.is_empty() {
            return Err(BadKey { algorithm: auth.name(), octets: 0 });
        }
        let start = match auth {
            Auth::HmacSha1_96 => Hmac::new_from_slice(key).map(MacContext::Sha1),
            Auth::HmacSha256_128 => Hmac::new_from_slice(key).map(MacContext::Sha256),
            Auth::HmacSha384_192 => Hmac::new_from_slice(key).map(MacContext::Sha384),
            Auth::HmacSha512_256 => Hmac::new_from_slice(key).map(MacContext::Sha512),
        };
        let bad = |_| BadKey { algorithm: auth.name(), octets: key.len() };
        Ok(MacKey { start: start.map_err(bad)?, icv_len: auth.icv_len() })
    }

    /// Length of the ICV, in octets.
    #[inline]
    pub fn icv_len(&self) -> usize {
        self.icv_len
    }

    /// Starts the hash of one packet.
    #[inline]
    pub fn start(&self) -> MacContext {
        self.start.clone()
    }
}

impl MacContext {
    /// Adds octets of the packet.
    #[inline]
    pub fn update(&mut self, octets: &[u8]) {
        with_hmac!(self, hmac => hmac.update(octets));
    }

    /// Writes the ICV, of which `icv` has the length, after the high half of the number was added.
    #[inline]
    pub fn write(mut self, number: Number, icv: &mut [u8]) -> Result<(), Failed> {
        self.add_high(number);
        with_hmac!(self, hmac => {
            let tag = hmac.finalize().into_bytes();
            icv.copy_from_slice(tag.get(..icv.len()).ok_or(Failed)?);
        });
        Ok(())
    }

    /// Compares the ICV in constant time, after the high half of the number was added.
    #[inline]
    pub fn verify(mut self, number: Number, icv: &[u8]) -> Result<(), Failed> {
        self.add_high(number);
        with_hmac!(self, hmac => hmac.verify_truncated_left(icv).map_err(|_| Failed))
    }

    #[inline]
    fn add_high(&mut self, number: Number) {
        let (high, len) = number.high();
        self.update(high.get(..len).unwrap_or(&[]));
    }
}
