//! Frames of a capture file, sent repeatedly.

use std::path::Path;
use std::sync::Arc;

use super::LoadError;
use crate::control::netdev::nic::Nic;
use crate::io::pcap;
use crate::skb::MAX_PACKET;

/// Maximum octets of frames kept in memory.
const OCTETS_MAX: usize = 1 << 30;
/// Shortest frame: an Ethernet header.
const SHORTEST: usize = 14;

/// Frames in the order of the file.
#[derive(Debug, Clone)]
pub struct Capture {
    pub(super) frames: Arc<[Box<[u8]>]>,
}

impl Capture {
    /// Reads a pcap or pcapng file. MAC addresses that are given replace those of every frame.
    ///
    /// # Errors
    /// [`LoadError::Capture`] if it is not such a file; [`LoadError::CaptureUnfit`] if it has no frames, or
    /// some that cannot be sent.
    pub fn read(
        path: &Path,
        source_mac: Option<[u8; 6]>,
        destination_mac: Option<[u8; 6]>,
    ) -> Result<Capture, LoadError> {
        let unfit = |what: String| LoadError::CaptureUnfit(path.display().to_string(), what);
        let mut frames: Vec<Box<[u8]>> = Vec::new();
        let (mut octets, mut wrong) = (0, None);
        pcap::packets(path, |frame| {
            octets += frame.len();
            let fits = (SHORTEST..=MAX_PACKET).contains(&frame.len());
            if !fits && wrong.is_none() {
                wrong = Some((frames.len() + 1, frame.len()));
            }
            if fits && wrong.is_none() && octets <= OCTETS_MAX {
                frames.push(frame.into());
            }
        })?;
        if let Some((number, len)) = wrong {
            return Err(unfit(format!(
                "frame {number} has {len} octets: from {SHORTEST} to {MAX_PACKET} can be sent"
            )));
        }
        if octets > OCTETS_MAX {
            return Err(unfit(format!("{octets} octets of frames: at most {OCTETS_MAX}")));
        }
        if frames.is_empty() {
            return Err(unfit("no frame in it".to_owned()));
        }
        for frame in &mut frames {
            for (at, mac) in [(0, destination_mac), (6, source_mac)] {
                if let Some(mac) = mac {
                    frame[at..at + 6].copy_from_slice(&mac);
                }
            }
        }
        Ok(Capture { frames: frames.into() })
    }

    /// Number of frames, at least one.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The mean frame size in octets.
    pub fn size_mean(&self) -> f64 {
        let octets: usize = self.frames.iter().map(|frame| frame.len()).sum();
        octets as f64 / self.frames.len().max(1) as f64
    }

    /// Checks that the frames fit an interface's MTU.
    pub(super) fn check(&self, place: &str, nic: &Nic) -> Result<(), LoadError> {
        // A VLAN tag is allowed in addition.
        let max = nic.mtu as usize + SHORTEST + 4;
        match self.frames.iter().map(|frame| frame.len()).max() {
            Some(size) if size > max => {
                Err(LoadError::TooLong { place: place.to_owned(), size, mtu: nic.mtu, max })
            }
            _ => Ok(()),
        }
    }
}
