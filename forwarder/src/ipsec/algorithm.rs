//! The algorithms of ESP and AH, with their lengths and the kernel's names.
//!
//! Not included: MD5, DES and others that RFC 8221 rules out, AES-CCM, AES-GCM with keys of 192 bits,
//! truncations other than those of the RFCs, and encryption without authentication. An SA that needs them is
//! left to the kernel.

use super::key::Secret;

/// Encryption and authentication in one algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aead {
    /// AES-GCM with a 16-octet ICV and a key of 128 or 256 bits (RFC 4106).
    AesGcm,
    /// AES-GMAC: authentication only, with the same keys (RFC 4543).
    AesGmac,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
}

/// Encryption alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// No encryption (RFC 2410).
    Null,
    /// AES-CBC (RFC 3602).
    AesCbc,
    /// AES-CTR (RFC 3686).
    AesCtr,
}

/// Authentication alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Auth {
    /// HMAC-SHA-1-96 (RFC 2404).
    HmacSha1_96,
    /// HMAC-SHA-256-128 (RFC 4868).
    HmacSha256_128,
    /// HMAC-SHA-384-192 (RFC 4868).
    HmacSha384_192,
    /// HMAC-SHA-512-256 (RFC 4868).
    HmacSha512_256,
}

/// The algorithms of an ESP SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EspAlgorithm {
    /// One for both.
    Combined(Aead),
    /// Encryption, and authentication of what is encrypted.
    EncryptThenMac(Cipher, Auth),
}

/// The algorithms of an ESP SA with their keys.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub enum EspKeys {
    /// One for both; the last 4 octets of the key are the salt, as in XFRMA_ALG_AEAD.
    Combined(Aead, Secret),
    /// Encryption, and authentication of what is encrypted. The last 4 octets of a key for AES-CTR are the
    /// nonce, as in XFRMA_ALG_CRYPT; the key for [`Cipher::Null`] is empty. A key for HMAC has any length but
    /// 0, as in the kernel, although RFC 2404 and RFC 4868 require that of the hash.
    EncryptThenMac(Cipher, Secret, Auth, Secret),
}

impl EspKeys {
    /// The algorithms.
    #[must_use]
    pub fn algorithm(&self) -> EspAlgorithm {
        match *self {
            EspKeys::Combined(aead, _) => EspAlgorithm::Combined(aead),
            EspKeys::EncryptThenMac(cipher, _, auth, _) => {
                EspAlgorithm::EncryptThenMac(cipher, auth)
            }
        }
    }
}

/// A key that the algorithm cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of {octets} octets for {algorithm}")]
pub struct BadKey {
    /// The kernel's name of the algorithm.
    pub algorithm: &'static str,
    /// Length of the key, in octets.
    pub octets: usize,
}

impl Aead {
    /// All of them.
    pub const ALL: [Aead; 3] = [Aead::AesGcm, Aead::AesGmac, Aead::ChaCha20Poly1305];

    /// Lengths that a key may have, with its salt of 4 octets, in octets.
    #[must_use]
    pub const fn key_lens(self) -> &'static [usize] {
        match self {
            Aead::AesGcm | Aead::AesGmac => &[20, 36],
            Aead::ChaCha20Poly1305 => &[36],
        }
    }

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Aead::AesGcm => "rfc4106(gcm(aes))",
            Aead::AesGmac => "rfc4543(gcm(aes))",
            Aead::ChaCha20Poly1305 => "rfc7539esp(chacha20,poly1305)",
        }
    }

    /// The algorithm of XFRMA_ALG_AEAD; `icv_bits` is `alg_icv_len`. `None`: not supported.
    #[must_use]
    pub fn from_name(name: &str, icv_bits: u32) -> Option<Aead> {
        Aead::ALL.into_iter().find(|aead| aead.name() == name && icv_bits == 128)
    }
}

impl Cipher {
    /// All of them.
    pub const ALL: [Cipher; 3] = [Cipher::Null, Cipher::AesCbc, Cipher::AesCtr];

