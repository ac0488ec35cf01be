#!/usr/bin/env python3
"""Prints vectors.rs: packets protected by Scapy, an independent implementation of ESP and AH, or by this script.

    python3 vectors.py | rustfmt --edition 2024 > vectors.rs

Made with Scapy 2.5.0. Keys and IVs are counted octets, so that the tests can make the same ones.
Two kinds of packets are not Scapy's alone: GMAC, which it has not, is put together from RFC 4543 with the
AES-GCM of python3-cryptography; and the ICV of ESP with HMAC and ESN, of which Scapy 2.5.0 leaves the high half
of the number out, is computed by with_esn().
"""

import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.all import IP, IPv6, Raw, TCP, UDP, raw
from scapy.layers.inet import IPOption
from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, HBHOptUnknown, Pad1, PadN, RouterAlert,
)
from scapy.layers.ipsec import AH, ESP, SecurityAssociation

SPI, SALT = 0x01020304, 0xA0A1A2A3A4A5A6A7


def octets(start, length):
    return bytes((start + n) % 256 for n in range(length))


def payload(length):
    return Raw(octets(0, length))


V4 = IP(src="192.0.2.1", dst="198.51.100.2", ttl=61, tos=0xB9, id=0x1234, flags="DF")
V6 = IPv6(src="2001:db8:1::1", dst="2001:db8:2::2", hlim=61, tc=0xB9, fl=0x12345)
OUTER4 = IP(src="203.0.113.1", dst="203.0.113.2", ttl=64, tos=0xB9, id=0, flags="DF")
# Around IPv6 of up to 1280 octets, as the kernel.
OUTER4_WITHOUT_DF = IP(src="203.0.113.1", dst="203.0.113.2", ttl=64, tos=0xB9, id=0)
OUTER6 = IPv6(src="2001:db8:ff::1", dst="2001:db8:ff::2", hlim=64, tc=0xB9)


def outer6_for(plain):
    header = OUTER6.copy()
    if IPv6 in plain:
        header.fl = plain[IPv6].fl
    return header


def emit(name, plain, packet, seq, esn):
    print(f"    Vector {{ name: \"{name}\", seq: {esn << 32 | seq:#x}, is_extended: {str(bool(esn)).lower()},")
    print(f"    plain: \"{bytes(plain).hex()}\", protected: \"{bytes(packet).hex()}\" }},")


CRYPT = [
    ("AES-GCM", 20, 8, "gcm128"), ("AES-GCM", 36, 8, "gcm256"),
    ("CHACHA20-POLY1305", 36, 8, "chacha"), ("AES-CBC", 16, 16, "cbc128"), ("AES-CBC", 24, 16, "cbc192"),
    ("AES-CBC", 32, 16, "cbc256"), ("AES-CTR", 20, 8, "ctr128"), ("AES-CTR", 28, 8, "ctr192"), ("AES-CTR", 36, 8, "ctr256"), ("NULL", 0, 0, "null"),
]
AUTH = [("HMAC-SHA1-96", 20, "sha1"), ("SHA2-256-128", 32, "sha256"), ("SHA2-384-192", 48, "sha384"), ("SHA2-512-256", 64, "sha512")]


def esp():
    print("/// ESP.\npub const ESP: &[Vector] = &[")
    number = 0
    for crypt, key_len, iv_len, short in CRYPT:
        is_aead = short.startswith(("gcm", "chacha"))
        for auth, auth_len, auth_short in [(None, 0, "")] if is_aead else AUTH:
            number += 1
            seq, esn = 0x11223344 + number, number % 3 == 2
            esn = 5 if esn else 0
            # What Ferroute makes: sequence number XOR salt. CBC: any.
            iv = ((esn << 32 | seq) ^ SALT).to_bytes(8, "big") if iv_len == 8 else octets(0x77, iv_len)
            plain4 = V4 / UDP(sport=1000, dport=2000) / payload(number * 3)
            plain6 = V6 / TCP(sport=1000, dport=2000) / payload(number * 5)
            for mode, plain, tunnel in [
                ("tunnel44", plain4, OUTER4), ("tunnel66", plain6, outer6_for(plain6)),
                ("tunnel64", plain6, OUTER4_WITHOUT_DF), ("tunnel46", plain4, outer6_for(plain4)),
                ("transport4", plain4, None), ("transport6", plain6, None),
            ]:
                # All modes for two algorithms, one mode for the others.
                if short not in ("gcm128", "cbc128") and mode != ["tunnel44", "transport6", "tunnel46"][number % 3]:
                    continue
                if auth_short not in ("", "sha256") and mode != "tunnel44" and short == "cbc128":
                    continue
                sa = SecurityAssociation(
                    ESP, spi=SPI, crypt_algo=crypt, crypt_key=octets(0x10, key_len) or None,
                    auth_algo=auth, auth_key=octets(0x80, auth_len) or None,
                    tunnel_header=tunnel, esn_en=bool(esn), esn=esn)
                plain = plain.__class__(raw(plain))
                packet = sa.encrypt(plain, seq_num=seq, iv=iv or None, esn_en=bool(esn), esn=esn)
                protected = raw(packet)
                if esn and auth:
                    protected = with_esn(protected, auth, octets(0x80, auth_len), esn)
                emit(f"{short} {auth_short or '-'} {mode}", plain, protected, seq, esn)
    for seq, esn in [(0x300, 0), (0x301, 5)]:
        emit("gmac128 - tunnel44", *gmac(seq, esn), seq, esn)
    print("];")


