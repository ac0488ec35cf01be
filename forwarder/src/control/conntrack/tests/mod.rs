//! Tests with messages built here, and (`root_…`) with a kernel, whose table `conntrack` lists and changes.

mod root;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::uapi::*;
use super::update::append_tuple;
use super::*;
use crate::control::netlink::message::{Message, Messages};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const OSPF: u8 = 89;
const ICMPV6: u8 = 58;

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn v6(last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
}

fn tuple(source: IpAddr, destination: IpAddr, protocol: u8, ports: [u16; 2]) -> Tuple {
    let [source_port, destination_port] = ports;
    Tuple { source, destination, protocol, source_port, destination_port }
}

/// A TCP connection with everything.
fn full() -> Entry {
    Entry {
        original: tuple(v4(1), v4(2), TCP, [1024, 80]),
        reply: tuple(v4(2), v4(9), TCP, [80, 2048]),
        status: IPS_CONFIRMED | IPS_ASSURED | IPS_SEEN_REPLY | IPS_SRC_NAT,
        timeout_s: Some(432_000),
        mark: 0x1234_5678,
        zone: 7,
        id: Some(0xdead_beef),
        tcp: Some(TcpInfo {
            state: TCP_CONNTRACK_ESTABLISHED,
            flags_original: IP_CT_TCP_FLAG_WINDOW_SCALE | IP_CT_TCP_FLAG_SACK_PERM,
            flags_reply: IP_CT_TCP_FLAG_BE_LIBERAL,
        }),
        has_helper: true,
        is_seq_adjusted: true,
        has_synproxy: true,
        has_labels: true,
        has_master: true,
    }
}

/// An entry with what every message has.
pub(in crate::control) fn bare(original: Tuple, reply: Tuple) -> Entry {
    Entry {
        original,
        reply,
        status: IPS_CONFIRMED,
        timeout_s: None,
        mark: 0,
        zone: 0,
        id: None,
        tcp: None,
        has_helper: false,
        is_seq_adjusted: false,
        has_synproxy: false,
        has_labels: false,
        has_master: false,
    }
}

/// A message without attributes.
fn start(kind: u16, flags: u16, entry: &Entry) -> Request {
    Request::new(kind, flags, &[entry.original.family(), 0, 0, 0])
}

/// A message with what every message has.
fn required(kind: u16, flags: u16, entry: &Entry) -> Request {
    start(kind, flags, entry)
        .nested(CTA_TUPLE_ORIG, |attrs| append_tuple(attrs, &entry.original))
        .nested(CTA_TUPLE_REPLY, |attrs| append_tuple(attrs, &entry.reply))
        .attr(CTA_STATUS, &entry.status.to_be_bytes())
}

/// A message with everything, and with attributes that are not evaluated or not known.
fn message_of(entry: &Entry, kind: u16, flags: u16) -> Vec<u8> {
    let tcp = entry.tcp.expect("a TCP connection");
    required(kind, flags, entry)
        .attr(CTA_ZONE, &entry.zone.to_be_bytes())
        .attr(CTA_ID, &entry.id.expect("has one").to_be_bytes())
        .attr(CTA_TIMEOUT, &entry.timeout_s.expect("has one").to_be_bytes())
        .nested(CTA_PROTOINFO, |attrs| {
            attrs.nested(CTA_PROTOINFO_TCP, |attrs| {
                attrs
                    .attr(CTA_PROTOINFO_TCP_STATE, &[tcp.state])
                    .attr(2, &[7])
                    .attr(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[tcp.flags_original, 0])
                    .attr(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[tcp.flags_reply, 0])
                    .attr(77, &[1, 2, 3])
            })
        })
        .nested(CTA_HELP, |attrs| attrs.attr(1, b"ftp\0"))
        .attr(CTA_MARK, &entry.mark.to_be_bytes())
        .nested(CTA_SEQ_ADJ_ORIG, |attrs| attrs)
        .attr(CTA_LABELS, &[1; 16])
        .nested(CTA_SYNPROXY, |attrs| attrs.attr(1, &[0, 0, 0, 1]))
        .nested(CTA_TUPLE_MASTER, |attrs| append_tuple(attrs, &entry.original))
        .attr(1000, b"unknown")
        .finish(1)
}

/// Decodes the only message of a datagram.
fn event(datagram: &[u8]) -> Option<Event> {
    let mut messages = Messages::new(datagram);
    let event = messages.next().and_then(|message| Event::of(&message));
    assert!(messages.next().is_none());
    event
}

