//! The cryptographic operations of ESP and AH on one packet, over libraries.
//!
//! Combined algorithms are those of `ring`, the others RustCrypto's, because `ring` has neither CBC nor CTR,
//! and its HMAC-SHA-1 takes four times as long. Both choose instructions (AES-NI, VAES, SHA extensions) at
//! run time. Measured with AES-128-GCM, 64 and 1400 octets: `ring` 152 and 647 ns, AWS-LC 197 and 664 ns,
//! RustCrypto 142 and 976 ns. Keys of `ring` are part of the SA, and can be prefetched with it; those of
//! AWS-LC are elsewhere on the heap, which doubled the time of a packet with 10,000 SAs. RustCrypto
//! overwrites its keys when they are dropped, `ring` does not, so that [`AeadKey`] does.
//!
//! **IVs.** Those of counter modes (GCM, GMAC, ChaCha20-Poly1305, CTR) are the 64-bit sequence number XOR a
//! salt of 64 bits, as the kernel's `seqiv` makes them. For one salt that is one to one, so IVs differ as
//! sequence numbers do, and [`Sequence`](super::Sequence) gives each number once. The kernel's transform for
//! the same key has a salt of its own, which it draws when the SA is made and does not tell. With
//! [`IvSeed::kernel_salt`], taken from a packet that the kernel sent on the SA (its IV XOR its sequence
//! number), the two generators are the same function on disjoint ranges of numbers, and no IV repeats. With a
//! random salt an IV repeats only if the two salts XOR to the XOR of two numbers in use: 2^(n-64) for numbers
//! below 2^n, which without ESN is the limit of NIST SP 800-38D §8 (2^-32). IVs of CBC must be unpredictable
//! (RFC 3602 §3): each is the sequence number encrypted with a random key of the SA's own (NIST SP 800-38A
//! appendix C).

use aes::cipher::{
    Array, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit,
    StreamCipher, StreamCipherCoreWrapper,
};
use aes::{Aes128, Aes192, Aes256};
use ring::aead;
use zeroize::Zeroizing;

use super::algorithm::{Aead, BadKey, Cipher, EspAlgorithm, EspKeys};
use super::key::Secret;
use super::mac::MacKey;
use crate::wire::esp::HEADER_LEN;

/// Octets that [`EspTransform`] needs before the ESP header, for a moment: with ESN, GMAC authenticates the
/// high half of the number between SPI and low half, where the packet has no room.
pub(super) const ROOM_BEFORE: usize = 4;
/// Octets of a key that are the salt (RFC 4106 §8.1, RFC 7634 §2) or nonce (RFC 3686 §4).
const SALT_LEN: usize = 4;
/// Length of the IV of all but CBC, in octets.
const IV_LEN: usize = 8;
/// A block of AES, in octets.
const BLOCK_LEN: usize = 16;

/// What the IVs of an outbound SA are made from, beside the sequence numbers; the head of the file says why.
/// It is used up by the SA: two SAs with one key and one seed would have the same IVs for different packets.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct IvSeed(Secret);

impl IvSeed {
    /// Sixteen random octets, drawn for this SA and used for no other.
    #[must_use]
    pub fn random(octets: [u8; BLOCK_LEN]) -> IvSeed {
        IvSeed(Secret::new(octets.to_vec()))
    }

    /// For counter modes: the salt of the kernel's `seqiv` (an IV that it sent XOR the 64-bit sequence number
    /// of that packet, in network byte order). Not for CBC, which would have predictable IVs: making such an
    /// SA fails.
    #[must_use]
    pub fn kernel_salt(salt: [u8; IV_LEN]) -> IvSeed {
        IvSeed(Secret::new(salt.to_vec()))
    }
}

impl IvSeed {
    /// Whether the seed has as many octets as the IVs of the algorithm need.
    pub(super) fn suits(&self, algorithm: EspAlgorithm) -> bool {
        let needed = match algorithm {
            EspAlgorithm::EncryptThenMac(Cipher::AesCbc, _) => BLOCK_LEN,
            _ => IV_LEN,
        };
        self.0.len() >= needed
    }
}

/// A failed operation: of `open`, a wrong ICV.
#[derive(Debug)]
pub(super) struct Failed;

