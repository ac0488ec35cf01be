//! Which entries are shown: the filters of `conntrack -L`, with its names.

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use crate::control::config::ipnet::IpNet;
use crate::control::conntrack::{
    IPS_DST_NAT, IPS_SEEN_REPLY, IPS_SRC_NAT, Listed, STATUS_NAMES, Tuple, has_ports,
    protocol_number,
};

/// Filters. An entry is shown if it matches all that are given.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Entries of one family.
    #[arg(short = 'f', long, value_name = "FAMILY")]
    pub family: Option<Family>,
    /// Entries of a protocol, by name or number.
    #[arg(short = 'p', long = "protonum", visible_alias = "proto", value_name = "PROTO")]
    #[arg(value_parser = parse_protocol)]
    pub protocol: Option<u8>,
    /// Source address of the original direction, or its prefix.
    #[arg(short = 's', long = "orig-src", visible_alias = "src", value_name = "PREFIX")]
    pub orig_src: Option<IpNet>,
    /// Destination address of the original direction, or its prefix.
    #[arg(short = 'd', long = "orig-dst", visible_alias = "dst", value_name = "PREFIX")]
    pub orig_dst: Option<IpNet>,
    /// Source address of the reply direction, or its prefix.
    #[arg(short = 'r', long = "reply-src", value_name = "PREFIX")]
    pub reply_src: Option<IpNet>,
    /// Destination address of the reply direction, or its prefix.
    #[arg(short = 'q', long = "reply-dst", value_name = "PREFIX")]
    pub reply_dst: Option<IpNet>,
    /// Source port of the original direction.
    #[arg(long = "sport", visible_alias = "orig-port-src", value_name = "PORT")]
    pub sport: Option<u16>,
    /// Destination port of the original direction.
    #[arg(long = "dport", visible_alias = "orig-port-dst", value_name = "PORT")]
    pub dport: Option<u16>,
    /// State of the protocol, as ESTABLISHED.
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// The mark; with a mask only the bits in it are compared.
    #[arg(short = 'm', long, value_name = "MARK[/MASK]", value_parser = parse_mark)]
    pub mark: Option<Mark>,
    /// Bits of the status that are set, as ASSURED; UNREPLIED: SEEN_REPLY is not set.
    #[arg(short = 'u', long, value_name = "STATUS,…", value_parser = parse_status)]
    pub status: Option<Status>,
    /// The zone of both directions.
    #[arg(short = 'w', long, value_name = "ZONE")]
    pub zone: Option<u16>,
    /// Entries whose source is translated, or is translated to an address.
    #[arg(short = 'n', long, value_name = "ADDRESS", num_args = 0..=1)]
    pub src_nat: Option<Option<IpAddr>>,
    /// Entries whose destination is translated, or is translated to an address.
    #[arg(short = 'g', long, value_name = "ADDRESS", num_args = 0..=1)]
    pub dst_nat: Option<Option<IpAddr>>,
    /// Entries whose packets workers carry.
    #[arg(long)]
    pub carried: bool,
}

/// An address family, as `conntrack` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// AF_INET.
    Ipv4,
    /// AF_INET6.
    Ipv6,
}

/// A mark and the bits of it that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The value.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

/// Bits of the status, and the value of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The value.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

/// A protocol, by name or number.
pub fn parse_protocol(text: &str) -> Result<u8, String> {
    let expected = "a name, as tcp or udp, or a number up to 255 is expected";
    protocol_number(text).ok_or_else(|| format!("`{text}` is not a protocol: {expected}"))
}

/// A mark, and a mask after a slash.
pub fn parse_mark(text: &str) -> Result<Mark, String> {
    let number = |text: &str| {
        super::super::show::parse_number(text).ok_or_else(|| format!("`{text}` is not a number"))
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Ok(Mark { value: number(value)?, mask: number(mask)? })
}

/// Names of bits, separated by commas.
pub fn parse_status(text: &str) -> Result<Status, String> {
    let mut status = Status::default();
    for word in text.split(',') {
        let known = STATUS_NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(word));
        match known {
            Some((bit, _)) => {
                status.value |= bit;
                status.mask |= bit;
            }
            None if word.eq_ignore_ascii_case("UNREPLIED") => status.mask |= IPS_SEEN_REPLY,
            None => {
                let names: Vec<&str> = STATUS_NAMES.iter().map(|(_, name)| *name).collect();
                return Err(format!("`{word}` is not one of {}, UNREPLIED", names.join(", ")));
            }
        }
    }
    Ok(status)
}