/// Decodes a message that has the tuples that `append` makes, and a status.
fn with_tuples(family: u8, append: impl Fn(Request) -> Request) -> Option<Entry> {
    let octets = Request::new(IPCTNL_MSG_CT_NEW, 0, &[family, 0, 0, 0])
        .nested(CTA_TUPLE_ORIG, &append)
        .nested(CTA_TUPLE_REPLY, &append)
        .attr(CTA_STATUS, &[0, 0, 0, 8])
        .finish(1);
    match event(&octets) {
        Some(Event::Update(entry)) => Some(entry),
        other => {
            assert_eq!(other, None);
            None
        }
    }
}

#[test]
fn an_entry_has_all_that_its_message_has() {
    let entry = full();
    let new = message_of(&entry, IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL);
    assert_eq!(event(&new), Some(Event::New(entry)));
    assert_eq!(event(&message_of(&entry, IPCTNL_MSG_CT_NEW, 0)), Some(Event::Update(entry)));
    assert_eq!(event(&message_of(&entry, IPCTNL_MSG_CT_DELETE, 0)), Some(Event::Destroy(entry)));
    assert_eq!(event(&message_of(&entry, IPCTNL_MSG_CT_GET_STATS, 0)), None);
    let nftables = 10 << 8;
    assert_eq!(event(&message_of(&entry, nftables, 0)), None);
}

#[test]
fn a_listed_entry_has_counters_zones_helper_and_references() {
    let entry = full();
    let decode = |request: Request| {
        let octets = request.finish(1);
        let mut messages = Messages::new(&octets);
        listed::parse_listed(&messages.next().expect("one"))
    };
    let plain = decode(required(IPCTNL_MSG_CT_NEW, 0, &entry)).expect("an entry");
    let bare = Entry { timeout_s: None, id: None, ..plain.entry };
    assert_eq!(plain, Listed::of(bare), "nothing is made up");
    let request = required(IPCTNL_MSG_CT_NEW, 0, &entry)
        .attr(CTA_ZONE, &7u16.to_be_bytes())
        .nested(CTA_COUNTERS_ORIG, |attrs| {
            attrs
                .attr(CTA_COUNTERS_PACKETS, &3u64.to_be_bytes())
                .attr(CTA_COUNTERS_BYTES, &99u64.to_be_bytes())
        })
        // As with an attribute that is too short.
        .nested(CTA_COUNTERS_REPLY, |attrs| attrs.attr(CTA_COUNTERS_PACKETS, &[1; 4]))
        .nested(CTA_HELP, |attrs| attrs.attr(CTA_HELP_NAME, b"ftp\0"))
        .nested(CTA_SECCTX, |attrs| attrs.attr(CTA_SECCTX_NAME, b"system_u:x\0"))
        .nested(CTA_PROTOINFO, |attrs| {
            attrs.nested(CTA_PROTOINFO_SCTP, |attrs| attrs.attr(CTA_PROTOINFO_SCTP_STATE, &[4]))
        })
        .attr(CTA_USE, &2u32.to_be_bytes());
    let all = decode(request).expect("an entry");
    assert_eq!(all.counters, [Some(Counters { packets: 3, octets: 99 }), None]);
    assert_eq!((all.zone, all.tuple_zones, all.usage), (7, [0; 2], Some(2)));
    assert_eq!((all.helper.as_deref(), all.secctx.as_deref()), (Some("ftp"), Some("system_u:x")));
    assert_eq!(all.state(), Some("ESTABLISHED"));
}

#[test]
fn an_entry_with_only_what_is_required_is_decoded() {
    for entry in [
        bare(tuple(v4(1), v4(2), UDP, [1, 2]), tuple(v4(2), v4(1), UDP, [2, 1])),
        bare(tuple(v6(1), v6(2), TCP, [1, 2]), tuple(v6(2), v6(1), TCP, [2, 1])),
        bare(tuple(v4(1), v4(2), ICMP, [77, 8 << 8]), tuple(v4(2), v4(1), ICMP, [77, 0])),
        bare(
            tuple(v6(1), v6(2), ICMPV6, [77, 128 << 8 | 1]),
            tuple(v6(2), v6(1), ICMPV6, [77, 129 << 8]),
        ),
    ] {
        let octets = required(IPCTNL_MSG_CT_NEW, 0, &entry).finish(1);
        assert_eq!(event(&octets), Some(Event::Update(entry)));
    }
}

#[test]
fn a_truncated_datagram_has_no_entry() {
    let octets = message_of(&full(), IPCTNL_MSG_CT_NEW, 0);
    for len in 0..octets.len() {
        assert_eq!(event(&octets[..len]), None, "{len} octets");
    }
}