/// The octets of ESP before the encrypted ones that the ICV covers.
#[derive(Clone, Copy)]
pub(super) struct Number {
    pub spi: u32,
    /// The whole sequence number.
    pub seq: u64,
    pub is_extended: bool,
}

impl Number {
    /// SPI and sequence number as combined algorithms authenticate them (RFC 4106 §5): 8 or 12 octets.
    #[inline]
    fn aad(self) -> ([u8; 12], usize) {
        let mut octets = [0; 12];
        octets[..4].copy_from_slice(&self.spi.to_be_bytes());
        if self.is_extended {
            octets[4..].copy_from_slice(&self.seq.to_be_bytes());
            (octets, 12)
        } else {
            octets[4..8].copy_from_slice(&(self.seq as u32).to_be_bytes());
            (octets, 8)
        }
    }

    /// The high half, which HMAC covers after the packet (RFC 4303 §2.2.1, RFC 4302 §2.5.1); without ESN
    /// nothing.
    #[inline]
    pub fn high(self) -> ([u8; 4], usize) {
        (((self.seq >> 32) as u32).to_be_bytes(), if self.is_extended { 4 } else { 0 })
    }
}

/// The end of a key, which is part of each nonce.
type Salt = Zeroizing<[u8; SALT_LEN]>;

/// The keys of an ESP SA, expanded.
pub(super) enum EspTransform {
    /// Encrypts and authenticates.
    Combined { key: AeadKey, salt: Salt, iv_salt: Zeroizing<u64> },
    /// GMAC: only authenticates, as additional data of AES-GCM.
    Gmac { key: AeadKey, salt: Salt, iv_salt: Zeroizing<u64> },
    /// Encrypts, then authenticates.
    EncryptThenMac { cipher: CipherKey, mac: Box<MacKey> },
}

/// A key of a combined algorithm.
pub(super) struct AeadKey(aead::LessSafeKey);

impl AeadKey {
    fn new(algorithm: &'static aead::Algorithm, key: &[u8]) -> Option<AeadKey> {
        let key = aead::UnboundKey::new(algorithm, key).ok()?;
        Some(AeadKey(aead::LessSafeKey::new(key)))
    }
}

impl Drop for AeadKey {
    /// The library does not overwrite its keys: a key of zeros takes the place of this one. Copies that the
    /// compiler made on the stack while the SA was made are not reached.
    fn drop(&mut self) {
        let algorithm = self.0.algorithm();
        let zeros = [0; 32];
        let zeros = zeros.get(..algorithm.key_len()).unwrap_or(&[]);
        if let Ok(zero_key) = aead::UnboundKey::new(algorithm, zeros) {
            self.0 = aead::LessSafeKey::new(zero_key);
            // Without a reader the compiler might leave the write out.
            std::hint::black_box(&self.0);
        }
    }
}

pub(super) enum CipherKey {
    Null,
    Cbc { key: Box<AesKey>, iv_key: Box<Aes128> },
    Ctr { key: Box<AesKey>, nonce: Salt, iv_salt: Zeroizing<u64> },
}

pub(super) enum AesKey {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

/// Runs code for the key's size.
macro_rules! with_aes {
    ($key:expr, $aes:ident => $code:expr) => {
        match $key {
            AesKey::Aes128($aes) => $code,
            AesKey::Aes192($aes) => $code,
            AesKey::Aes256($aes) => $code,
        }
    };
}

impl EspTransform {
    /// Expands keys. `iv_seed`: for sending.
    pub fn new(keys: &EspKeys, iv_seed: Option<&IvSeed>) -> Result<EspTransform, BadKey> {
        let iv_salt = iv_salt(iv_seed);
        match keys {
            EspKeys::Combined(aead, secret) => {
                let bad = || BadKey { algorithm: aead.name(), octets: secret.len() };
                let (key, salt) = split_salt(secret).ok_or_else(bad)?;
                let algorithm = match (aead, key.len()) {
                    (Aead::AesGcm | Aead::AesGmac, 16) => &aead::AES_128_GCM,
                    (Aead::AesGcm | Aead::AesGmac, 32) => &aead::AES_256_GCM,
                    (Aead::ChaCha20Poly1305, 32) => &aead::CHACHA20_POLY1305,
                    _ => return Err(bad()),
                };
                let key = AeadKey::new(algorithm, key).ok_or_else(bad)?;
                Ok(match aead {
                    Aead::AesGmac => EspTransform::Gmac { key, salt, iv_salt },
                    _ => EspTransform::Combined { key, salt, iv_salt },
                })
            }
            EspKeys::EncryptThenMac(cipher, secret, auth, auth_secret) => {
                Ok(EspTransform::EncryptThenMac {
                    cipher: CipherKey::new(*cipher, secret, iv_seed)?,
                    mac: Box::new(MacKey::new(*auth, auth_secret)?),
                })
            }
        }
    }