def with_esn(packet, auth, key, esn):
    """Scapy 2.5.0 leaves the high half out of the HMAC of ESP (RFC 4303 section 2.2.1)."""
    digest, icv_len = {"HMAC-SHA1-96": ("sha1", 12), "SHA2-256-128": ("sha256", 16),
                       "SHA2-384-192": ("sha384", 24), "SHA2-512-256": ("sha512", 32)}[auth]
    header_len = 20 if packet[0] >> 4 == 4 else 40
    covered = packet[header_len:-icv_len] + esn.to_bytes(4, "big")
    return packet[:-icv_len] + hmac.new(key, covered, digest).digest()[:icv_len]


def gmac(seq, esn):
    plain = V4 / UDP(sport=1000, dport=2000) / payload(9)
    plain = plain.__class__(raw(plain))
    iv = ((esn << 32 | seq) ^ SALT).to_bytes(8, "big")
    data = raw(plain)
    padding = -(len(data) + 2) % 4
    data += octets(1, padding) + bytes([padding, 4])
    spi, low = SPI.to_bytes(4, "big"), seq.to_bytes(4, "big")
    key = octets(0x10, 20)
    number = (esn.to_bytes(4, "big") if esn else b"") + low
    icv = AESGCM(key[:16]).encrypt(key[16:] + iv, b"", spi + number + iv + data)
    outer = OUTER4.copy()
    outer.proto = 50
    return plain, raw(outer / Raw(spi + low + iv + data + icv))



def ah():
    options = [
        ("none", V4),
        ("record route", IP(
            src=V4.src, dst=V4.dst, ttl=61, tos=0xB9, id=7,
            options=[IPOption(bytes.fromhex("070b08c000020100000000")), IPOption(b"\x01")])),
        ("router alert, security, timestamp", IP(
            src=V4.src, dst=V4.dst, ttl=1, tos=4, id=8,
            options=[IPOption(bytes.fromhex("94040000")), IPOption(bytes.fromhex("820babcd") + octets(1, 7)), IPOption(b"\x01"),
                     IPOption(bytes.fromhex("44080900") + octets(1, 4))])),
    ]
    print("/// AH.\npub const AH: &[Vector] = &[")
    number = 0
    for auth, auth_len, short in AUTH:
        cases = [(f"transport4 {name}", header / UDP(sport=1, dport=2) / payload(11), None) for name, header in options]
        # No more than 7 octets of padding in a row, which hosts refuse.
        hop = IPv6ExtHdrHopByHop(options=[RouterAlert(value=0), HBHOptUnknown(otype=0x3E, optdata=octets(9, 10)), Pad1(), PadN(optdata=b"\x00\x00\x00")])
        dest = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=octets(3, 4))])
        routing = IPv6ExtHdrRouting(addresses=["2001:db8:5::5", "2001:db8:6::6"], segleft=2)
        cases += [
            ("transport6 none", V6 / UDP(sport=1, dport=2) / payload(11), None),
            ("transport6 hop-by-hop", V6 / hop / UDP(sport=1, dport=2) / payload(11), None),
            ("transport6 hop-by-hop, destination, routing", V6 / hop / dest / routing / UDP(sport=1, dport=2) / payload(11), None),
            ("transport6 routing", V6 / routing / UDP(sport=1, dport=2) / payload(11), None),
            ("tunnel44", V4 / UDP(sport=1, dport=2) / payload(20), OUTER4),
            ("tunnel66", V6 / UDP(sport=1, dport=2) / payload(20), outer6_for(V6)),
            ("tunnel46", V4 / UDP(sport=1, dport=2) / payload(20), OUTER6),
        ]
        for name, plain, tunnel in cases:
            number += 1
            esn = 7 if number % 4 == 3 else 0
            sa = SecurityAssociation(AH, spi=SPI, auth_algo=auth, auth_key=octets(0x80, auth_len),
                                     tunnel_header=tunnel, esn_en=bool(esn), esn=esn)
            plain = plain.__class__(raw(plain))
            packet = sa.encrypt(plain, seq_num=number, esn_en=bool(esn), esn=esn)
            emit(f"{short} {name}", plain, raw(packet), number, esn)
    print("];")


print("//! Protected packets, printed by `vectors.py`, beside this file. Keys and IVs are in `peer.rs`.")
print("//!")
print("//! They are Scapy's, an independent implementation, except for two kinds that the script computes itself,")
print("//! from the RFCs and with Python's HMAC and AES-GCM: GMAC, and the ICV of ESP with HMAC and ESN.\n")
print("/// One packet before and after.\n#[derive(Debug)]\npub struct Vector {")
print("/// Algorithms and mode.\npub name: &'static str,\n/// Sequence number.\npub seq: u64,\n/// ESN.\npub is_extended: bool,")
print("/// The packet, in hexadecimal.\npub plain: &'static str,\n/// The protected packet.\npub protected: &'static str,\n}\n")
esp()
print()
ah()