impl FilterArgs {
    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        let FilterArgs { family, protocol, orig_src, orig_dst, reply_src, reply_dst, .. } = self;
        let FilterArgs {
            sport, dport, state, mark, status, zone, src_nat, dst_nat, carried, ..
        } = self;
        let prefixes = [orig_src, orig_dst, reply_src, reply_dst];
        family.is_none()
            && protocol.is_none()
            && prefixes.iter().all(|prefix| prefix.is_none())
            && [sport, dport].iter().all(|port| port.is_none())
            && (state.is_none() && mark.is_none() && status.is_none() && zone.is_none())
            && (src_nat.is_none() && dst_nat.is_none() && !carried)
    }

    /// Whether an entry matches, apart from `carried`.
    pub fn passes(&self, listed: &Listed) -> bool {
        let entry = &listed.entry;
        let (original, reply) = (&entry.original, &entry.reply);
        let is_in = |prefix: Option<IpNet>, address: IpAddr| {
            prefix.is_none_or(|prefix| prefix.covers(IpNet::host(address)))
        };
        let is_port = |wanted: Option<u16>, port: u16| {
            wanted.is_none_or(|wanted| has_ports(original.protocol) && wanted == port)
        };
        let is_ipv4 = original.source.is_ipv4();
        self.family.is_none_or(|family| (family == Family::Ipv4) == is_ipv4)
            && self.protocol.is_none_or(|protocol| protocol == original.protocol)
            && is_in(self.orig_src, original.source)
            && is_in(self.orig_dst, original.destination)
            && is_in(self.reply_src, reply.source)
            && is_in(self.reply_dst, reply.destination)
            && is_port(self.sport, original.source_port)
            && is_port(self.dport, original.destination_port)
            && self.has_state(listed)
            && self.mark.is_none_or(|mark| entry.mark & mark.mask == mark.value)
            && self.status.is_none_or(|status| entry.status & status.mask == status.value)
            && self.zone.is_none_or(|zone| zone == listed.zone)
            && self
                .src_nat
                .is_none_or(|to| is_translated(entry.status, IPS_SRC_NAT, to, source(listed)))
            && self
                .dst_nat
                .is_none_or(|to| is_translated(entry.status, IPS_DST_NAT, to, destination(listed)))
    }

    fn has_state(&self, listed: &Listed) -> bool {
        let Some(wanted) = &self.state else { return true };
        listed.state().is_some_and(|state| state.eq_ignore_ascii_case(wanted))
    }
}

/// The source of the original direction, and to what it is translated: address and port each, or the identifier of echo.
fn source(listed: &Listed) -> [(IpAddr, u16); 2] {
    let of = |it: Tuple| (it.source, it.source_port);
    [of(listed.entry.original), of(listed.entry.reply.inverted())]
}

/// The same of the destination.
fn destination(listed: &Listed) -> [(IpAddr, u16); 2] {
    let of = |it: Tuple| (it.destination, it.destination_port);
    [of(listed.entry.original), of(listed.entry.reply.inverted())]
}

/// Whether an entry has this NAT, and translates to an address if one is given (`filter_nat` of
/// conntrack-tools).
fn is_translated(
    status: u32,
    nat: u32,
    to: Option<IpAddr>,
    [original, reply]: [(IpAddr, u16); 2],
) -> bool {
    match to {
        None => status & nat != 0 && original != reply,
        Some(to) => status & nat != 0 && original.0 != reply.0 && reply.0 == to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::conntrack::*;

    #[derive(Debug, clap::Parser)]
    struct Words {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn filter(line: &str) -> FilterArgs {
        use clap::Parser;
        let words = std::iter::once("show").chain(line.split_whitespace());
        Words::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).filter
    }

    /// A TCP connection to port 80 whose source is translated to 203.0.113.1.
    fn translated() -> Listed {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (client, server) = (address("192.0.2.1"), address("198.51.100.2"));
        let tuple = |source, destination, source_port, destination_port| Tuple {
            source,
            destination,
            protocol: 6,
            source_port,
            destination_port,
        };
        Listed::of(Entry {
            original: tuple(client, server, 1024, 80),
            reply: tuple(server, address("203.0.113.1"), 80, 1024),
            status: IPS_SEEN_REPLY | IPS_CONFIRMED | IPS_SRC_NAT,
            timeout_s: Some(100),
            mark: 0x12,
            zone: 0,
            id: None,
            tcp: Some(TcpInfo {
                state: TCP_CONNTRACK_ESTABLISHED,
                flags_original: 0,
                flags_reply: 0,
            }),
            has_helper: false,
            is_seq_adjusted: false,
            has_synproxy: false,
            has_labels: false,
            has_master: false,
        })
    }

    #[test]
    fn each_filter_decides() {
        let entry = translated();
        for line in [
            "",
            "-f ipv4 -p tcp -s 192.0.2.0/24 -d 198.51.100.2 -r 198.51.100.2 -q 203.0.113.1",
            "--protonum 6 --orig-src 192.0.2.1 --orig-dst 0.0.0.0/0",
            "--sport 1024 --dport 80",
            "--orig-port-src 1024 --orig-port-dst 80",
            "--state established",
            "-w 0",
            "-m 0x12",
            "-q 203.0.113.0/24",
            "-m 2/0xf",
            "-u SEEN_REPLY,CONFIRMED",
            "-n",
            "-n 203.0.113.1",
            "--src-nat 203.0.113.1 --carried",
        ] {
            let filter = filter(line);
            assert!(filter.passes(&entry), "{line}");
            assert_eq!(filter.is_empty(), line.is_empty(), "{line}");
        }
        for line in [
            "-f ipv6",
            "-p udp",
            "-s 192.0.3.0/24",
            "-s 2001:db8::/32",
            "-d 192.0.2.1",
            "-r 192.0.2.1",
            "-q 192.0.2.1",
            "--sport 80",
            "--dport 1024",
            "--state TIME_WAIT",
            "--zone 7",
            "-m 18/0xf",
            "-m 0x13",
            "-u ASSURED",
            "-u UNREPLIED",
            "-n 192.0.2.1",
            "-g",
        ] {
            assert!(!filter(line).passes(&entry), "{line}");
        }
        let mut icmp = translated();
        (icmp.entry.original.protocol, icmp.entry.tcp) = (1, None);
        assert!(!filter("--dport 80").passes(&icmp), "ICMP has no ports");
        assert!(!filter("--state ESTABLISHED").passes(&icmp), "ICMP has no state");
    }

    #[test]
    fn wrong_values_are_refused() {
        use clap::Parser;
        for line in
            ["-p tpc", "-m x", "-m 1/", "-u ASSURD", "-f inet", "-s 10.0.0.0/33", "--sport x"]
        {
            let words = std::iter::once("show").chain(line.split_whitespace());
            assert!(Words::try_parse_from(words).is_err(), "{line}");
        }
    }
}
