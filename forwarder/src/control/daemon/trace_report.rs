//! Makes the report of a traced packet of its record: names of interfaces, the text of rules.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::control::api::trace::{PacketTrace, TraceDisposition, TraceStage, TraceStep, lladdr};
use crate::control::nftables::mismatch::{Mismatch, mismatch};
use crate::control::nftables::print::{Printer, one_line};
use crate::netfilter::nft::ruleset::{Chain, Table};
use crate::netfilter::nft::{Nft, TracedRule};
use crate::tables::Tables;
use crate::trace::step::{Conntrack, Endpoint, FunctionVerdict, RuleResult, Stage};
use crate::trace::{FinalDisposition, Record, Step};
use crate::wire::EthernetFrame;

/// What a record refers to.
pub(super) struct References<'a> {
    /// The newest tables.
    pub(super) tables: &'a Tables,
    /// The ruleset that was applied; `None`: another one is applied now, or there is none.
    pub(super) nft: Option<&'a Nft>,
}

/// The report; the number of the packet is set later.
pub(super) fn report(record: &Record, worker: u32, of: &References<'_>) -> PacketTrace {
    let mut reporter = Reporter { of, printers: HashMap::new(), chains: Vec::new(), why: None };
    let stages = reporter.stages(record);
    PacketTrace {
        packet: 0,
        worker,
        tstamp_ns: record.tstamp_ns,
        port: of.name(record.ifindex),
        length: record.len,
        frame: frame(record.head()),
        stages,
        disposition: reporter.disposition(&record.disposition),
    }
}

fn frame(head: &[u8]) -> String {
    let frame = EthernetFrame::new_unchecked(head);
    match frame.check_len() {
        Ok(()) => frame.to_string(),
        Err(error) => format!("[{error}]"),
    }
}

impl References<'_> {
    /// The name of an interface.
    fn name(&self, ifindex: u32) -> String {
        let link = self.tables.links.ifindex(ifindex);
        link.map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
    }
}

/// Family and name of a table, and the name of a chain.
type Place = (String, String);

struct Reporter<'a> {
    of: &'a References<'a>,
    /// By the table's family and name.
    printers: HashMap<String, Printer<'a>>,
    /// The chains in which rules are evaluated: the base chain first.
    chains: Vec<Place>,
    /// The rule or chain that left the packet to the kernel.
    why: Option<String>,
}

fn place(table: &Table, chain: &Chain) -> Place {
    (format!("{} {}", table.family, one_line(&table.name)), one_line(&chain.name))
}

