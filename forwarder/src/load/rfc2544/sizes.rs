//! Frame sizes as RFC 2544 counts them: in octets, with the four of the FCS.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::load::{Sizes, Traffic};

/// Octets of the frame check sequence, which the port adds.
pub const FCS: u16 = 4;
/// RFC 2544 9.1, for Ethernet.
pub const RFC_2544: [u16; 7] = [64, 128, 256, 512, 1024, 1280, 1518];
/// The mix known as simple IMIX: sizes and how many of each.
pub const IMIX: [(u16, u32); 3] = [(64, 7), (594, 4), (1518, 1)];

/// A single frame size, or a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSize {
    /// Octets, with the FCS.
    Octets(u16),
    /// [`IMIX`].
    Imix,
}

impl FrameSize {
    /// Sizes for the generator, which counts without the FCS. `min`: the shortest frame it can make, which
    /// replaces shorter ones of the mix.
    pub fn sizes(self, min: usize) -> Sizes {
        match self {
            FrameSize::Octets(octets) => Sizes::Fixed(octets.saturating_sub(FCS)),
            FrameSize::Imix => {
                let longer = |size: u16| (size - FCS).max(min as u16);
                Sizes::Imix(IMIX.iter().map(|&(size, weight)| (longer(size), weight)).collect())
            }
        }
    }

    /// The mean size in octets, with the FCS.
    pub fn mean_octets(self) -> f64 {
        match self {
            FrameSize::Octets(octets) => f64::from(octets),
            FrameSize::Imix => {
                let sum = |f: fn(&(u16, u32)) -> u32| f64::from(IMIX.iter().map(f).sum::<u32>());
                sum(|(size, weight)| u32::from(*size) * weight) / sum(|(_, weight)| *weight)
            }
        }
    }

    /// The sizes of RFC 2544 and IMIX; the shortest is the minimum that `traffic` allows.
    pub fn all(traffic: &Traffic) -> Vec<FrameSize> {
        let min = traffic.size_min() as u16 + FCS;
        let sizes = RFC_2544.into_iter().map(|size| FrameSize::Octets(size.max(min)));
        sizes.chain([FrameSize::Imix]).collect()
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameSize::Octets(octets) => write!(f, "{octets}"),
            FrameSize::Imix => f.write_str("imix"),
        }
    }
}

impl FromStr for FrameSize {
    type Err = String;

    fn from_str(text: &str) -> Result<FrameSize, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(FrameSize::Imix);
        }
        match text.parse() {
            Ok(octets) if octets >= 64 => Ok(FrameSize::Octets(octets)),
            _ => Err(format!(
                "{text:?} is not a frame size: 64 octets or more, counted with the FCS as RFC 2544 \
                 does, or imix"
            )),
        }
    }
}

impl Serialize for FrameSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_with_the_fcs_and_sent_without() {
        assert_eq!(FrameSize::Octets(64).sizes(60), Sizes::Fixed(60));
        let mix = FrameSize::Imix;
        assert_eq!(mix.sizes(60), Sizes::Imix(vec![(60, 7), (590, 4), (1514, 1)]));
        assert_eq!(mix.sizes(80), Sizes::Imix(vec![(80, 7), (590, 4), (1514, 1)]));
        assert!((mix.mean_octets() - 361.83).abs() < 0.01, "{}", mix.mean_octets());
    }

    #[test]
    fn the_shortest_ipv6_frame_replaces_64_octets() {
        let six =
            Traffic::new([2; 6], "2001:db8::1".parse().expect("v6"), "::2".parse().expect("v6"));
        assert_eq!(FrameSize::all(&six)[..2], [FrameSize::Octets(84), FrameSize::Octets(128)]);
        assert_eq!(FrameSize::all(&six).last(), Some(&FrameSize::Imix));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        assert_eq!("IMIX".parse(), Ok(FrameSize::Imix));
        assert_eq!("1518".parse(), Ok(FrameSize::Octets(1518)));
        for wrong in ["", "63", "70000", "-1", "big"] {
            let error = wrong.parse::<FrameSize>().expect_err(wrong);
            assert!(error.contains("64 octets or more"), "{error}");
        }
    }
}