    /// Encrypts, and writes IV and ICV. `framed`: [`ROOM_BEFORE`] octets, which are restored, then the
    /// packet: ESP header, room for the IV, what is encrypted, room for the ICV.
    #[inline]
    pub fn seal(&self, framed: &mut [u8], number: Number) -> Result<(), Failed> {
        match self {
            EspTransform::Combined { key, salt, iv_salt } => {
                let (_, iv, data, icv) = parts(framed, IV_LEN, 16)?;
                iv.copy_from_slice(&(number.seq ^ **iv_salt).to_be_bytes());
                let (aad, len) = number.aad();
                let aad = aead::Aad::from(aad.get(..len).ok_or(Failed)?);
                let tag = key.0.seal_in_place_separate_tag(nonce(salt, iv), aad, data);
                icv.copy_from_slice(tag.map_err(|_| Failed)?.as_ref());
                Ok(())
            }
            EspTransform::Gmac { key, salt, iv_salt } => {
                let (_, iv, _, _) = parts(framed, IV_LEN, 16)?;
                iv.copy_from_slice(&(number.seq ^ **iv_salt).to_be_bytes());
                let nonce = nonce(salt, iv);
                let tag = with_inserted_high(framed, number, |covered| {
                    let covered = aead::Aad::from(covered.get(..covered.len() - 16)?);
                    key.0.seal_in_place_separate_tag(nonce, covered, &mut []).ok()
                })?;
                let (_, _, _, icv) = parts(framed, IV_LEN, 16)?;
                icv.copy_from_slice(tag.as_ref());
                Ok(())
            }
            EspTransform::EncryptThenMac { cipher, mac } => {
                let (_, iv, data, _) = parts(framed, cipher.iv_len(), mac.icv_len())?;
                cipher.write_iv(iv, number.seq);
                cipher.encrypt(iv, data)?;
                let (covered, icv) = covered(framed, mac)?;
                let mut context = mac.start();
                context.update(covered);
                context.write(number, icv)
            }
        }
    }

    /// Verifies the ICV and decrypts. `framed`: as for [`seal`](Self::seal). After an error the encrypted
    /// octets may have changed.
    #[inline]
    pub fn open(&self, framed: &mut [u8], number: Number) -> Result<(), Failed> {
        match self {
            EspTransform::Combined { key, salt, .. } => {
                let (_, rest) =
                    framed.split_at_mut_checked(ROOM_BEFORE + HEADER_LEN).ok_or(Failed)?;
                let (iv, data_and_icv) = rest.split_at_mut_checked(IV_LEN).ok_or(Failed)?;
                let (aad, len) = number.aad();
                let aad = aead::Aad::from(aad.get(..len).ok_or(Failed)?);
                key.0.open_in_place(nonce(salt, iv), aad, data_and_icv).map_err(|_| Failed)?;
                Ok(())
            }
            EspTransform::Gmac { key, salt, .. } => {
                let (_, iv, _, icv) = parts(framed, IV_LEN, 16)?;
                let nonce = nonce(salt, iv);
                let mut tag: [u8; 16] = (&*icv).try_into().map_err(|_| Failed)?;
                with_inserted_high(framed, number, |covered| {
                    let covered = aead::Aad::from(covered.get(..covered.len() - 16)?);
                    key.0.open_in_place(nonce, covered, &mut tag).ok().map(|_| ())
                })
            }
            EspTransform::EncryptThenMac { cipher, mac } => {
                let (covered, icv) = covered(framed, mac)?;
                let mut context = mac.start();
                context.update(covered);
                context.verify(number, icv)?;
                let (_, iv, data, _) = parts(framed, cipher.iv_len(), mac.icv_len())?;
                cipher.decrypt(iv, data)
            }
        }
    }
}

/// ESP header, IV, encrypted data, ICV.
type Parts<'a> = (&'a mut [u8], &'a mut [u8], &'a mut [u8], &'a mut [u8]);

#[inline]
fn parts(framed: &mut [u8], iv_len: usize, icv_len: usize) -> Result<Parts<'_>, Failed> {
    let (_, esp) = framed.split_at_mut_checked(ROOM_BEFORE).ok_or(Failed)?;
    let (header, rest) = esp.split_at_mut_checked(HEADER_LEN).ok_or(Failed)?;
    let (iv, rest) = rest.split_at_mut_checked(iv_len).ok_or(Failed)?;
    let data_len = rest.len().checked_sub(icv_len).ok_or(Failed)?;
    let (data, icv) = rest.split_at_mut_checked(data_len).ok_or(Failed)?;
    Ok((header, iv, data, icv))
}

