//! Selectors and attributes of rules that the mirror does not follow, as `ip rule show` prints them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

const FRA_TUN_ID: u16 = 12;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DSCP: u16 = 25;
const FRA_FLOWLABEL: u16 = 26;
const FRA_FLOWLABEL_MASK: u16 = 27;

/// Names of /etc/protocols, as `ip` prints them.
const PROTOCOLS: [(u8, &str); 17] = [
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (89, "ospf"),
    (103, "pim"),
    (112, "vrrp"),
    (115, "l2tp"),
    (132, "sctp"),
    (136, "udplite"),
];

/// The text between interfaces and table, the text behind the table, and both in JSON.
#[derive(Debug, Default)]
pub struct Selectors {
    pub text: String,
    pub behind_table: String,
    pub json: BTreeMap<&'static str, Value>,
}

impl Selectors {
    /// Of attributes (FRA_*) and their values.
    pub fn of(attrs: &[(u16, Vec<u8>)]) -> Selectors {
        let mut all = Selectors::default();
        let value = |kind: u16| attrs.iter().find(|attr| attr.0 == kind).map(|attr| &attr.1[..]);
        if value(FRA_L3MDEV).is_some_and(|value| value != [0]) {
            all.text += " lookup [l3mdev-table]";
            all.json.insert("l3mdev", Value::Null);
        }
        if let Some([start, end]) = value(FRA_UID_RANGE).and_then(pair::<4>) {
            let [start, end] = [start, end].map(u32::from_ne_bytes);
            all.add(
                format_args!("uidrange {start}-{end}"),
                [("uid_start", start.into()), ("uid_end", end.into())],
            );
        }
        if let Some(&[proto]) = value(FRA_IP_PROTO) {
            let name = PROTOCOLS.iter().find(|(number, _)| *number == proto);
            let name = name.map_or_else(|| proto.to_string(), |(_, name)| (*name).to_owned());
            all.add(format_args!("ipproto {name}"), [("ipproto", name.clone().into())]);
        }
        let ranges = [
            (FRA_SPORT_RANGE, "sport", ["sport_start", "sport_end"]),
            (FRA_DPORT_RANGE, "dport", ["dport_start", "dport_end"]),
        ];
        for (kind, name, bounds) in ranges {
            let Some([start, end]) = value(kind).and_then(pair::<2>) else { continue };
            match [start, end].map(u16::from_ne_bytes) {
                [start, end] if start == end => {
                    all.add(format_args!("{name} {start}"), [(name, start.into())]);
                }
                [start, end] => {
                    let json = [(bounds[0], start.into()), (bounds[1], end.into())];
                    all.add(format_args!("{name} {start}-{end}"), json);
                }
            }
        }
        if let Some(id) = value(FRA_TUN_ID).and_then(|value| value.try_into().ok()) {
            let id = u64::from_be_bytes(id);
            all.add(format_args!("tun_id {id}"), [("tun_id", id.into())]);
        }
        if let Some(&[dscp]) = value(FRA_DSCP) {
            all.add(format_args!("dscp {dscp}"), [("dscp", dscp.to_string().into())]);
        }
        if let Some(label) = value(FRA_FLOWLABEL).and_then(|value| value.try_into().ok()) {
            let mask = value(FRA_FLOWLABEL_MASK).and_then(|value| value.try_into().ok());
            let [label, mask] =
                [label, mask.unwrap_or([0, 0xf, 0xff, 0xff])].map(u32::from_be_bytes);
            let json = [
                ("flowlabel", json!(format!("{label:#x}"))),
                ("flowlabel_mask", json!(format!("{mask:#x}"))),
            ];
            match mask {
                0xf_ffff => all.add(format_args!("flowlabel {label:#x}"), json.into_iter().take(1)),
                _ => all.add(format_args!("flowlabel {label:#x}/{mask:#x}"), json),
            }
        }
        if let Some(group) = value(FRA_SUPPRESS_IFGROUP).and_then(|value| value.try_into().ok()) {
            let group = i32::from_ne_bytes(group);
            // -1: none.
            if group >= 0 {
                let name = if group == 0 { "default".to_owned() } else { group.to_string() };
                all.behind_table = format!(" suppress_ifgroup {name}");
                all.json.insert("suppress_ifgroup", name.into());
            }
        }
        all
    }

    fn add(
        &mut self,
        text: std::fmt::Arguments<'_>,
        json: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        // A string takes everything.
        let _ = write!(self.text, " {text}");
        self.json.extend(json);
    }
}

/// The two halves of a value.
fn pair<const N: usize>(value: &[u8]) -> Option<[[u8; N]; 2]> {
    let (start, end) = value.split_at_checked(N)?;
    Some([start.try_into().ok()?, end.try_into().ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_printed_as_by_ip() {
        let port = |start: u16, end: u16| [start.to_ne_bytes(), end.to_ne_bytes()].concat();
        let of = |attrs: &[(u16, Vec<u8>)]| {
            let all = Selectors::of(attrs);
            (all.text + &all.behind_table, Value::from_iter(all.json))
        };
        let tcp = [(FRA_IP_PROTO, vec![6]), (FRA_DPORT_RANGE, port(80, 80))];
        assert_eq!(
            of(&tcp),
            (" ipproto tcp dport 80".into(), json!({"ipproto": "tcp", "dport": 80}))
        );
        let sport = [(FRA_SPORT_RANGE, port(1, 99)), (FRA_IP_PROTO, vec![253])];
        let expected = json!({"ipproto": "253", "sport_start": 1, "sport_end": 99});
        assert_eq!(of(&sport), (" ipproto 253 sport 1-99".into(), expected));
        let uids = [0u32, 99].map(u32::to_ne_bytes).concat();
        let expected = json!({"uid_start": 0, "uid_end": 99});
        assert_eq!(of(&[(FRA_UID_RANGE, uids)]), (" uidrange 0-99".into(), expected));
        let tun_id = 7u64.to_be_bytes().to_vec();
        assert_eq!(of(&[(FRA_TUN_ID, tun_id)]), (" tun_id 7".into(), json!({"tun_id": 7})));
        let group = |group: i32| vec![(FRA_SUPPRESS_IFGROUP, group.to_ne_bytes().to_vec())];
        let expected = json!({"suppress_ifgroup": "5"});
        assert_eq!(of(&group(5)), (" suppress_ifgroup 5".into(), expected));
        assert_eq!(of(&group(-1)), (String::new(), json!({})));
        assert_eq!(of(&[(FRA_L3MDEV, vec![1])]).0, " lookup [l3mdev-table]");
        // Of a length that the kernel does not send.
        assert_eq!(of(&[(FRA_DPORT_RANGE, vec![1, 2, 3]), (99, vec![])]).0, "");
    }
}