#[test]
fn a_truncated_payload_has_no_entry_or_fewer_attributes() {
    let entry = full();
    let octets = message_of(&entry, IPCTNL_MSG_CT_NEW, 0);
    let (mut decoded, mut required) = (0, usize::MAX);
    for len in 16..octets.len() {
        let payload = &octets[16..len];
        let message = Message { kind: IPCTNL_MSG_CT_NEW, flags: 0, seq: 0, payload };
        let Some(found) = parse::entry(&message) else { continue };
        decoded += 1;
        required = required.min(len);
        let tuples = (found.original, found.reply, found.status);
        assert_eq!(tuples, (entry.original, entry.reply, entry.status), "{len} octets");
        assert!([0, entry.zone].contains(&found.zone) && [0, entry.mark].contains(&found.mark));
        assert!([None, entry.id].contains(&found.id) && [None, entry.tcp].contains(&found.tcp));
        assert!([None, entry.timeout_s].contains(&found.timeout_s));
    }
    // Ends of attributes, with their padding in part, after the two tuples and the status.
    assert!((10..20).contains(&decoded), "{decoded} of {} lengths", octets.len());
    let tuple = 4 + (4 + 8 + 8) + (4 + 8 + 8 + 8);
    assert_eq!(required, 16 + 4 + 2 * tuple + 8);
}

#[test]
fn a_wrong_length_inside_a_message_yields_no_other_connection() {
    let entry = full();
    let octets = message_of(&entry, IPCTNL_MSG_CT_NEW, 0);
    for at in 16..octets.len() {
        for value in [0, 1, 3, 4, 5, 8, 0x7f, 0xff] {
            let mut changed = octets.clone();
            changed[at] = value;
            // No panic; what is decoded has two tuples of one family and protocol.
            if let Some(Event::Update(found)) = event(&changed) {
                assert_eq!(found.original.family(), found.reply.family());
                assert_eq!(found.original.protocol, found.reply.protocol);
            }
        }
    }
}

#[test]
fn a_tuple_with_an_unknown_or_missing_part_is_not_decoded() {
    let inet = libc::AF_INET as u8;
    let address = |last: u8| [192, 0, 2, last];
    let ip = |attrs: Request| {
        attrs.nested(CTA_TUPLE_IP, |attrs| {
            attrs.attr(CTA_IP_V4_SRC, &address(1)).attr(CTA_IP_V4_DST, &address(2))
        })
    };
    let ports = |attrs: Request| {
        attrs
            .attr(CTA_PROTO_NUM, &[UDP])
            .attr(CTA_PROTO_SRC_PORT, &[0, 1])
            .attr(CTA_PROTO_DST_PORT, &[0, 2])
    };
    let udp = |attrs: Request| attrs.nested(CTA_TUPLE_PROTO, ports);
    let found = with_tuples(inet, |attrs| udp(ip(attrs))).expect("is complete");
    assert_eq!(found.original, tuple(v4(1), v4(2), UDP, [1, 2]));
    let zone = |attrs: Request| udp(ip(attrs)).attr(CTA_TUPLE_ZONE, &[0, 5]);
    assert_eq!(with_tuples(inet, zone).expect("is complete").zone, 5);

    assert_eq!(with_tuples(libc::AF_INET6 as u8, |attrs| udp(ip(attrs))), None);
    assert_eq!(with_tuples(inet, ip), None);
    assert_eq!(with_tuples(inet, udp), None);
    assert_eq!(with_tuples(inet, |attrs| udp(ip(attrs)).attr(4, &[0])), None);
    assert_eq!(with_tuples(inet, |attrs| udp(ip(attrs)).attr(CTA_TUPLE_ZONE, &[5])), None);
    assert_eq!(with_tuples(inet, |attrs| udp(ip(ip(attrs)))), None);

    let with_ip = |append: fn(Request) -> Request| {
        with_tuples(inet, |attrs| udp(attrs.nested(CTA_TUPLE_IP, append)))
    };
    assert_eq!(with_ip(|attrs| attrs.attr(CTA_IP_V4_SRC, &[1; 4])), None);
    assert_eq!(with_ip(|attrs| attrs.attr(1, &[1; 4]).attr(2, &[1; 16])), None);
    assert_eq!(with_ip(|attrs| attrs.attr(1, &[1; 16]).attr(2, &[1; 16])), None);
    assert_eq!(with_ip(|attrs| attrs.attr(3, &[1; 4]).attr(4, &[1; 4])), None);
    assert_eq!(with_ip(|attrs| attrs.attr(1, &[1; 4]).attr(2, &[1; 4]).attr(3, &[1; 16])), None);
    assert_eq!(with_ip(|attrs| attrs.attr(1, &[1; 4]).attr(2, &[1; 4]).attr(5, &[1])), None);

    let with_proto = |append: &dyn Fn(Request) -> Request| {
        with_tuples(inet, |attrs| ip(attrs).nested(CTA_TUPLE_PROTO, append))
    };
    assert!(with_proto(&ports).is_some());
    assert_eq!(with_proto(&|attrs| ports(attrs).attr(10, &[0])), None);
    assert_eq!(with_proto(&|attrs| ports(attrs).attr(CTA_PROTO_ICMP_ID, &[0, 1])), None);
    for protocol in [TCP, UDP, 33, 132, 136, ICMP, ICMPV6] {
        assert_eq!(with_proto(&|attrs| attrs.attr(CTA_PROTO_NUM, &[protocol])), None);
    }
    assert_eq!(with_proto(&|attrs| attrs.attr(CTA_PROTO_NUM, &[UDP, 0])), None);
    assert_eq!(with_proto(&|attrs| ports(attrs.attr(CTA_PROTO_NUM, &[UDP]))), None);
    let ospf = with_proto(&|attrs| attrs.attr(CTA_PROTO_NUM, &[OSPF])).expect("has no ports");
    assert_eq!(ospf.original, tuple(v4(1), v4(2), OSPF, [0, 0]));
}

