//! Packets identical to the XDP engine's, written in userspace.

use xdp_prog::load::{GeneratorConfig, Header, header_octets};

/// Writes packet number `n` of a thread into `frame`, with its send time `stamp` (seconds, microseconds of
/// CLOCK_REALTIME). Octets after the headers are left unchanged, and must be zero for the checksum. A frame
/// shorter than the headers gets what fits.
pub(super) fn write(config: &GeneratorConfig, n: u64, stamp: (u32, u32), frame: &mut [u8]) {
    let v6 = config.flags & GeneratorConfig::IPV6 != 0;
    let vlan = config.flags & GeneratorConfig::VLAN != 0;
    let size = frame.len() as u16;
    let header: Header = match (v6, vlan) {
        (false, false) => config.header::<false, false>(n, size, stamp),
        (false, true) => config.header::<false, true>(n, size, stamp),
        (true, false) => config.header::<true, false>(n, size, stamp),
        (true, true) => config.header::<true, true>(n, size, stamp),
    };
    let octets = header_octets(v6, vlan);
    let octets = octets.min(frame.len());
    for (to, word) in frame[..octets].as_chunks_mut::<2>().0.iter_mut().zip(header.0) {
        *to = word.to_ne_bytes();
    }
}