impl Reporter<'_> {
    /// The stages, without those that decided nothing.
    fn stages(&mut self, record: &Record) -> Vec<TraceStage> {
        let mut version = 4;
        let mut stages: Vec<(Stage, Vec<TraceStep>)> = Vec::new();
        for step in record.steps() {
            if let Step::Stage(stage) = step {
                if matches!(stage, Stage::Ip6RcvCore) {
                    version = 6;
                }
                stages.push((*stage, Vec::new()));
                continue;
            }
            let said = match step {
                // Of interest where it is not the port.
                Step::Dev { ifindex } if *ifindex == record.ifindex => Vec::new(),
                step => self.step(step, version),
            };
            if let Some((_, steps)) = stages.last_mut() {
                steps.extend(said);
            }
        }
        let next_is_icmp = |at: usize| {
            let next = stages.get(at + 1).map(|(stage, _)| stage);
            matches!(next, Some(Stage::IcmpSend | Stage::Icmp6Send))
        };
        let is_sent = matches!(
            record.disposition,
            FinalDisposition::Sent { .. }
                | FinalDisposition::Held { .. }
                | FinalDisposition::Fragmented { .. }
        );
        let ends = |at: usize| next_is_icmp(at) || (at + 1 == stages.len() && !is_sent);
        let shown = stages.iter().enumerate();
        let shown = shown.filter(|(at, (_, steps))| !steps.is_empty() || ends(*at));
        let stage = |(stage, steps): &(Stage, Vec<TraceStep>)| TraceStage {
            stage: stage.name().to_owned(),
            steps: steps.clone(),
        };
        shown.map(|(_, it)| stage(it)).collect()
    }

    fn step(&mut self, step: &Step, version: u8) -> Vec<TraceStep> {
        let note = |text: &str| vec![TraceStep::Note { text: text.to_owned() }];
        let of = self.of;
        vec![match *step {
            Step::Stage(_) => return Vec::new(),
            Step::Dev { ifindex } => TraceStep::Dev { dev: of.name(ifindex) },
            Step::Header { ttl, len } => TraceStep::Header { version, ttl, length: len },
            Step::Route { daddr, gateway, oif, mtu } => {
                TraceStep::Route { dst: daddr, via: gateway, dev: of.name(oif), mtu }
            }
            Step::Ttl(ttl) => TraceStep::Ttl { ttl },
            Step::Conntrack(conntrack) => connection(conntrack),
            Step::Nat { is_source, from, to } => {
                let end = if is_source { "source" } else { "destination" };
                let at = |end| match end {
                    Endpoint::Port(addr, port) => SocketAddr::new(addr, port).to_string(),
                    Endpoint::Echo(addr, id) => format!("{addr} id {id}"),
                    Endpoint::Address(addr) => addr.to_string(),
                };
                TraceStep::Nat { end: end.to_owned(), from: at(from), to: at(to) }
            }
            Step::NatLeft => return note("nat: only the kernel can translate the packet"),
            Step::BaseChain(base) => {
                let of = of.nft.and_then(|nft| nft.traced_base(base));
                self.chains = of.map(|(table, chain)| place(table, chain)).into_iter().collect();
                return match self.of.nft {
                    // The numbers of rules mean nothing in another ruleset.
                    None => {
                        note("rules of another generation of the ruleset, which is no longer known")
                    }
                    Some(_) => Vec::new(),
                };
            }
            Step::Rule { step, op, result } => return self.rule(step, op, &result),
            Step::Omitted { rules } => return note(&format!("{rules} more rules do not match")),
            Step::ChainEnd if self.chains.len() > 1 => {
                let (table, chain) = self.chains.pop().unwrap_or_default();
                TraceStep::Chain { table, chain, result: "end".to_owned() }
            }
            Step::ChainEnd => return Vec::new(),
            Step::Policy { is_drop } => {
                let result = if is_drop { "policy drop" } else { "policy accept" };
                let Some((table, chain)) = self.chains.first().cloned() else {
                    return note(result);
                };
                TraceStep::Chain { table, chain, result: result.to_owned() }
            }
            Step::Left(reason) => {
                let reason = of.nft.map_or("unknown", |nft| nft.program().reason(reason));
                let reason = one_line(reason);
                // The rule, or else the base chain.
                let by = self.why.take().or_else(|| {
                    let (table, chain) = self.chains.first()?;
                    Some(format!("{table} {chain}"))
                });
                let why = by.map_or(reason.clone(), |by| format!("{by}: {reason}"));
                self.why = Some(why);
                return note(&format!("left to the kernel: {reason}"));
            }
            Step::Function(verdict) => {
                return note(match verdict {
                    FunctionVerdict::Accept => "hook function: accept",
                    FunctionVerdict::Drop => "hook function: drop",
                    FunctionVerdict::Stolen => "hook function: stolen",
                    FunctionVerdict::Punt => "hook function: left to the kernel",
                });
            }
            Step::Neigh { addr, lladdr: known, oif } => {
                TraceStep::Neigh { dst: addr, lladdr: known.map(lladdr), dev: of.name(oif) }
            }
            Step::Icmp { icmp_type, code, info } => TraceStep::Icmp { icmp_type, code, info },
            Step::NoIcmp => {
                return note("not sent: by the rate limits or the rules for ICMP errors");
            }
        }]
    }

    fn rule(&mut self, step: u32, op: u32, result: &RuleResult) -> Vec<TraceStep> {
        let Some(nft) = self.of.nft else { return Vec::new() };
        let Some(found) = nft.traced_rule(step, op) else { return Vec::new() };
        let TracedRule { table, chain, rule, exprs } = found;
        let (table_name, chain_name) = place(table, chain);
        let printer =
            self.printers.entry(table_name.clone()).or_insert_with(|| Printer::new(table));
        let text = printer.rule(rule, &|_| None);
        let to = |number: u32| {
            nft.chain(number).map_or_else(|| "?".to_owned(), |(_, chain)| one_line(&chain.name))
        };
        let mut missed = None;
        let word = match result {
            RuleResult::NoMatch(value) => {
                missed = exprs.map(|exprs| mismatch(table, rule, exprs, value.octets()));
                "no match".to_owned()
            }
            RuleResult::Passed => "continue".to_owned(),
            RuleResult::Accept => "accept".to_owned(),
            RuleResult::Drop => "drop".to_owned(),
            RuleResult::Return => "return".to_owned(),
            RuleResult::Jump(chain) => format!("jump {}", to(*chain)),
            RuleResult::Goto(chain) => format!("goto {}", to(*chain)),
            RuleResult::Kernel => "kernel".to_owned(),
        };
        match result {
            RuleResult::Jump(to) | RuleResult::Goto(to) => {
                if matches!(result, RuleResult::Goto(_)) && self.chains.len() > 1 {
                    self.chains.pop();
                }
                self.chains.extend(nft.chain(*to).map(|(table, chain)| place(table, chain)));
            }
            RuleResult::Return if self.chains.len() > 1 => {
                self.chains.pop();
            }
            RuleResult::Kernel => {
                self.why = Some(format!("{table_name} {chain_name} handle {}", rule.handle));
            }
            _ => {}
        }
        let (expression, value) = match missed {
            Some(Mismatch { expression, value }) => (Some(expression), value),
            None => (None, None),
        };
        let (table, chain) = (table_name, chain_name);
        let handle = rule.handle;
        vec![TraceStep::Rule { table, chain, handle, rule: text, result: word, expression, value }]
    }

    fn disposition(&self, disposition: &FinalDisposition) -> TraceDisposition {
        let of = self.of;
        match *disposition {
            FinalDisposition::Sent { ifindex, .. } => {
                TraceDisposition::Sent { port: of.name(ifindex) }
            }
            FinalDisposition::Dropped(reason) => TraceDisposition::Dropped {
                reason: reason.name().to_owned(),
                help: reason.help().to_owned(),
            },
            FinalDisposition::IcmpError { is_ipv6, icmp_type, code, reason } => {
                let protocol = if is_ipv6 { "icmpv6" } else { "icmp" }.to_owned();
                let reason = reason.name().to_owned();
                TraceDisposition::IcmpError { protocol, icmp_type, code, reason }
            }
            FinalDisposition::Kernel(reason) => TraceDisposition::Kernel {
                reason: reason.name().to_owned(),
                help: reason.help().to_owned(),
                why: self.why.clone(),
            },
            FinalDisposition::HeldFragment => TraceDisposition::HeldFragment,
            FinalDisposition::Held { addr, oif } => {
                TraceDisposition::Held { dst: addr, dev: of.name(oif) }
            }
            FinalDisposition::Fragmented { fragments, oif } => {
                TraceDisposition::Fragmented { fragments, dev: of.name(oif) }
            }
        }
    }
}