/// The octets that HMAC covers, and the ICV.
#[inline]
fn covered<'a>(framed: &'a mut [u8], mac: &MacKey) -> Result<(&'a [u8], &'a mut [u8]), Failed> {
    let (_, esp) = framed.split_at_mut_checked(ROOM_BEFORE).ok_or(Failed)?;
    let covered_len = esp.len().checked_sub(mac.icv_len()).ok_or(Failed)?;
    let (covered, icv) = esp.split_at_mut_checked(covered_len).ok_or(Failed)?;
    Ok((covered, icv))
}

/// Runs `run` on the packet from its SPI to its end; with ESN the high half of the number is after the SPI,
/// which has moved four octets to the left meanwhile (RFC 4543 §3.3).
#[inline]
fn with_inserted_high<R>(
    framed: &mut [u8],
    number: Number,
    run: impl FnOnce(&[u8]) -> Option<R>,
) -> Result<R, Failed> {
    if !number.is_extended {
        return run(framed.get(ROOM_BEFORE..).ok_or(Failed)?).ok_or(Failed);
    }
    let start =
        framed.get(..8).and_then(|octets| <[u8; 8]>::try_from(octets).ok()).ok_or(Failed)?;
    let [_, _, _, _, spi @ ..] = start;
    let (high, _) = number.high();
    let mut put = |at: usize, octets: &[u8]| {
        if let Some(to) = framed.get_mut(at..at + octets.len()) {
            to.copy_from_slice(octets);
        }
    };
    put(0, &spi);
    put(4, &high);
    let result = run(framed);
    if let Some(to) = framed.get_mut(..8) {
        to.copy_from_slice(&start);
    }
    result.ok_or(Failed)
}

/// The first 8 octets of a seed. For counter modes.
fn iv_salt(seed: Option<&IvSeed>) -> Zeroizing<u64> {
    let octets = seed.and_then(|seed| seed.0.octets().first_chunk::<IV_LEN>());
    Zeroizing::new(octets.map_or(0, |octets| u64::from_be_bytes(*octets)))
}

/// Key and salt.
fn split_salt(secret: &Secret) -> Option<(&[u8], Salt)> {
    secret.octets().split_last_chunk().map(|(key, salt)| (key, Zeroizing::new(*salt)))
}

#[inline]
fn nonce(salt: &Salt, iv: &[u8]) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    let (head, tail) = nonce.split_at_mut(SALT_LEN);
    head.copy_from_slice(salt.as_slice());
    // The caller's slice has this length.
    if iv.len() == tail.len() {
        tail.copy_from_slice(iv);
    }
    aead::Nonce::assume_unique_for_key(nonce)
}

impl AesKey {
    fn new(key: &[u8]) -> Option<AesKey> {
        Some(match key.len() {
            16 => AesKey::Aes128(Aes128::new_from_slice(key).ok()?),
            24 => AesKey::Aes192(Aes192::new_from_slice(key).ok()?),
            32 => AesKey::Aes256(Aes256::new_from_slice(key).ok()?),
            _ => return None,
        })
    }
}

