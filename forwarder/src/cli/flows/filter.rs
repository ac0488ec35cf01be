//! Which flows are shown: the filters of `conntrack show`, with its names, and those of interfaces and offload.
//!
//! Other than there, `-n` is not the source NAT: `flows top -n` is the number of flows.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;

use crate::cli::conntrack::filter::{
    Family, Mark, Status, parse_mark, parse_protocol, parse_status,
};
use crate::cli::{Global, Usage};
use crate::control::api;
use crate::control::api::flow_filter::{FlowFilter, Masked};
use crate::control::config::ipnet::IpNet;
use crate::control::conntrack::TCP_STATES;

/// Filters. A flow is shown if it matches all that are given.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Flows of one family.
    #[arg(short = 'f', long, value_name = "FAMILY")]
    family: Option<Family>,
    /// Flows of a protocol, by name or number; not entries for all packets with their addresses.
    #[arg(short = 'p', long = "protonum", visible_alias = "proto", value_name = "PROTO")]
    #[arg(value_parser = parse_protocol)]
    protocol: Option<u8>,
    /// Source address of the original direction, or its prefix.
    #[arg(short = 's', long = "orig-src", visible_alias = "src", value_name = "PREFIX")]
    orig_src: Option<IpNet>,
    /// Destination address of the original direction, or its prefix.
    #[arg(short = 'd', long = "orig-dst", visible_alias = "dst", value_name = "PREFIX")]
    orig_dst: Option<IpNet>,
    /// Source address of the reply direction, or its prefix.
    #[arg(short = 'r', long = "reply-src", value_name = "PREFIX")]
    reply_src: Option<IpNet>,
    /// Destination address of the reply direction, or its prefix.
    #[arg(short = 'q', long = "reply-dst", value_name = "PREFIX")]
    reply_dst: Option<IpNet>,
    /// Source port of the original direction.
    #[arg(long = "sport", visible_alias = "orig-port-src", value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port of the original direction.
    #[arg(long = "dport", visible_alias = "orig-port-dst", value_name = "PORT")]
    dport: Option<u16>,
    /// State of the protocol, as conntrack names it; TCP connections are ESTABLISHED while they are carried.
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    state: Option<String>,
    /// The mark; with a mask only the bits in it are compared.
    #[arg(short = 'm', long, value_name = "MARK[/MASK]", value_parser = parse_mark)]
    mark: Option<Mark>,
    /// Bits of the status that are set, as ASSURED.
    #[arg(short = 'u', long, value_name = "STATUS,…", value_parser = parse_status)]
    status: Option<Status>,
    /// The zone; only connections of zone 0 are carried.
    #[arg(short = 'w', long, value_name = "ZONE")]
    zone: Option<u16>,
    /// Flows whose source is translated, or is translated to an address.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1)]
    src_nat: Option<Option<IpAddr>>,
    /// Flows whose destination is translated, or is translated to an address.
    #[arg(short = 'g', long, value_name = "ADDRESS", num_args = 0..=1)]
    dst_nat: Option<Option<IpAddr>>,
    /// Flows with a direction whose packets arrive on an interface.
    #[arg(long, value_name = "IFACE")]
    iif: Option<String>,
    /// Flows with a direction whose packets leave by an interface; with --iif, the same direction.
    #[arg(long, value_name = "IFACE")]
    oif: Option<String>,
    /// Flows of which the XDP program forwards packets by itself.
    #[arg(long, conflicts_with = "not_offloaded")]
    offloaded: bool,
    /// Flows that are offloaded in neither direction.
    #[arg(long)]
    not_offloaded: bool,
}

fn parse_state(text: &str) -> Result<String, String> {
    match TCP_STATES.iter().any(|name| name.eq_ignore_ascii_case(text)) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not one of {}", TCP_STATES.join(", "))),
    }
}

