//! Secrets: octets that are overwritten when they are no longer needed and that cannot be printed.

use zeroize::Zeroizing;

/// Keys, salts and seeds. Dropping it overwrites the octets; there is no `Debug`, `Display` or `Clone`.
#[expect(missing_debug_implementations, reason = "secrets are not printed")]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the octets over. Copies that the caller has elsewhere are the caller's to wipe.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(octets))
    }

    /// Length, in octets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no octets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The octets, for the algorithm that they are for.
    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Secret {
    fn from(octets: &[u8]) -> Secret {
        Secret::new(octets.to_vec())
    }
}