impl CipherKey {
    pub fn new(
        cipher: Cipher,
        secret: &Secret,
        seed: Option<&IvSeed>,
    ) -> Result<CipherKey, BadKey> {
        let bad = || BadKey { algorithm: cipher.name(), octets: secret.len() };
        Ok(match cipher {
            Cipher::Null if secret.is_empty() => CipherKey::Null,
            Cipher::Null => return Err(bad()),
            Cipher::AesCbc => {
                let key = Box::new(AesKey::new(secret.octets()).ok_or_else(bad)?);
                let iv_key = match seed {
                    Some(seed) => Aes128::new_from_slice(seed.0.octets()).map_err(|_| bad())?,
                    // Never used: the SA only receives.
                    None => Aes128::new(&Array::default()),
                };
                CipherKey::Cbc { key, iv_key: Box::new(iv_key) }
            }
            Cipher::AesCtr => {
                let (key, nonce) = split_salt(secret).ok_or_else(bad)?;
                let key = Box::new(AesKey::new(key).ok_or_else(bad)?);
                CipherKey::Ctr { key, nonce, iv_salt: iv_salt(seed) }
            }
        })
    }

    #[inline]
    fn iv_len(&self) -> usize {
        match self {
            CipherKey::Null => 0,
            CipherKey::Cbc { .. } => BLOCK_LEN,
            CipherKey::Ctr { .. } => IV_LEN,
        }
    }

    /// Writes the IV of a packet; `iv` has its length.
    #[inline]
    fn write_iv(&self, iv: &mut [u8], seq: u64) {
        match self {
            CipherKey::Null => {}
            CipherKey::Cbc { iv_key, .. } => {
                let mut block = Array(u128::from(seq).to_be_bytes());
                iv_key.encrypt_block(&mut block);
                iv.copy_from_slice(&block);
            }
            CipherKey::Ctr { iv_salt, .. } => iv.copy_from_slice(&(seq ^ **iv_salt).to_be_bytes()),
        }
    }

    /// Encrypts whole blocks in place.
    #[inline]
    pub fn encrypt(&self, iv: &[u8], data: &mut [u8]) -> Result<(), Failed> {
        match self {
            CipherKey::Null => Ok(()),
            CipherKey::Cbc { key, .. } => with_aes!(&**key, aes => {
                let mut cbc = cbc::Encryptor::inner_iv_slice_init(aes, iv).map_err(|_| Failed)?;
                let (blocks, rest) = Array::slice_as_chunks_mut(data);
                cbc.encrypt_blocks(blocks);
                if rest.is_empty() { Ok(()) } else { Err(Failed) }
            }),
            CipherKey::Ctr { key, nonce, .. } => ctr(key, nonce, iv, data),
        }
    }

    /// Decrypts them.
    #[inline]
    pub fn decrypt(&self, iv: &[u8], data: &mut [u8]) -> Result<(), Failed> {
        match self {
            CipherKey::Null => Ok(()),
            CipherKey::Cbc { key, .. } => with_aes!(&**key, aes => {
                let mut cbc = cbc::Decryptor::inner_iv_slice_init(aes, iv).map_err(|_| Failed)?;
                let (blocks, rest) = Array::slice_as_chunks_mut(data);
                cbc.decrypt_blocks(blocks);
                if rest.is_empty() { Ok(()) } else { Err(Failed) }
            }),
            CipherKey::Ctr { key, nonce, .. } => ctr(key, nonce, iv, data),
        }
    }
}

/// AES-CTR, which encrypts and decrypts. The counter block is nonce, IV and a counter from 1 (RFC 3686 §4).
#[inline]
fn ctr(key: &AesKey, nonce: &Salt, iv: &[u8], data: &mut [u8]) -> Result<(), Failed> {
    let mut block = [0; BLOCK_LEN];
    block[..4].copy_from_slice(nonce.as_slice());
    block[4..12].copy_from_slice(iv.get(..IV_LEN).ok_or(Failed)?);
    block[15] = 1;
    with_aes!(key, aes => {
        let core = ctr::CtrCore::<_, ctr::flavors::Ctr32BE>::inner_iv_init(aes, &Array(block));
        StreamCipherCoreWrapper::from_core(core).try_apply_keystream(data).map_err(|_| Failed)
    })
}
