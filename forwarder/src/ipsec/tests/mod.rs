//! Tests of whole packets: published vectors, an independent peer, and properties.

mod check;
mod locate;
mod peer;
mod policies;
mod properties;
mod reassembly;
mod rfc;
mod vectors;

use std::net::IpAddr;

use super::*;

/// SPI of all SAs.
const SPI: u32 = 0x0102_0304;
/// Salt of IVs.
const IV_SALT: [u8; 8] = [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];

/// `len` octets counted from `start`.
fn octets(start: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| start.wrapping_add(n as u8)).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Addresses of the SAs, outer ones in tunnel mode.
fn addresses(family: Family) -> (IpAddr, IpAddr) {
    let of = |src: &str, dst: &str| (src.parse().unwrap(), dst.parse().unwrap());
    match family {
        Family::Ipv4 => of("203.0.113.1", "203.0.113.2"),
        Family::Ipv6 => of("2001:db8:ff::1", "2001:db8:ff::2"),
    }
}

fn config(mode: Mode, family: Family, flags: StateFlags) -> StateConfig {
    let (src, dst) = addresses(family);
    StateConfig {
        flags,
        selector_family: flags.selector_family(None, family),
        replay_window: 64,
        ..StateConfig::new(mode, [src, dst], SPI)
    }
}

/// All algorithms of ESP, with every length of key.
fn esp_keys() -> Vec<EspKeys> {
    let mut all = Vec::new();
    for len in [16, 32] {
        all.push(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, len + 4))));
        all.push(EspKeys::Combined(Aead::AesGmac, Secret::new(octets(0x10, len + 4))));
    }
    all.push(EspKeys::Combined(Aead::ChaCha20Poly1305, Secret::new(octets(0x10, 36))));
    for auth in Auth::ALL {
        let auth_key = || Secret::new(octets(0x80, auth_key_len(auth)));
        let mut with = |cipher, len| {
            let key = Secret::new(octets(0x10, len));
            all.push(EspKeys::EncryptThenMac(cipher, key, auth, auth_key()));
        };
        with(Cipher::Null, 0);
        [16, 24, 32].into_iter().for_each(|len| with(Cipher::AesCbc, len));
        [20, 28, 36].into_iter().for_each(|len| with(Cipher::AesCtr, len));
    }
    all
}

fn auth_key_len(auth: Auth) -> usize {
    match auth {
        Auth::HmacSha1_96 => 20,
        Auth::HmacSha256_128 => 32,
        Auth::HmacSha384_192 => 48,
        Auth::HmacSha512_256 => 64,
    }
}

/// Keys of ESP and AH.
fn all_keys() -> Vec<Keys> {
    let ah = |auth| Keys::Ah(auth, Secret::new(octets(0x80, auth_key_len(auth))));
    esp_keys().into_iter().map(Keys::Esp).chain(Auth::ALL.into_iter().map(ah)).collect()
}

fn is_cbc(keys: &Keys) -> bool {
    matches!(keys, Keys::Esp(EspKeys::EncryptThenMac(Cipher::AesCbc, ..)))
}

/// An SA for sending whose next number is `seq`.
fn outbound(config: &StateConfig, keys: &Keys, seq: u64) -> OutboundState {
    let seed = if is_cbc(keys) { IvSeed::random([7; 16]) } else { IvSeed::kernel_salt(IV_SALT) };
    let state = OutboundState::new(config.clone(), keys, seed, seq).expect("a state");
    state.sequence().extend(seq..seq.saturating_add(1000)).expect("a range");
    state
}

/// An SA for receiving that has received all numbers before `seq`.
fn inbound(config: &StateConfig, keys: &Keys, seq: u64) -> InboundState {
    let mut state = InboundState::new(config.clone(), keys).expect("a state");
    state.replay_mut().restore(seq - 1, |_| true);
    state
}

const PARAMS: OutputParams = OutputParams { now_s: 1000, hop_limit: 64, ident: 0 };

/// Protects a packet in a buffer with just enough room.
fn seal(state: &OutboundState, packet: &[u8]) -> Result<Vec<u8>, Error> {
    // More than any tail.
    const ROOM: usize = 128;
    let mut buffer = [&[0x5a; ROOM], packet, &[0x5a; ROOM]].concat();
    let range = state.seal(&mut buffer, ROOM..ROOM + packet.len(), &PARAMS)?;
    Ok(buffer[range].to_vec())
}

/// Removes the protection.
fn open(state: &InboundState, packet: &[u8]) -> Result<Vec<u8>, Error> {
    let mut packet = packet.to_vec();
    let located = locate(&packet, &[4500])?.expect("an IPsec packet");
    match state.open(&mut packet, &located, PARAMS.now_s)? {
        Decapsulated::Tunnel(range) | Decapsulated::Transport(range) => Ok(packet[range].to_vec()),
        Decapsulated::Dummy => Ok(Vec::new()),
    }
}

/// A UDP packet with `len` octets of data.
fn udp_packet(family: Family, tos: u8, len: usize) -> Vec<u8> {
    use crate::wire::{Ipv4Packet, Ipv6Packet, UdpPacket};
    let header_len = if family == Family::Ipv4 { 20 } else { 40 };
    let mut packet = [vec![0; header_len + 8], octets(3, len)].concat();
    let total_len = packet.len() as u16;
    match addresses(family) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.set_version_and_header_len(20);
            ip.set_tos(tos);
            ip.set_total_len(total_len);
            ip.set_ident(0x1234);
            ip.set_ttl(61);
            ip.set_protocol(crate::wire::Protocol::UDP);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
            ip.set_version_class_flow(tos, 0x12345);
            ip.set_payload_len(total_len - 40);
            ip.set_hop_limit(61);
            ip.set_next_header(crate::wire::Protocol::UDP);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
        }
        _ => unreachable!("addresses of one family"),
    }
    let mut udp = UdpPacket::new_unchecked(&mut packet[header_len..]);
    udp.set_src_port(1000);
    udp.set_dst_port(2000);
    udp.set_length(8 + len as u16);
    packet
}

/// Keys of ESP without encryption, and the same for computing an ICV.
fn null_keys() -> (Keys, mac::MacKey) {
    let auth = || Secret::new(octets(0x80, 20));
    let none = Secret::new(Vec::new());
    let keys = EspKeys::EncryptThenMac(Cipher::Null, none, Auth::HmacSha1_96, auth());
    (Keys::Esp(keys), mac::MacKey::new(Auth::HmacSha1_96, &auth()).unwrap())
}

/// An ESP packet of [`null_keys`] whose octets from payload to trailer are `data`, with number 1 and the right
/// ICV.
fn null_packet(family: Family, data: &[u8]) -> Vec<u8> {
    use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};
    let mut packet = udp_packet(family, 0, 0);
    let header_len = packet.len() - 8;
    packet.truncate(header_len);
    packet.extend(SPI.to_be_bytes());
    packet.extend(1u32.to_be_bytes());
    packet.extend(data);
    let mut icv = vec![0; 12];
    let mut context = null_keys().1.start();
    context.update(&packet[header_len..]);
    context.write(crypto::Number { spi: SPI, seq: 1, is_extended: false }, &mut icv).unwrap();
    packet.extend(icv);
    let len = packet.len() as u16;
    if family == Family::Ipv4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
        ip.set_total_len(len);
        ip.set_protocol(Protocol::ESP);
        ip.fill_checksum();
    } else {
        let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
        ip.set_payload_len(len - 40);
        ip.set_next_header(Protocol::ESP);
    }
    packet
}