fn connection(conntrack: Conntrack) -> TraceStep {
    let without = |state: &str| TraceStep::Conntrack {
        state: state.to_owned(),
        flow: None,
        direction: None,
        mark: None,
    };
    match conntrack {
        Conntrack::Established { flow, is_reply, mark } => TraceStep::Conntrack {
            state: "established".to_owned(),
            flow: Some(flow),
            direction: Some(if is_reply { "reply" } else { "original" }.to_owned()),
            mark: Some(mark),
        },
        Conntrack::Invalid => without("invalid"),
        Conntrack::NotCarried => without("not carried"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::nft::compile;
    use crate::netfilter::nft::ruleset::{
        BaseChain, Expr, Family, Rule, RuleVerdict, Ruleset, Table,
    };
    use crate::stats::PuntReason;
    use crate::trace::Tracer;

    /// A base chain that jumps to a chain with a rule that is left to the kernel.
    fn nft() -> Nft {
        let rule = |handle, expr: Expr| Rule { handle, exprs: vec![expr], comment: None };
        let jump = Expr::Verdict(RuleVerdict::Jump("web\n".into()));
        let base = BaseChain {
            kind: "filter".into(),
            hook: 2,
            priority: 0,
            policy_drops: true,
            devices: vec![],
        };
        let chains = vec![
            Chain {
                name: "web\n".into(),
                base: None,
                rules: vec![rule(7, Expr::Other("limit".into()))],
            },
            Chain { name: "forward".into(), base: Some(base), rules: vec![rule(8, jump)] },
        ];
        let arp = Table {
            family: Family::Other(3),
            name: "first".into(),
            handle: 1,
            dormant: false,
            chains: chains.clone(),
            sets: vec![],
            objects: vec![],
            flowtables: vec![],
        };
        let inet = Table { family: Family::Inet, name: "fw".into(), ..arp.clone() };
        let ruleset = Ruleset { generation: 1, tables: vec![arp, inet] };
        let program = compile(&ruleset, 0);
        Nft::new(ruleset, program, 1, None)
    }

    /// `reason`: why the packet is left to the kernel, by number.
    fn record(reason: u32) -> Record {
        let mut record = Record::new();
        record.nft = 1;
        for step in [
            Step::Stage(Stage::IpRcvCore),
            Step::Header { ttl: 64, len: 52 },
            Step::Stage(Stage::IpForwardChecks),
            Step::Stage(Stage::Hook(2)),
            Step::BaseChain(0),
            Step::Rule { step: 1, op: 1, result: RuleResult::Jump(0) },
            Step::Rule { step: 0, op: 0, result: RuleResult::Kernel },
            Step::Left(reason),
        ] {
            record.step(step);
        }
        record.disposition = FinalDisposition::Kernel(PuntReason::Netfilter);
        record
    }

    fn text(nft: Option<&Nft>) -> String {
        let tables = Tables::empty();
        let is_limit =
            |reason: &u32| nft.is_some_and(|nft| nft.program().reason(*reason) == "limit");
        let reason = (0..100).find(is_limit).unwrap_or(0);
        let text = report(&record(reason), 0, &References { tables: &tables, nft }).text();
        text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn rules_have_their_table_chain_handle_and_text() {
        let nft = nft();
        let expected = "  ip_rcv_core         version 4, ttl 64, length 52
  FORWARD             inet fw forward handle 8: jump web\\x0a -> jump web\\x0a
                      inet fw web\\x0a handle 7: [ limit ] -> kernel
                      left to the kernel: limit
  handed to kernel    NETFILTER: inet fw web\\x0a handle 7: limit
";
        assert_eq!(text(Some(&nft)), expected);
    }

    #[test]
    fn rules_of_an_unknown_ruleset_are_not_named() {
        let text = text(None);
        let steps: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(steps.len(), 3, "{text}");
        assert!(steps[0].contains("rules of another generation of the ruleset"), "{text}");
        assert!(steps[1].contains("left to the kernel: unknown"), "{text}");
        assert!(steps[2].contains("handed to kernel    NETFILTER: "), "{text}");
    }
}
