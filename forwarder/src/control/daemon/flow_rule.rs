//! Which rule makes a flow one that is decided packet by packet: the ruleset is followed with what is known of the flow, on
//! the thread of a client.

use crate::control::api::flow_rows::{ConnectionRow, Forwarding, Reason};
use crate::control::nftables::print::{Printer, one_line};
use crate::control::nftables::varying::expression;
use crate::netfilter::conntrack::{Direction, FlowView};
use crate::netfilter::nft::carried_rules::{Cause, FlowFacts};
use crate::netfilter::nft::{Family, Nft, TracedRule};
use crate::netfilter::{COUNTERS_MAX, Hook, Hooks, priority};

/// Names the rules of a connection whose directions have [`Reason::RulesPerPacket`].
pub(super) fn name_rules(hooks: &Hooks, row: &mut ConnectionRow, view: &FlowView) {
    let Some(nft) = hooks.nft() else { return };
    for (at, direction) in row.directions.iter_mut().enumerate() {
        let rule = rule(hooks, nft, view, at, &direction.forwarding);
        if let Some(not_offloaded) = &mut direction.forwarding.not_offloaded
            && not_offloaded.reason == Reason::RulesPerPacket
        {
            not_offloaded.rule = rule;
        }
    }
}

/// Why packets of a direction are decided about one by one. `None`: it is not known.
fn rule(hooks: &Hooks, nft: &Nft, view: &FlowView, at: usize, way: &Forwarding) -> Option<String> {
    way.not_offloaded.as_ref().filter(|it| it.reason == Reason::RulesPerPacket)?;
    let received = *view.desc.keys.get(at)?;
    let family = if received.is_ipv4() { Family::Ip } else { Family::Ip6 };
    let program = nft.program();
    if !hooks.may_decide(family) {
        let chains = program.chains(family, Hook::PreRouting).iter();
        let mut early = chains.filter(|it| program.priority(**it) < priority::CONNTRACK);
        let name = one_line(program.chain_name(*early.next()?));
        return Some(format!("chain {name}, before connection tracking"));
    }
    let facts = FlowFacts {
        received,
        translated: view.desc.keys.get(1 - at)?.inverted(),
        direction: if at == 0 { Direction::Original } else { Direction::Reply },
        status: view.desc.status,
        mark: view.desc.mark,
        iif: way.iif.clone(),
        oif: way.oif.clone(),
    };
    match nft.per_packet(&facts)? {
        Cause::Rule(TracedRule { table, chain, rule, exprs }) => {
            let exprs = exprs.map(|exprs| expression(&Printer::new(table), table, rule, &exprs));
            let exprs = exprs.map_or_else(String::new, |text| format!(": {text}"));
            let (family, name) = (table.family, one_line(&table.name));
            let chain = one_line(&chain.name);
            Some(format!("{family} {name} {chain} handle {}{exprs}", rule.handle))
        }
        Cause::Counters(count) => {
            (count > COUNTERS_MAX).then(|| format!("they pass more than {COUNTERS_MAX} counters"))
        }
    }
}