#[test]
fn tuples_of_two_protocols_or_families_are_no_entry() {
    let udp = tuple(v4(1), v4(2), UDP, [1, 2]);
    let tcp = Tuple { protocol: TCP, ..udp };
    let udp6 = tuple(v6(1), v6(2), UDP, [1, 2]);
    for (original, reply) in [(udp, tcp), (udp, udp6), (udp6, udp)] {
        let octets = required(IPCTNL_MSG_CT_NEW, 0, &bare(original, reply)).finish(1);
        assert_eq!(event(&octets), None);
    }
}

#[test]
fn a_known_attribute_of_a_wrong_length_is_no_entry() {
    let udp = bare(tuple(v4(1), v4(2), UDP, [1, 2]), tuple(v4(2), v4(1), UDP, [2, 1]));
    for kind in [CTA_STATUS, CTA_TIMEOUT, CTA_MARK, CTA_ID, CTA_ZONE] {
        for len in [0, 1, 3, 5, 8] {
            let octets = required(IPCTNL_MSG_CT_NEW, 0, &udp).attr(kind, &vec![0; len]).finish(1);
            assert_eq!(event(&octets), None, "attribute {kind} of {len} octets");
        }
    }
    for flags in [&[][..], &[8], &[8, 8, 8]] {
        let octets = required(IPCTNL_MSG_CT_NEW, 0, &udp)
            .nested(CTA_PROTOINFO, |attrs| {
                attrs.nested(CTA_PROTOINFO_TCP, |tcp| {
                    tcp.attr(CTA_PROTOINFO_TCP_STATE, &[3])
                        .attr(CTA_PROTOINFO_TCP_FLAGS_REPLY, flags)
                })
            })
            .finish(1);
        assert_eq!(event(&octets), None);
    }
    let without_status = start(IPCTNL_MSG_CT_NEW, 0, &udp)
        .nested(CTA_TUPLE_ORIG, |attrs| append_tuple(attrs, &udp.original))
        .nested(CTA_TUPLE_REPLY, |attrs| append_tuple(attrs, &udp.reply))
        .finish(1);
    assert_eq!(event(&without_status), None);
}

#[test]
fn the_state_of_another_protocol_than_tcp_is_ignored() {
    let sctp = bare(tuple(v4(1), v4(2), 132, [1, 2]), tuple(v4(2), v4(1), 132, [2, 1]));
    let protoinfo_sctp = 3;
    let octets = required(IPCTNL_MSG_CT_NEW, 0, &sctp)
        .nested(CTA_PROTOINFO, |attrs| attrs.nested(protoinfo_sctp, |attrs| attrs.attr(1, &[3])))
        .finish(1);
    assert_eq!(event(&octets), Some(Event::Update(sctp)));
}

#[test]
fn a_kernel_without_ctnetlink_is_told_from_other_errors() {
    let is = |errno| is_unsupported(&io::Error::from_raw_os_error(errno));
    assert!(is(libc::EINVAL) && is(libc::EOPNOTSUPP));
    assert!(!is(libc::EPERM) && !is(libc::ENOBUFS) && !is(libc::ENOENT));
}
