//! An independent peer: packets that `vectors.py` has made, with Scapy or itself (`vectors.rs` says which), are
//! opened, and ours are the same octets.

use super::vectors::{AH, ESP, Vector};
use super::*;

/// The algorithms that a vector names.
fn keys(name: &str) -> Keys {
    let mut words = name.split(' ');
    let mut next = || words.next().expect("a word");
    let first = next();
    let auth = |word: &str| {
        let auth = match word {
            "sha1" => Auth::HmacSha1_96,
            "sha256" => Auth::HmacSha256_128,
            "sha384" => Auth::HmacSha384_192,
            "sha512" => Auth::HmacSha512_256,
            other => panic!("{other}"),
        };
        (auth, Secret::new(octets(0x80, auth_key_len(auth))))
    };
    let key = |len| Secret::new(octets(0x10, len));
    let cipher = match first {
        "gcm128" => return Keys::Esp(EspKeys::Combined(Aead::AesGcm, key(20))),
        "gcm256" => return Keys::Esp(EspKeys::Combined(Aead::AesGcm, key(36))),
        "gmac128" => return Keys::Esp(EspKeys::Combined(Aead::AesGmac, key(20))),
        "chacha" => return Keys::Esp(EspKeys::Combined(Aead::ChaCha20Poly1305, key(36))),
        "cbc128" => (Cipher::AesCbc, key(16)),
        "cbc192" => (Cipher::AesCbc, key(24)),
        "cbc256" => (Cipher::AesCbc, key(32)),
        "ctr128" => (Cipher::AesCtr, key(20)),
        "ctr192" => (Cipher::AesCtr, key(28)),
        "ctr256" => (Cipher::AesCtr, key(36)),
        "null" => (Cipher::Null, key(0)),
        ah => {
            let (auth, key) = auth(ah);
            return Keys::Ah(auth, key);
        }
    };
    let (auth, auth_key) = auth(next());
    Keys::Esp(EspKeys::EncryptThenMac(cipher.0, cipher.1, auth, auth_key))
}

fn config_of(vector: &Vector) -> StateConfig {
    let mode = if vector.name.contains("tunnel") { Mode::Tunnel } else { Mode::Transport };
    let is_ipv6 = vector.protected.starts_with('6');
    let family = if is_ipv6 { Family::Ipv6 } else { Family::Ipv4 };
    let esn = if vector.is_extended { StateFlags::ESN } else { StateFlags::default() };
    config(mode, family, esn | StateFlags::ALIGN4 | StateFlags::AF_UNSPEC)
}

/// A packet with a Routing header of two addresses as it arrives at the last one.
fn arrived(vector: &Vector, packet: &str) -> Vec<u8> {
    let mut packet = hex(packet);
    let routing = vector.name.contains("routing").then(|| {
        packet.windows(4).position(|octets| octets[1..] == [4, 0, 2]).expect("a Routing header")
    });
    if let Some(at) = routing {
        packet[at + 3] = 0;
        // Each router has swapped the destination with the next address.
        for address in [at + 8, at + 24] {
            let next = packet[address..address + 16].to_vec();
            packet.copy_within(24..40, address);
            packet[24..40].copy_from_slice(&next);
        }
    }
    packet
}

#[test]
fn packets_of_the_peer_are_opened() {
    for vector in ESP.iter().chain(AH) {
        let state = inbound(&config_of(vector), &keys(vector.name), vector.seq);
        let opened = open(&state, &arrived(vector, vector.protected));
        assert_eq!(opened, Ok(arrived(vector, vector.plain)), "{}", vector.name);
        assert_eq!(state.replay().top(), vector.seq, "{}", vector.name);
    }
}

#[test]
fn a_packet_that_has_addresses_left_to_visit_is_refused() {
    let vector = AH.iter().find(|vector| vector.name.ends_with("6 routing")).expect("a vector");
    assert_eq!(locate(&hex(vector.protected), &[]), Ok(None));
    // One that is opened nevertheless has a wrong ICV.
    let located = locate(&arrived(vector, vector.protected), &[]).unwrap().unwrap();
    let state = inbound(&config_of(vector), &keys(vector.name), vector.seq);
    let opened = state.open(&mut hex(vector.protected), &located, 0);
    assert_eq!(opened, Err(Error::XfrmInStateProtoError));
}

#[test]
fn our_packets_are_those_of_the_peer() {
    let mut count = 0;
    for vector in ESP.iter().chain(AH) {
        // IVs of CBC are not predictable.
        if vector.name.starts_with("cbc") {
            continue;
        }
        let state = outbound(&config_of(vector), &keys(vector.name), vector.seq);
        let expected = hex(vector.protected);
        let mut params = PARAMS;
        params.ident = u16::from_be_bytes([expected[4], expected[5]]);
        params.hop_limit = 64;
        let plain = hex(vector.plain);
        let mut buffer = [&[0; 128], &plain[..], &[0; 128]].concat();
        let range = state.seal(&mut buffer, 128..128 + plain.len(), &params).expect("sealed");
        assert_eq!(buffer[range], expected, "{}", vector.name);
        count += 1;
    }
    assert!(count > 60, "{count}");
}