    /// Lengths that a key may have, for AES-CTR with its nonce of 4 octets, in octets.
    #[must_use]
    pub const fn key_lens(self) -> &'static [usize] {
        match self {
            Cipher::Null => &[0],
            Cipher::AesCbc => &[16, 24, 32],
            Cipher::AesCtr => &[20, 28, 36],
        }
    }

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Cipher::Null => "ecb(cipher_null)",
            Cipher::AesCbc => "cbc(aes)",
            Cipher::AesCtr => "rfc3686(ctr(aes))",
        }
    }

    /// The algorithm of XFRMA_ALG_CRYPT. `None`: not supported.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Cipher> {
        // The kernel has a second name for these.
        let alias = match name {
            "cipher_null" => Some(Cipher::Null),
            "aes" => Some(Cipher::AesCbc),
            _ => None,
        };
        alias.or_else(|| Cipher::ALL.into_iter().find(|cipher| cipher.name() == name))
    }
}

impl Auth {
    /// All of them.
    pub const ALL: [Auth; 4] =
        [Auth::HmacSha1_96, Auth::HmacSha256_128, Auth::HmacSha384_192, Auth::HmacSha512_256];

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Auth::HmacSha1_96 => "hmac(sha1)",
            Auth::HmacSha256_128 => "hmac(sha256)",
            Auth::HmacSha384_192 => "hmac(sha384)",
            Auth::HmacSha512_256 => "hmac(sha512)",
        }
    }

    /// The algorithm of XFRMA_ALG_AUTH_TRUNC; `icv_bits` is `alg_trunc_len`. `None`: not supported, as
    /// the 96 bits that the kernel takes for SHA-256 when none are given.
    #[must_use]
    pub fn from_name(name: &str, icv_bits: u32) -> Option<Auth> {
        let is_it = |auth: &Auth| auth.name() == name && auth.icv_len() as u32 * 8 == icv_bits;
        Auth::ALL.into_iter().find(is_it)
    }

    /// Length of the ICV, in octets: half of the hash, and 12 for SHA-1.
    #[must_use]
    pub const fn icv_len(self) -> usize {
        match self {
            Auth::HmacSha1_96 => 12,
            Auth::HmacSha256_128 => 16,
            Auth::HmacSha384_192 => 24,
            Auth::HmacSha512_256 => 32,
        }
    }
}

impl EspAlgorithm {
    /// Length of the IV in each packet, in octets.
    #[must_use]
    pub const fn iv_len(self) -> usize {
        match self {
            EspAlgorithm::Combined(_) | EspAlgorithm::EncryptThenMac(Cipher::AesCtr, _) => 8,
            EspAlgorithm::EncryptThenMac(Cipher::AesCbc, _) => 16,
            EspAlgorithm::EncryptThenMac(Cipher::Null, _) => 0,
        }
    }

    /// Length of the ICV, in octets.
    #[must_use]
    pub const fn icv_len(self) -> usize {
        match self {
            EspAlgorithm::Combined(_) => 16,
            EspAlgorithm::EncryptThenMac(_, auth) => auth.icv_len(),
        }
    }

    /// What the encrypted octets, trailer included, are a multiple of: the cipher's block, or 4 octets
    /// (RFC 4303 §2.4).
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            EspAlgorithm::EncryptThenMac(Cipher::AesCbc, _) => 16,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_names_are_understood() {
        assert_eq!(Aead::from_name("rfc4106(gcm(aes))", 128), Some(Aead::AesGcm));
        assert_eq!(Aead::from_name("rfc4106(gcm(aes))", 96), None);
        assert_eq!(Aead::from_name("rfc4309(ccm(aes))", 128), None);
        assert_eq!(Cipher::from_name("cbc(aes)"), Some(Cipher::AesCbc));
        assert_eq!(Cipher::from_name("ecb(cipher_null)"), Some(Cipher::Null));
        assert_eq!(Cipher::from_name("cbc(des3_ede)"), None);
        assert_eq!(Auth::from_name("hmac(sha256)", 128), Some(Auth::HmacSha256_128));
        assert_eq!(Auth::from_name("hmac(sha256)", 96), None);
        for auth in Auth::ALL {
            assert_eq!(Auth::from_name(auth.name(), auth.icv_len() as u32 * 8), Some(auth));
        }
    }
}
