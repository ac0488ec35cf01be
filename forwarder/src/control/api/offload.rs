//! The list of offloaded flows.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use xdp_prog::offload::Width;

use crate::control::conntrack::{Tuple, TupleFields, protocol_name};

/// A flow that the XDP program forwards by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OffloadedRow {
    /// The port that its packets come from.
    pub iif: String,
    /// The port that they leave by.
    pub oif: String,
    /// The packets; the protocol may be that of a [`Width`]: all with these addresses, or of these prefixes.
    #[serde(serialize_with = "fields")]
    pub tuple: Tuple,
    /// What NAT makes of them.
    #[serde(serialize_with = "optional_fields", skip_serializing_if = "Option::is_none")]
    pub translated: Option<Tuple>,
    /// The neighbour that they are sent to.
    pub nexthop: IpAddr,
    /// Packets since it was offloaded.
    pub packets: u64,
    /// Their octets, from the IP header on.
    pub octets: u64,
    /// Since when it is offloaded, milliseconds.
    pub age_ms: u64,
    /// Since when no packet was seen, milliseconds; exact to 200 ms.
    pub idle_ms: u64,
}

fn fields<S: serde::Serializer>(tuple: &Tuple, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields {
        protocol: &'static str,
        protonum: u8,
        #[serde(flatten)]
        tuple: TupleFields,
        /// Lengths of prefixes, bits, as `ip -j rule` has them.
        #[serde(skip_serializing_if = "Option::is_none")]
        srclen: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        dstlen: Option<u8>,
    }
    let [srclen, dstlen] = prefix_lengths(tuple);
    let is_wide = Width::of(tuple.protocol).is_some();
    let tuple = &Tuple { protocol: if is_wide { 0 } else { tuple.protocol }, ..*tuple };
    Fields {
        protocol: if is_wide { "all" } else { protocol_name(tuple.protocol) },
        protonum: tuple.protocol,
        tuple: TupleFields::of(tuple),
        srclen,
        dstlen,
    }
    .serialize(serializer)
}

/// Lengths of the prefixes that an entry stands for, of source and destination.
fn prefix_lengths(tuple: &Tuple) -> [Option<u8>; 2] {
    let len = if tuple.source.is_ipv4() { Width::PREFIX4 } else { Width::PREFIX6 };
    match Width::of(tuple.protocol) {
        Some(Width::Prefixes) => [Some(len), Some(len)],
        Some(Width::ToPrefix) => [None, Some(len)],
        Some(Width::Addresses) | None => [None, None],
    }
}

fn optional_fields<S: serde::Serializer>(
    tuple: &Option<Tuple>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match tuple {
        Some(tuple) => fields(tuple, serializer),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for OffloadedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple { source, destination, protocol, .. } = self.tuple;
        write!(f, "iif={} ", self.iif)?;
        match Width::of(protocol) {
            Some(_) => {
                let [from, to] = prefix_lengths(&self.tuple)
                    .map(|len| len.map_or(String::new(), |len| format!("/{len}")));
                write!(f, "all src={source}{from} dst={destination}{to}")?;
            }
            None => write!(f, "{} {}", protocol_name(protocol), self.tuple)?,
        }
        if let Some(translated) = &self.translated {
            write!(f, " -> {translated}")?;
        }
        writeln!(
            f,
            " oif={} via={} packets={} octets={} age={}ms idle={}ms",
            self.oif, self.nexthop, self.packets, self.octets, self.age_ms, self.idle_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_text_and_json() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let tuple = Tuple {
            source: address("10.0.0.1"),
            destination: address("192.0.2.9"),
            protocol: 17,
            source_port: 1000,
            destination_port: 53,
        };
        let row = OffloadedRow {
            iif: "lan".into(),
            oif: "wan".into(),
            tuple,
            translated: Some(Tuple { source: address("198.51.100.1"), ..tuple }),
            nexthop: address("198.51.100.2"),
            packets: 3,
            octets: 120,
            age_ms: 5000,
            idle_ms: 20,
        };
        assert_eq!(
            row.to_string(),
            "iif=lan udp src=10.0.0.1 dst=192.0.2.9 sport=1000 dport=53 -> src=198.51.100.1 \
             dst=192.0.2.9 sport=1000 dport=53 oif=wan via=198.51.100.2 packets=3 octets=120 \
             age=5000ms idle=20ms\n"
        );
        let json = serde_json::to_value(&row).expect("JSON");
        assert_eq!(json["tuple"]["protocol"], "udp");
        assert_eq!(json["translated"]["src"], "198.51.100.1");
        let all = Tuple { protocol: 0, source_port: 0, destination_port: 0, ..tuple };
        let wide = OffloadedRow { tuple: all, translated: None, ..row };
        assert!(
            wide.to_string().starts_with("iif=lan all src=10.0.0.1 dst=192.0.2.9 oif=wan via=")
        );
        let json = serde_json::to_value(&wide).expect("JSON");
        assert_eq!((&json["tuple"]["protocol"], json.get("translated")), (&"all".into(), None));
    }
}