impl FilterArgs {
    /// The filter for the daemon.
    ///
    /// # Errors
    /// [`Usage`]: nothing can match.
    pub fn filter(&self, global: &Global) -> Result<FlowFilter> {
        Ok(self.with_family(global.family())?)
    }

    fn with_family(&self, global: Option<api::Family>) -> Result<FlowFilter, Usage> {
        let own = self.family.map(|family| match family {
            Family::Ipv4 => api::Family::Inet,
            Family::Ipv6 => api::Family::Inet6,
        });
        let nets = [self.orig_src, self.orig_dst, self.reply_src, self.reply_dst];
        let of_nets = nets.iter().flatten().map(|net| api::Family::of(net.addr));
        let families: Vec<api::Family> = own.into_iter().chain(global).chain(of_nets).collect();
        if families.iter().any(|family| Some(family) != families.first()) {
            let why = "no flow is of both families: give addresses of one of them, and no other \
                       family with -4, -6 or -f";
            return Err(Usage(why.into()));
        }
        let masked = |value, mask| Masked { value, mask };
        Ok(FlowFilter {
            family: families.first().copied(),
            protocol: self.protocol,
            original: [self.orig_src, self.orig_dst],
            reply: [self.reply_src, self.reply_dst],
            ports: [self.sport, self.dport],
            mark: self.mark.map(|Mark { value, mask }| masked(value, mask)),
            status: self.status.map(|Status { value, mask }| masked(value, mask)),
            state: self.state.clone(),
            zone: self.zone,
            src_nat: self.src_nat,
            dst_nat: self.dst_nat,
            iif: self.iif.clone(),
            oif: self.oif.clone(),
            offloaded: (self.offloaded || self.not_offloaded).then_some(self.offloaded),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Words {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn filter(line: &str) -> Result<FlowFilter, String> {
        use clap::Parser;
        let words = std::iter::once("show").chain(line.split_whitespace());
        let words = Words::try_parse_from(words).map_err(|error| error.to_string())?;
        words.filter.with_family(None).map_err(|error| error.to_string())
    }

    #[test]
    fn words_of_conntrack_are_filters() {
        let net = |text: &str| text.parse::<IpNet>().ok();
        let expected = FlowFilter {
            family: Some(api::Family::Inet),
            protocol: Some(6),
            original: [net("10.0.0.0/8"), net("192.0.2.1")],
            ports: [None, Some(443)],
            mark: Some(Masked { value: 2, mask: 0xf }),
            status: Some(Masked { value: 4, mask: 4 }),
            state: Some("ESTABLISHED".into()),
            zone: Some(0),
            src_nat: Some(None),
            iif: Some("lan".into()),
            offloaded: Some(true),
            ..FlowFilter::default()
        };
        let line = "-p tcp -s 10.0.0.0/8 -d 192.0.2.1 --dport 443 -m 2/0xf -u ASSURED \
                    --state ESTABLISHED -w 0 --src-nat --iif lan --offloaded";
        assert_eq!(filter(line), Ok(expected));
        assert_eq!(filter(""), Ok(FlowFilter::default()));
        assert_eq!(filter("--not-offloaded").map(|it| it.offloaded), Ok(Some(false)));
    }

    #[test]
    fn wrong_filters_are_refused_with_what_is_expected() {
        for (line, why) in [
            ("-p tpc", "`tpc` is not a protocol"),
            ("-s 10.0.0.0/33", "the length is at most 32"),
            ("-d here", "a prefix like 10.0.0.0/8"),
            ("-m x", "`x` is not a number"),
            ("-u ASSURD", "SEEN_REPLY"),
            ("--state OPEN", "ESTABLISHED"),
            ("--dport 65536", "65536"),
            ("--offloaded --not-offloaded", "cannot be used with"),
            ("-s 10.0.0.1 -d 2001:db8::1", "of both families"),
            ("-f ipv6 -s 10.0.0.1", "of both families"),
        ] {
            let said = filter(line).expect_err(line);
            assert!(said.contains(why), "{line}: {said}");
        }
    }
}
